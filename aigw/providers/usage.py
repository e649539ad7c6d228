"""A provider's own report of usage -> `Tokens`, whatever its shape.

Shapes are told apart by the names of their counts, so that a provider nobody named here is understood if it speaks
one of them. Each reader stands below its source. Nothing here knows where in an answer a report stands; `tap` does.
"""

from __future__ import annotations

from typing import Any, Final

from aigw.tokens import CACHE_BESIDE, REASONING_BESIDE, Tokens

# Beyond 2**53 JSON readers differ about an integer (RFC 8259 section 6): no provider means that.
_MOST: Final = 1 << 53
_CACHED_ELSEWHERE: Final = ("prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens")
_NONE: Final[dict[str, Any]] = {}


def read(report: dict[str, Any]) -> Tokens | None:
    """`report` is the object under `usage`, `usageMetadata` or (Cohere) `meta`.

    None unless it tells of input or output in integers: a JSON Schema of something called "usage" does not, nor do
    durations (`{"type": "duration", "seconds": 30}`, of transcriptions) and Bedrock's `inputTokens`.
    """
    if "prompt_tokens" in report or "completion_tokens" in report:
        return _chat(report)
    if "tokens" in report or "billed_units" in report:
        return _cohere(report)
    if "input_tokens" in report or "output_tokens" in report:
        return _input_output(report)
    if "promptTokenCount" in report or "candidatesTokenCount" in report:
        return _gemini(report)
    return None


def _chat(report: dict[str, Any]) -> Tokens | None:
    """OpenAI chat completions, completions, embeddings; everyone who speaks that dialect.

    Source: OpenAI API reference, `CompletionUsage`: `prompt_tokens`, `completion_tokens`, and in
    `prompt_tokens_details` and `completion_tokens_details` parts of these. Embeddings have no `completion_tokens`.
    Cached input stands elsewhere with DeepSeek (API reference: `prompt_cache_hit_tokens`), Mistral
    (`num_cached_tokens`, seen in recordings) and Moonshot (`cached_tokens`). OpenRouter adds `cache_write_tokens` to
    the details. Groq, Cerebras, Hugging Face: as OpenAI; details may be null. xAI, too, but for its reasoning, which
    lies beside the completion: its `total_tokens` is the sum of three.
    """
    get = report.get
    prompt = _object(get("prompt_tokens_details"))
    completion = _object(get("completion_tokens_details"))
    cached = prompt.get("cached_tokens")
    if cached is None:
        for name in _CACHED_ELSEWHERE:
            if name in report:
                cached = get(name)
    reasoning = completion.get("reasoning_tokens")
    went_out = get("completion_tokens")
    audio_output = completion.get("audio_tokens")
    return _tokens(
        get("prompt_tokens"),
        went_out,
        cached,
        prompt.get("cache_write_tokens"),
        reasoning,
        _sum(prompt.get("audio_tokens"), audio_output),
        audio_output,
        beside=REASONING_BESIDE if reasoning and _lies_beside(reasoning, went_out, report) else 0,
    )


def _lies_beside(reasoning: Any, went_out: Any, report: dict[str, Any]) -> bool:
    """Whether reasoning is not part of the completion: the total says so, else that it would be too large for that."""
    if not (_is_count(reasoning) and _is_count(went_out)):
        return False
    total, prompt = report.get("total_tokens"), report.get("prompt_tokens")
    if _is_count(total) and _is_count(prompt):
        return bool(total == prompt + went_out + reasoning)
    return bool(reasoning > went_out)


