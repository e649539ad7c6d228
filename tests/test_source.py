"""The command line over the file, and what looks like half a file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aigw import process, source
from aigw.source import Options, Reading

CONFIG = "upstreams: {mock: {provider: mock}}\ngateways: {default: {auth: none, models: {'*': mock}}}\n"


async def read(path: Path, **options: Any) -> Reading:
    child = process.start_config(str(path))
    try:
        return await source.read(asyncio.get_running_loop(), child, Options(str(path), **options))
    finally:
        child.wait()


async def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG + "workers: 2\nlisten: 127.0.0.1:1\n")
    plain = await read(path)
    assert (plain.document["workers"], plain.document["listen"]) == (2, [{"address": "127.0.0.1:1"}])
    assert plain.warnings == []
    reading = await read(path, workers=3, listen=("127.0.0.1:2", "0.0.0.0:3"))
    assert reading.document["workers"] == 3
    assert [listener["address"] for listener in reading.document["listen"]] == ["127.0.0.1:2", "0.0.0.0:3"]
    (warning,) = reading.warnings
    assert warning.startswith("--listen 0.0.0.0:3: the gateway 'default' asks for no key (auth: none)")
    assert sorted(reading.stated) == [["gateways"], ["gateways", "default", "auth"], ["workers"]]


async def test_files_are_named_with_what_was_in_them_even_if_the_config_is_bad(tmp_path: Path) -> None:
    path, secret = tmp_path / "config.yaml", tmp_path / "secret"
    path.write_text("x: ${file:secret}\ny: ${file:nothing}\n")
    secret.write_text("s")
    reading = await read(path)
    assert reading.errors
    assert reading.files == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest(),
        str(secret): "043a718774c572bd8a25adbeb1bfcd5c0256ae11cecf9f9c3f925d0e52beaf89",
        str(tmp_path / "nothing"): None,
    }


async def test_a_child_that_dies_is_an_error() -> None:
    child = subprocess.Popen(["sh", "-c", "exit 3"], stdout=subprocess.PIPE)  # noqa: ASYNC220  (as the supervisor does)
    reading = await source.read(asyncio.get_running_loop(), child, Options("config.yaml"))
    assert reading.errors == ["the config was not read: the process that reads it ended with status 3"]


def test_its_repr_shows_no_document() -> None:
    assert repr(Reading({"api_key": "sk-canary"})) == "<Reading 0 errors 0 warnings 0 files>"


def test_how_many_workers() -> None:
    assert source.count_workers({"workers": 3}) == 3
    assert source.count_workers({"workers": "auto"}) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("before", "after", "gateways", "gone"),
    [
        ([["gateways"], ["workers"]], [["gateways"]], [], ["workers"]),
        ([["gateways"], ["gateways", "a", "auth"]], [["gateways"]], ["a"], ["gateways.a.auth"]),
        ([["gateways"], ["gateways", "a", "auth"]], [["gateways"]], ["b"], []),
        ([["gateways"]], [["gateways"], ["workers"]], [], []),
    ],
)
def test_what_has_vanished(
    before: list[list[str]], after: list[list[str]], gateways: list[str], gone: list[str]
) -> None:
    reading = Reading({"gateways": dict.fromkeys(gateways)}, stated=after)
    errors = source.vanished(Reading(stated=before), reading)
    assert [error.partition(":")[0] for error in errors] == gone
    assert all("write the default out to mean it" in error for error in errors)


def test_the_child_says_one_json_object(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "aigw.config.store", str(tmp_path / "config.yaml")]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert set(answer) == {"document", "warnings", "stated", "admin", "files"}
