"""Whom a request came from: only what trusted proxies added to X-Forwarded-For is believed."""

from __future__ import annotations

import pytest

from aigw.policies.clients import Proxies, plain, subject_of

TRUSTED = Proxies(["10.0.0.0/8", "2001:db8::/32", "127.0.0.1/32"])


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([], "10.0.0.1"),
        ([b"x-forwarded-for: 192.0.2.7"], "192.0.2.7"),
        ([b"X-Forwarded-For:  203.0.113.9 , 192.0.2.7,10.9.9.9"], "192.0.2.7"),  # the first one may be made up
        ([b"x-forwarded-for: 203.0.113.9", b"x-other: 1", b"X-Forwarded-For: 192.0.2.7"], "192.0.2.7"),
        ([b"x-forwarded-for: 10.1.1.1, 10.2.2.2"], "10.1.1.1"),  # all of them are trusted: the first asked
        ([b"x-forwarded-for: 192.0.2.7:4711"], "192.0.2.7"),
        ([b"x-forwarded-for: [2001:DB9::7]:4711, 10.2.2.2"], "2001:db9::7"),
        ([b"x-forwarded-for: 2001:db9:0:0::7, 2001:db8::1"], "2001:db9::7"),
        ([b"x-forwarded-for: ::ffff:192.0.2.7"], "192.0.2.7"),
        ([b"x-forwarded-for: unknown"], "10.0.0.1"),
        ([b"x-forwarded-for: 192.0.2.7, \xff\x00, 10.2.2.2"], "10.2.2.2"),
        ([b"x-forwarded-for:"], "10.0.0.1"),
        ([b"x-forwarded-for: 192.0.2.7,"], "10.0.0.1"),
        ([b"x-forwarded-for: 1.2.3.4.5"], "10.0.0.1"),
        ([b"forwarded: for=192.0.2.7"], "10.0.0.1"),
    ],
)
def test_the_client_of_a_proxy(lines: list[bytes], client: str) -> None:
    assert TRUSTED.client("10.0.0.1", lines) == client


def test_who_is_trusted() -> None:
    assert [TRUSTED.trust(address) for address in ("10.255.0.1", "2001:db8:1::1", "127.0.0.1")] == [True] * 3
    assert not any(TRUSTED.trust(address) for address in ("11.0.0.1", "::1", "127.0.0.2", "unix", ""))
    assert not Proxies([]).trust("10.0.0.1")


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db9:0:1:2:3:4:5", "2001:db9:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_one_client_has_a_whole_64_of_ipv6(address: str, subject: str) -> None:
    assert subject_of(address) == subject


def test_an_ipv4_client_of_a_socket_for_both() -> None:
    assert [plain(text) for text in ("::ffff:192.0.2.7", "::ffff:1:2", "192.0.2.7")] == [
        "192.0.2.7",
        "::ffff:1:2",
        "192.0.2.7",
    ]
