"""From each provider's own report to tokens by class, as the provider counts them."""

from __future__ import annotations

from typing import Any

import pytest
from recordings import Recording, load

from aigw.providers.usage import read
from aigw.tokens import CACHE_BESIDE, REASONING_BESIDE, Tokens

REPORTING = [r for r in load() if r.usage and r.provider != "bedrock"]

SHAPES: list[tuple[str, dict[str, Any], Tokens]] = [
    (
        "OpenAI chat",
        {
            "prompt_tokens": 20,
            "completion_tokens": 10,
            "total_tokens": 30,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 2, "accepted_prediction_tokens": 1},
        },
        Tokens(20, 10, 4, None, 5, 5, audio_output=2),
    ),
    ("OpenAI embeddings", {"prompt_tokens": 4, "total_tokens": 4}, Tokens(input=4)),
    (
        "details that are null",
        {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None, "completion_tokens_details": None},
        Tokens(1, 2),
    ),
    (
        "OpenAI responses",
        {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 6},
            "total_tokens": 16,
        },
        Tokens(9, 7, 8, 1, 6),
    ),
    (
        "OpenAI images",
        {
            "total_tokens": 100,
            "input_tokens": 50,
            "output_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        },
        Tokens(50, 50),
    ),
    (
        "OpenAI transcriptions",
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
            "output_tokens": 45,
            "total_tokens": 59,
        },
        Tokens(14, 45, audio=14),
    ),
    (
        "Anthropic",
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 418,
            "cache_read_input_tokens": 1111,
            "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 18},
            "output_tokens": 33,
            "service_tier": "standard",
        },
        Tokens(3, 33, 1111, 418, cache_write_1h=18, beside=CACHE_BESIDE),
    ),
    ("Anthropic message_delta", {"output_tokens": 15}, Tokens(output=15)),
    (
        "Anthropic with nulls",
        {"input_tokens": 1, "cache_creation_input_tokens": None, "cache_read_input_tokens": None, "output_tokens": 2},
        Tokens(1, 2),
    ),
    (
        "Gemini",
        {
            "promptTokenCount": 100,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 30,
            "cachedContentTokenCount": 40,
            "toolUsePromptTokenCount": 7,
            "totalTokenCount": 157,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 90},
                {"modality": "AUDIO", "tokenCount": 10},
            ],
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}],
        },
        Tokens(107, 20, 40, None, 30, 30, 20, beside=REASONING_BESIDE),
    ),
    ("Gemini's first chunk", {"promptTokenCount": 5, "totalTokenCount": 5, "trafficType": "ON_DEMAND"}, Tokens(5)),
    ("Mistral", {"prompt_tokens": 64, "completion_tokens": 6, "num_cached_tokens": 32}, Tokens(64, 6, 32)),
    (
        "DeepSeek",
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_cache_hit_tokens": 4,
            "prompt_cache_miss_tokens": 6,
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
        Tokens(10, 5, 4, None, 3),
    ),
    ("Moonshot", {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 9}, Tokens(10, 5, 9)),
    (
        "Groq",
        {"queue_time": 0.1, "prompt_tokens": 84, "prompt_time": 0.003, "completion_tokens": 42, "total_time": 0.09},
        Tokens(84, 42),
    ),
    (
        "xAI",
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "prompt_tokens_details": {"text_tokens": 32, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 94, "audio_tokens": 0},
            "num_sources_used": 0,
        },
        Tokens(32, 9, 6, None, 94, 0, 0, beside=REASONING_BESIDE),
    ),
    (
        "xAI, where the total says that the reasoning is small and lies beside",
        {
            "prompt_tokens": 7,
            "completion_tokens": 9,
            "total_tokens": 19,
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
        Tokens(7, 9, reasoning=3, beside=REASONING_BESIDE),
    ),
    (
        "OpenRouter",
        {
            "prompt_tokens": 566,
            "completion_tokens": 27,
            "cost": 0.0021,
            "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 2, "audio_tokens": 0},
        },
        Tokens(566, 27, 1, 2, None, 0),
    ),
    (
        "Cohere v2",
        {
            "billed_units": {"input_tokens": 33, "output_tokens": 22},
            "tokens": {"input_tokens": 1452, "output_tokens": 33},
            "cached_tokens": 144,
        },
        Tokens(33, 22),
    ),
    ("Cohere without a bill", {"tokens": {"input_tokens": 8, "output_tokens": 2}, "cached_tokens": 3}, Tokens(8, 2)),
    ("Cohere embed", {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 8}}, Tokens(8)),
]


@pytest.mark.parametrize(("report", "tokens"), [shape[1:] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])
def test_shapes(report: dict[str, Any], tokens: Tokens) -> None:
    assert read(report) == tokens


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"type": "object", "properties": {"input_tokens": {"type": "integer"}}},
        {"input_tokens": {"type": "integer"}, "output_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": "2"},
        {"prompt_tokens": True},
        {"prompt_tokens": 1.5},
        {"input_tokens": -1},
        {"input_tokens": 2**53},
        {"input_tokens": None, "output_tokens": None},
        {"promptTokenCount": [1]},
        {"tokens": {"input_tokens": "1"}},
        {"tokens": 5},
        {"billed_units": {"search_units": 1}},
        {"type": "duration", "seconds": 30},
        {"total_tokens": 5},
        {"inputTokens": 7, "outputTokens": 126, "totalTokens": 133},  # Bedrock: unknown
    ],
)
def test_what_is_no_report(report: dict[str, Any]) -> None:
    assert read(report) is None


def test_a_part_that_is_no_count_is_unknown_and_the_rest_counts() -> None:
    chat = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": "many"}}
    assert read(chat) == Tokens(1, 2)
    gemini = {"promptTokenCount": 1, "promptTokensDetails": [7, {"modality": "AUDIO", "tokenCount": None}]}
    assert read(gemini) == Tokens(1)


def test_later_reports_replace_what_they_tell_and_add_nothing_up() -> None:
    start = Tokens(input=25, output=1, cached=0, cache_write=7)
    assert start.updated(Tokens(output=15)) == Tokens(25, 15, 0, 7)
    assert start.updated(Tokens(26, 16, 1, 8, 2, 3)) == Tokens(26, 16, 1, 8, 2, 3)
    beside = start._replace(audio_output=5, cache_write_1h=6, beside=CACHE_BESIDE)
    assert beside.updated(Tokens(output=15)) == Tokens(25, 15, 0, 7, None, None, 5, 6, CACHE_BESIDE)
    assert beside.updated(Tokens(beside=REASONING_BESIDE)).beside == CACHE_BESIDE | REASONING_BESIDE
    assert Tokens().updated(beside) == beside
    assert start.updated(Tokens()) == start


def test_only_what_is_known_has_a_name_in_the_log() -> None:
    assert Tokens(1, 0, None, 3, None, 0).known() == {"input": 1, "output": 0, "cache_write": 3, "audio": 0}
    assert list(Tokens(1, 2, 3, 4, 5, 6).known()) == ["input", "output", "cached", "cache_write", "reasoning", "audio"]


@pytest.mark.parametrize("recording", REPORTING, ids=lambda recording: recording.name)
def test_every_recorded_report(recording: Recording) -> None:
    assert recording.usage is not None
    tokens = read(recording.usage["raw"])
    assert tokens is not None
    if recording.provider == "cohere":  # whose bill leaves out what the recording counts
        billed = recording.usage["raw"]["billed_units"]
        assert (tokens.input, tokens.output) == (billed["input_tokens"], billed["output_tokens"])
    else:
        assert (tokens.input, tokens.output) == (recording.usage["input_tokens"], recording.usage["output_tokens"])
