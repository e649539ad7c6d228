"""What is reserved of tokens, before anyone has counted."""

from __future__ import annotations

from typing import Any

import pytest

from aigw.policies.estimate import MEDIA, OUTPUT, PLAIN, Estimate, estimate

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("members", "output"),
    [
        ({}, OUTPUT),
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 60}, 60),
        ({"max_completion_tokens": 60, "max_tokens": 50}, 50),
        ({"max_output_tokens": 70}, 70),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 50, "n": 10**9}, 50 * 128),
        ({"n": 2}, 2 * OUTPUT),
        ({"generationConfig": {"maxOutputTokens": 80}}, 80),
        ({"generation_config": {"max_output_tokens": 80, "candidate_count": 2}}, 160),
        ({"generationConfig": {}}, OUTPUT),
        ({"max_tokens": -1}, OUTPUT),
        ({"max_tokens": True}, OUTPUT),
        ({"max_tokens": 1.5}, OUTPUT),
        ({"max_tokens": "9"}, OUTPUT),
        ({"max_tokens": 1 << 60}, OUTPUT),
        ({"max_tokens": None, "generationConfig": [1]}, OUTPUT),
    ],
)
def test_the_answer(members: dict[str, Any], output: int) -> None:
    assert estimate(400, HI | members) == Estimate(100, output)


def test_a_body_that_was_not_read() -> None:
    assert estimate(4000, None) == Estimate(1000, OUTPUT)
    assert estimate(25_000_000, None, is_form=True) == Estimate(MEDIA, OUTPUT)


def test_a_long_text_counts_by_its_bytes_and_a_file_as_one() -> None:
    text = "word " * 20_000
    assert (
        estimate(PLAIN + 1, {"messages": [{"content": text}]}).input == (len(text) + len("messages" + "content")) // 4
    )
    umlauts = "ä ö " * 20_000
    assert estimate(PLAIN + 1, {"a": [umlauts]}).input == (len(umlauts.encode()) + 1) // 4
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000_000}}
    found = estimate(2_000_100, {"messages": [{"content": [image, image]}]}).input
    assert 2 * MEDIA < found < 2 * MEDIA + 30
    assert estimate(PLAIN + 1, {"input": [1, 2.5, None, True] * 1000}).input == 4001


def test_a_deep_body_is_no_trouble() -> None:
    members: Any = {}
    for _ in range(100_000):
        members = {"a": [members]}
    assert estimate(PLAIN + 1, members).input == 25_000
