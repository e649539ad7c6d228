"""Prices: which one a model has, and that every token is billed once, as its class and by its provider's own count."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fakes import Connection, Seen, document, gateway, model, ok, post, rule, running, serving, stub, target, upstream
from recordings import Recording, load

from aigw.config import checks, snapshot, store
from aigw.pricelist import LISTS, VERSION
from aigw.prices import Price, Prices, list_of
from aigw.providers.usage import read
from aigw.tokens import CACHE_BESIDE, REASONING_BESIDE, Tokens

NANO = 0.001  # dollars per million tokens: a nano-dollar each
REPORTING = [r for r in load() if r.usage and r.provider != "bedrock"]
# A price for each class that no sum of the others makes.
APART = Price(
    {
        "input": NANO,
        "cached": 1e2 * NANO,
        "cache_write": 1e4 * NANO,
        "cache_write_1h": 2e4 * NANO,
        "output": 1e6 * NANO,
        "reasoning": 1e10 * NANO,
        "audio_input": 1e12 * NANO,
        "audio_output": 1e13 * NANO,
    }
)


def billed(tokens: Tokens) -> int:
    return APART.cost(tokens)


# what is billed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", REPORTING, ids=lambda recording: recording.name)
def test_every_recorded_token_is_billed_once(recording: Recording) -> None:
    """With one price for all classes the bill is the number of tokens, whatever lies within what."""
    assert recording.usage is not None
    raw = recording.usage["raw"]
    tokens = read(raw)
    assert tokens is not None
    total = recording.usage["total_tokens"]
    if recording.provider == "anthropic":
        cache = (raw["cache_read_input_tokens"] or 0) + (raw["cache_creation_input_tokens"] or 0)
        total = raw["input_tokens"] + cache + raw["output_tokens"]
    elif recording.provider == "cohere":
        total = raw["billed_units"]["input_tokens"] + raw["billed_units"]["output_tokens"]
    assert Price({"input": NANO, "output": NANO}).cost(tokens) == total > 0


@pytest.mark.parametrize(
    ("name", "bill"),
    [
        ("33-openai-responses-plain", {"input": 9394, "cached": 3200, "output": 62, "reasoning": 1088}),
        ("36-openai-chat-plain", {"input": 334, "output": 173, "reasoning": 256}),
        ("32-anthropic-messages-plain", {"input": 3, "cached": 1111, "cache_write": 418, "output": 33}),
        ("8-gemini-generateContent-plain", {"input": 10, "output": 119, "reasoning": 699}),
        ("21-mistral-chat-plain", {"input": 32, "cached": 32, "output": 6}),
        ("16-groq-chat-plain", {"input": 84, "output": 10, "reasoning": 32}),
        ("42-deepseek-responses-plain", {"input": 72, "cached": 128, "output": 2, "reasoning": 14}),
        ("39-cohere-chat-plain", {"input": 33, "output": 22}),
        ("28-openai-embeddings-plain", {"input": 4}),
    ],
)
def test_each_provider_counts_in_its_own_way(name: str, bill: dict[str, int]) -> None:
    (recording,) = [r for r in REPORTING if r.name == name]
    assert recording.usage is not None
    tokens = read(recording.usage["raw"])
    assert tokens is not None
    rates = {"input": 1, "cached": 100, "cache_write": 10_000, "output": 10**6, "reasoning": 10**10}
    assert billed(tokens) == sum(rates[part] * count for part, count in bill.items())


@pytest.mark.parametrize(
    ("report", "bill"),
    [
        # xAI: the reasoning is not part of the completion
        (
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "prompt_tokens_details": {"cached_tokens": 6},
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            26 + 6 * 10**2 + 9 * 10**6 + 94 * 10**10,
        ),
        # Gemini: cached content within the prompt, tool use and thoughts beside, audio within both
        (
            {
                "promptTokenCount": 100,
                "toolUsePromptTokenCount": 7,
                "cachedContentTokenCount": 40,
                "candidatesTokenCount": 20,
                "thoughtsTokenCount": 30,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}],
                "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 5}],
            },
            57 + 40 * 10**2 + 10 * 10**12 + 15 * 10**6 + 5 * 10**13 + 30 * 10**10,
        ),
        # Anthropic: of what was written to the cache, some for an hour
        (
            {
                "input_tokens": 3,
                "cache_read_input_tokens": 1000,
                "cache_creation_input_tokens": 400,
                "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 100},
                "output_tokens": 33,
            },
            3 + 1000 * 10**2 + 300 * 10**4 + 100 * 2 * 10**4 + 33 * 10**6,
        ),
        # OpenAI: what was written to the cache is part of the input
        (
            {
                "input_tokens": 100,
                "input_tokens_details": {"cached_tokens": 50, "cache_write_tokens": 20},
                "output_tokens": 7,
            },
            30 + 50 * 10**2 + 20 * 10**4 + 7 * 10**6,
        ),
        # OpenAI audio
        (
            {
                "prompt_tokens": 20,
                "completion_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 2},
            },
            13 + 4 * 10**2 + 3 * 10**12 + 8 * 10**6 + 2 * 10**13,
        ),
    ],
    ids=["xAI", "Gemini", "Anthropic", "OpenAI", "audio"],
)
def test_shapes_that_were_not_recorded(report: dict[str, Any], bill: int) -> None:
    tokens = read(report)
    assert tokens is not None
    assert billed(tokens) == bill


def test_a_class_without_a_price_costs_what_holds_it() -> None:
    tokens = Tokens(100, 50, 40, 20, 30, 10, 4, 5)
    assert Price({"input": 1, "output": 10}).cost(tokens) == 100 * 1_000 + 50 * 10_000
    assert Price({"input": 1, "output": 10, "cache_write": 2}).cost(tokens) == 80_000 + 20 * 2_000 + 500_000
    assert Price({"input": 1, "output": 10}).cost(tokens._replace(beside=CACHE_BESIDE)) == 160_000 + 500_000
    assert Price({"input": 1, "output": 10}).cost(tokens._replace(beside=REASONING_BESIDE)) == 100_000 + 800_000


def test_what_was_not_reported_costs_nothing() -> None:
    assert APART.cost(Tokens()) == 0
    assert APART.cost(Tokens(input=5)) == 5
    assert APART.cost(Tokens(output=5)) == 5 * 10**6


def test_parts_larger_than_the_whole_are_not_billed_beyond_it() -> None:
    assert billed(Tokens(10, 5, cached=30, cache_write=30)) == 10 * 10**2 + 5 * 10**6
    assert billed(Tokens(10, 5, cached=4, cache_write=30, cache_write_1h=50)) == 4 * 10**2 + 6 * 2 * 10**4 + 5 * 10**6
    assert billed(Tokens(10, 5, reasoning=30)) == 10 + 5 * 10**10
    assert billed(Tokens(10, 5, audio=90, audio_output=30)) == 10 * 10**12 + 5 * 10**13
    assert billed(Tokens(10, 5, audio=2, audio_output=30)) == 10 + 3 * 10**6 + 2 * 10**13


def test_an_exchange_is_rounded_once() -> None:
    price = Price({"input": 0.0001, "output": 0.0003})  # 100 and 300 pico-dollars
    assert [price.cost(Tokens(count, 0)) for count in (4, 5, 14, 15)] == [0, 1, 1, 2]
    assert price.cost(Tokens(2, 1)) == 1  # 200 + 300: apart they would be nothing
    assert Price({"input": 150.0, "output": 600.0}).cost(Tokens(2**53, 2**53)) == 2**53 * 750_000


@pytest.mark.parametrize(("prompt", "nanos"), [(100_000, 100_000 * 100), (100_001, 100_001 * 500)])
def test_a_long_prompt_has_prices_of_its_own(prompt: int, nanos: int) -> None:
    haiku = Prices({}, "api.anthropic.com").find("claude-haiku-5-5")
    assert haiku is not None
    assert haiku.cost(Tokens(prompt, 0)) == nanos


def test_cached_tokens_make_a_prompt_long_wherever_they_lie() -> None:
    gemini = Prices({}, "generativelanguage.googleapis.com").find("gemini-2.5-pro")
    haiku = Prices({}, "api.anthropic.com").find("claude-haiku-5-5")
    assert gemini is not None
    assert haiku is not None
    assert gemini.cost(Tokens(200_000, 0, 150_000)) == 50_000 * 1_250 + 150_000 * 125
    assert gemini.cost(Tokens(200_001, 10, 150_000)) == 50_001 * 2_500 + 150_000 * 250 + 10 * 15_000
    assert haiku.cost(Tokens(1, 0, 60_000, 40_000, beside=CACHE_BESIDE)) == 500 + 60_000 * 50 + 40_000 * 625


# whose price ----------------------------------------------------------------------------------------------------------


def test_a_date_is_not_part_of_a_name_unless_it_has_a_line() -> None:
    openai = Prices({}, "api.openai.com")
    assert openai.find("gpt-4o-2024-08-06") is openai.find("gpt-4o") is not None
    older = openai.find("gpt-4o-2024-05-13")
    assert older is not None
    assert older.cost(Tokens(1, 0)) == 5_000
    claude = Prices({}, "api.anthropic.com")
    assert claude.find("claude-sonnet-4-20250514") is claude.find("claude-sonnet-4") is not None
    assert claude.find("claude-opus-4-5@20251101") is claude.find("claude-opus-4-5") is not None


@pytest.mark.parametrize("name", ["gpt-4o-super", "gpt-5-mini-x", "gpt-4", "gpt-", "", "GPT-4O", "gpt-4o-2024-08-06-x"])
def test_names_that_begin_alike_share_no_price(name: str) -> None:
    openai = Prices({}, "api.openai.com")
    if name == "gpt-4":
        assert openai.find(name) is not openai.find("gpt-4o")
    else:
        assert openai.find(name) is None


def test_a_list_holds_at_its_provider_only() -> None:
    assert Prices({}, "10.0.0.7").find("gpt-4o") is None
    assert Prices({}, "api.groq.com").find("gpt-4o") is None
    assert list_of("eu.api.openai.com") is None


def test_the_configs_prices_come_first_and_hold_everywhere() -> None:
    own = {"gpt-4o": Price({"input": 1, "output": 2}), "mine": Price({"input": 3, "output": 4})}
    openai = Prices(own, "api.openai.com")
    assert openai.find("gpt-4o") is openai.find("gpt-4o-2024-08-06") is own["gpt-4o"]
    assert openai.find("gpt-4o-2024-05-13") not in (None, own["gpt-4o"])  # it has its own
    assert Prices(own, "").find("mine") is own["mine"]


def test_the_lists_are_sound() -> None:
    assert {prices.provider for prices in LISTS} == {
        "OpenAI", "Anthropic", "Google", "Mistral", "Cohere", "Groq", "DeepSeek", "xAI"
    }  # fmt: skip
    assert max(prices.date for prices in LISTS) == VERSION
    for prices in LISTS:
        assert prices.source.startswith("https://")
        assert re.fullmatch(r"20\d\d-\d\d", prices.date)
        assert set(prices.columns.split()) <= set(Price.__slots__)
        found = [line.split() for line in prices.lines.split("\n") if line.split()]
        assert all(len(line) == 1 + len(prices.columns.split()) for line in found)
        assert found[0][0][0] != ">"
        names = [name for line in found for name in line[0].split(",") if name[0] != ">"]
        assert len(names) == len(set(names))
        for name in names:
            price = Prices({}, prices.hosts[0]).find(name)
            assert price is not None
            # What was cached costs less, what thinks or is written no less: else two columns were mixed up.
            assert 0 < price.input <= price.cache_write <= price.cache_write_1h
            assert 0 < price.cached <= price.input
            assert price.input <= price.output or not price.output
            assert (price.long.input > price.input) == (price.long is not price)


# in the config --------------------------------------------------------------------------------------------------------

CONFIG = """
upstreams:
  openai: {provider: openai}
  own: {provider: openai, targets: [{url: "http://10.0.0.7/v1"}]}
  claude: {provider: anthropic, targets: [{url: "https://api.anthropic.com", model: {best: claude-opus-9}}]}
  mock: {provider: mock}