def _input_output(report: dict[str, Any]) -> Tokens | None:
    """OpenAI responses, images and audio; Anthropic messages.

    Source: OpenAI API reference, `ResponseUsage` (`input_tokens_details.cached_tokens` and `cache_write_tokens`,
    `output_tokens_details.reasoning_tokens`), `ImagesResponse.usage` (text and image tokens in the details: no class
    of ours), `TranscriptTextUsageTokens` (`input_token_details`, in the singular, with `audio_tokens`).
    Anthropic API reference, `Usage`: `input_tokens` without `cache_read_input_tokens` and
    `cache_creation_input_tokens`; any of them may be null. `message_delta` may tell of `output_tokens` alone.
    `cache_creation.ephemeral_1h_input_tokens` is the part of the latter that was written for an hour.
    """
    get = report.get
    details = _object(get("input_tokens_details") or get("input_token_details"))
    output = _object(get("output_tokens_details") or get("output_token_details"))
    cached = get("cache_read_input_tokens")
    written = get("cache_creation_input_tokens")
    audio_output = output.get("audio_tokens")
    return _tokens(
        get("input_tokens"),
        get("output_tokens"),
        details.get("cached_tokens") if cached is None else cached,
        details.get("cache_write_tokens") if written is None else written,
        output.get("reasoning_tokens"),
        _sum(details.get("audio_tokens"), audio_output),
        audio_output,
        _object(get("cache_creation")).get("ephemeral_1h_input_tokens") if written else None,
        CACHE_BESIDE if cached or written else 0,
    )


def _gemini(report: dict[str, Any]) -> Tokens | None:
    """Gemini and Vertex AI.

    Source: Gemini API reference, `UsageMetadata`: the total is prompt + tool-use prompt + candidates + thoughts. The
    tool-use prompt has no class of its own and is input too, so it counts with the prompt. Cached content is part of
    the prompt, thoughts are no part of the candidates. Audio stands in the details by modality.
    """
    get = report.get
    audio_output = _audio(get("candidatesTokensDetails"))
    prompt = get("promptTokenCount")
    thoughts = get("thoughtsTokenCount")
    return _tokens(
        _sum(prompt, get("toolUsePromptTokenCount")) if _is_count(prompt) else prompt,
        get("candidatesTokenCount"),
        get("cachedContentTokenCount"),
        None,
        thoughts,
        _sum(_audio(get("promptTokensDetails")), audio_output),
        audio_output,
        beside=REASONING_BESIDE if thoughts else 0,
    )


def _audio(details: Any) -> Any:
    """The count of modality AUDIO in a list of `{"modality", "tokenCount"}`."""
    if type(details) is list:
        for detail in details:
            if type(detail) is dict and detail.get("modality") == "AUDIO":
                return detail.get("tokenCount")
    return None


def _cohere(report: dict[str, Any]) -> Tokens | None:
    """Cohere: v2 `usage`, v1 and embeddings `meta`.

    Source: Cohere API reference, `Usage` and `ApiMeta`: `billed_units` are what is on the bill; `tokens`, with the
    prompt that Cohere adds, count where those are missing. `cached_tokens` are some of the latter and not billed
    apart.
    """
    for name in ("billed_units", "tokens"):
        get = _object(report.get(name)).get
        tokens = _tokens(get("input_tokens"), get("output_tokens"), None, None, None, None)
        if tokens is not None:
            return tokens
    return None


def _tokens(
    came_in: Any,
    went_out: Any,
    cached: Any,
    cache_write: Any,
    reasoning: Any,
    audio: Any,
    audio_output: Any = None,
    cache_write_1h: Any = None,
    beside: int = 0,
) -> Tokens | None:
    """Of input and output one must be a count, the other a count or null; another class that is no count is unknown."""
    if came_in is None:
        if not _is_count(went_out):
            return None
    elif not _is_count(came_in) or not (went_out is None or _is_count(went_out)):
        return None
    return Tokens(
        came_in,
        went_out,
        cached if cached is not None and _is_count(cached) else None,
        cache_write if cache_write is not None and _is_count(cache_write) else None,
        reasoning if reasoning is not None and _is_count(reasoning) else None,
        audio if audio is not None and _is_count(audio) else None,
        audio_output if audio_output is not None and _is_count(audio_output) else None,
        cache_write_1h if cache_write_1h is not None and _is_count(cache_write_1h) else None,
        beside,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _object(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else _NONE


def _sum(one: Any, other: Any) -> Any:
    """The sum of what are counts; None if neither is one."""
    if one is None and other is None:
        return None
    counts = [count for count in (one, other) if _is_count(count)]
    return sum(counts) if counts else None
