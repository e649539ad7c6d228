"""How many tokens a request may use, before anyone has counted: what a limit reserves until the answer tells.

Too much blocks others for the time of one answer, too little lets some more pass than there is room for; both are put
right at the end. So this is cheap rather than exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

# English text has about four characters to a token (OpenAI Help Center, "What are tokens"), JSON's own bytes included.
BYTES: Final = 4
# An image of the largest size that is not scaled down (Anthropic API reference, "Vision": 1,600 tokens for 1.15
# megapixels; OpenAI's guide has 765 to 1,105 for as much). Other media are taken for one.
MEDIA: Final = 1600
# The answer, where the request does not bound it: a page of text.
OUTPUT: Final = 1000
# Bodies up to this length hold no image worth looking for: they are at most five of them by their bytes.
PLAIN: Final = 32 * 1024
# A text so long without a blank in its first part is an encoded file.
_LONG: Final = 1024

_BOUNDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_GEMINI: Final = ("generationConfig", "generation_config")
_GEMINI_BOUNDS: Final = ("maxOutputTokens", "max_output_tokens")
_GEMINI_COUNTS: Final = ("candidateCount", "candidate_count")
# Several answers at once: no API makes more (OpenAI API reference, `n`: 1 to 128).
_MOST_ANSWERS: Final = 128


class Estimate(NamedTuple):
    input: int
    output: int


NOTHING: Final = Estimate(0, 0)


def estimate(size: int, members: Mapping[str, Any] | None, *, is_form: bool = False) -> Estimate:
    """`size` is the body's in bytes, as far as it is known; `members` its JSON, None where that was not read. A form
    carries a file."""
    if members is None:
        return Estimate(MEDIA if is_form else size // BYTES, OUTPUT)
    return Estimate(size // BYTES if size <= PLAIN else _texts(members), _output(members))


def _output(members: Mapping[str, Any]) -> int:
    bounds, answers = _counts(members, _BOUNDS), _counts(members, ("n",))
    for name in _GEMINI:
        if isinstance(config := members.get(name), dict):
            bounds, answers = _counts(config, _GEMINI_BOUNDS), _counts(config, _GEMINI_COUNTS)
    return min(bounds, default=OUTPUT) * min(max(answers, default=1), _MOST_ANSWERS)


def _counts(place: Mapping[str, Any], names: tuple[str, ...]) -> list[int]:
    """What stands there as a number that can be one of tokens."""
    return [value for name in names if type(value := place.get(name)) is int and 0 < value < 1 << 40]


def _texts(members: Mapping[str, Any]) -> int:
    """Tokens of all texts, and of each encoded file among them; without recursion, since bodies may be deep."""
    size = files = 0
    waiting: list[Any] = [members]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            waiting += value.values()
            size += sum(map(len, value))
        elif type(value) is list:
            waiting += value
        elif type(value) is str:
            if len(value) > _LONG and " " not in value[:_LONG]:
                files += 1
            else:
                size += len(value) if value.isascii() else len(value.encode())
        else:
            size += BYTES  # a number, or the like: about one
    return size // BYTES + files * MEDIA