gateways:
  g:
    auth: none
    models:
      gpt-4o: openai
      gpt-4o-2024-08-06: openai
      gpt-99: openai
      fast: {upstream: openai, model: gpt-4.1-nano}
      slow: {upstream: openai, model: gpt-98}
      mine: {upstream: openai, model: my-model}
      any: own
      best: claude
      "*": openai
      pretend: mock
prices: {my-model: {input: 0.15, output: 0.6}}
"""


def test_a_model_without_a_price_is_a_warning_where_its_provider_has_prices(tmp_path: Any) -> None:
    loaded = store.parse(CONFIG, name="c.yaml", base=tmp_path, environ={})
    unknown = [str(warning) for warning in loaded.warnings]
    assert unknown == [
        f"c.yaml:{line}:7 gateways.g.models.{name}: its cost is not counted, because no price of {sent} is known; "
        "write prices: {NAME: {input: ..., output: ...}}"
        for line, name, sent in (
            (13, "gpt-99", '"gpt-99" at OpenAI'),
            (15, "slow", '"gpt-98" at OpenAI'),
            (18, "best", '"claude-opus-9" at Anthropic'),
        )
    ]


def test_a_candidate_has_its_price(tmp_path: Any) -> None:
    compiled = snapshot.compile(store.parse(CONFIG, name="c.yaml", base=tmp_path, environ={}).document, 1)
    gateway = compiled.gateways["g"]

    def price(asked: str) -> str | None:
        found = gateway.find_model(asked)
        assert found is not None
        (candidate,) = found.candidates
        return None if candidate.price is None else repr(candidate.price)

    assert price("fast") == "<Price 0.1 in 0.4 out>"
    assert price("mine") == "<Price 0.15 in 0.6 out>"
    assert price("gpt-4.1") == "<Price 2 in 8 out>"  # the glob
    assert price("any") is price("pretend") is price("gpt-99") is None
    rules = {"g": {**document({})["gateways"]["default"], "rules": [rule(upstream="up")]}}
    resolved = snapshot.compile(document({"up": upstream(target("http://a"))}, gateways=rules), 1).gateways["g"]
    assert resolved.rules[0].resolved is not None
    assert resolved.rules[0].resolved.candidates[0].price is None


def test_every_class_may_have_a_price_of_its_own(tmp_path: Any) -> None:
    names = ("input", "output", "cached", "cache_write", "cache_write_1h", "reasoning", "audio_input", "audio_output")
    given = ", ".join(f"{name}: {index}.5" for index, name in enumerate(names))
    text = f"upstreams: {{}}\ngateways: {{}}\nprices: {{m: {{{given}}}}}"
    (price,) = store.parse(text, name="c.yaml", base=tmp_path, environ={}).document["prices"].values()
    compiled = Price(price)
    assert [getattr(compiled, name) for name in names] == [index * 10**6 + 500_000 for index in range(8)]


def test_splits_have_no_upstream_of_their_own() -> None:
    config = document({}, gateways={"g": gateway(models={"m": model(None)})})  # type: ignore[arg-type]
    assert list(checks.unpriced(config)) == []


# in the record --------------------------------------------------------------------------------------------------------

USED = b'{"usage":{"prompt_tokens":1000,"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":400}}}'


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({"m": {"input": 2.5, "output": 10, "cached": 1.25}}, "0.002200000"),
        ({"m": {"input": 250_000, "output": 1_000_000, "cached": 0}}, "170.000000000"),
        ({"m": {"input": 0, "output": 0}}, "0.000000000"),
        ({"other": {"input": 1, "output": 1}}, None),
    ],
)
async def test_the_record_says_what_it_cost(prices: dict[str, Any], cost: str | None) -> None:
    async with stub(ok(USED)) as up, running({**serving(up.url), "prices": prices}) as gw:
        await gw.ask(post("/v1/chat/completions", b'{"model":"m"}'))
        record = await gw.record()
        (line,) = gw.lines
    if cost is None:
        assert "cost" not in record
    else:
        assert b'"cost":' + cost.encode() in line
        assert json.loads(line)["cost"] == float(cost)


async def test_what_broke_off_costs_what_was_seen_of_it() -> None:
    prices = {"m": {"input": 1, "output": 1}}
    begun = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
    )

    async def breaks_off(connection: Connection, seen: Seen) -> None:
        await connection.send(begun)
        connection.reset()

    async with stub(breaks_off) as up:
        anthropic = serving(up.url, provider="anthropic", dialects=["anthropic"])
        async with running({**anthropic, "prices": prices}) as gw:
            client = await gw.connect()
            await client.send(post("/v1/messages", b'{"model":"m"}'))
            record = await gw.record()
    assert record["end"] == "cut"
    assert record["cost"] == 8e-6


async def test_no_usage_has_no_cost() -> None:
    async with stub(ok(b"{}")) as up:
        prices = {"m": {"input": 1, "output": 1}}
        async with running({**serving(up.url), "prices": prices}) as gw:
            await gw.ask(post("/v1/chat/completions", b'{"model":"m"}'))
            assert "cost" not in await gw.record()
