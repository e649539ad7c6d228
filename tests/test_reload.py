"""Another config while the gateway serves: how it is noticed, what is not obeyed, and that nobody loses anything."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from load import load
from processes import PATIENCE, Serve

pytestmark = pytest.mark.unmeasured

CONFIG = """\
drain: {{timeout: 20s}}
workers: {workers}
upstreams: {{mock: {{provider: mock}}}}
gateways:
  default:
    auth: none
    models: {{gpt-4o: mock, m{number}: mock}}
"""


def config(number: int, workers: int = 1) -> str:
    return CONFIG.format(number=number, workers=workers)


class Attentive(Serve):
    """Looks at its files ten times a second instead of twice."""

    program = ("-c", "import sys; from aigw import cli, supervisor; supervisor.INTERVAL = 0.1; sys.exit(cli.main())")


@pytest.fixture
def serve(short_path: Path) -> Iterator[Serve]:
    with Attentive(short_path, config(0)) as serve:
        yield serve


def file_of(serve: Serve) -> Path:
    return serve.folder / "config.yaml"


def status(serve: Serve, model: str, key: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
    headers = {"content-type": "application/json"} | ({} if key is None else {"x-api-key": key})
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    connection.request("POST", "/v1/chat/completions", body, headers)
    with connection.getresponse() as response:
        response.read()
    connection.close()
    return response.status


# how a change is noticed ----------------------------------------------------------------------------------------------


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed_over(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def removed_and_made_anew(path: Path, text: str) -> None:
    path.rename(path.with_suffix(".bak"))
    path.write_text(text)


def test_a_saved_file_takes_effect(tmp_path: Path) -> None:
    with Serve(tmp_path, config(0)) as serve:
        assert (status(serve, "m0"), status(serve, "m1")) == (200, 404)
        for number, save in enumerate((in_place, renamed_over, removed_and_made_anew), 1):
            save(file_of(serve), config(number))
            serve.err.find(f"the config has changed: generation {number + 1} serves")
            assert (status(serve, f"m{number - 1}"), status(serve, f"m{number}")) == (404, 200)


def test_a_config_map_s_symlink_swap_takes_effect(tmp_path: Path) -> None:
    """Kubernetes: config.yaml -> ..data/config.yaml, ..data -> a folder of this version; ..data is what changes."""
    mount = tmp_path / "mount"
    for number in (0, 1):
        (mount / f"..{number}").mkdir(parents=True)
        (mount / f"..{number}" / "config.yaml").write_text(config(number))
    (mount / "..data").symlink_to("..0")
    (mount / "config.yaml").symlink_to("..data/config.yaml")
    words = ["--listen", "127.0.0.1:0", "--config", str(mount / "config.yaml")]
    with Attentive(tmp_path, arguments=words) as serve:
        assert status(serve, "m0") == 200
        (mount / "..next").symlink_to("..1")
        (mount / "..next").replace(mount / "..data")
        serve.err.find("generation 2 serves")
        assert status(serve, "m1") == 200


def test_a_secret_s_file_takes_effect(tmp_path: Path) -> None:
    keys = "  default: {models: {'*': mock}, keys: {k: {sha256: '${file:digest}'}}}\n"
    digests = {
        "one": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "two": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    }
    (tmp_path / "digest").write_text(digests["one"])
    with Attentive(tmp_path, f"upstreams: {{mock: {{provider: mock}}}}\ngateways:\n{keys}") as serve:
        assert (status(serve, "x", "one"), status(serve, "x", "two")) == (200, 401)
        (tmp_path / "digest").write_text(digests["two"] + "\n")
        serve.err.find("the config has changed: generation 2 serves")
        assert (status(serve, "x", "one"), status(serve, "x", "two")) == (401, 200)
        (tmp_path / "digest").unlink()
        serve.err.find(r"config: .*digest.* does not exist")
        assert status(serve, "x", "two") == 200
        (tmp_path / "digest").write_text(digests["one"])
        serve.err.find("generation 3 serves")
        assert status(serve, "x", "one") == 200


def test_sighup_reads_at_once(serve: Serve) -> None:
    file_of(serve).write_text(config(1))
    serve.signal(signal.SIGHUP)
    serve.err.find("(SIGHUP|the config has changed): generation 2 serves")
    serve.signal(signal.SIGHUP)
    serve.err.find("SIGHUP: the config has not changed; generation 2 serves")
    assert status(serve, "m1") == 200


def test_a_file_that_is_touched_is_no_change(serve: Serve) -> None:
    text = file_of(serve).read_text()
    file_of(serve).write_text(text)
    os.utime(file_of(serve), (1, 1))
    file_of(serve).with_suffix(".new").write_text(text)
    file_of(serve).with_suffix(".new").replace(file_of(serve))
    file_of(serve).write_text(config(1))
    serve.err.find("generation 2 serves")
    assert len([line for line in serve.err.lines if "generation" in line]) == 1


def test_the_built_in_config_is_not_watched(tmp_path: Path) -> None:
    with Serve(tmp_path) as serve:
        (tmp_path / "config.yaml").write_text(config(1))
        serve.signal(signal.SIGHUP)
        serve.err.find("SIGHUP: the config has not changed; generation 1 serves")


def test_options_win_on_reload_too(tmp_path: Path) -> None:
    words = ["--listen", "127.0.0.1:0", "--workers", "2"]
    with Attentive(tmp_path, config(0), arguments=words) as serve:
        file_of(serve).write_text(config(1, workers=1) + "listen: 127.0.0.1:1\n")
        serve.err.find("generation 2 serves")
        assert status(serve, "m1") == 200
        assert len(serve.workers) == 2


# what is not obeyed ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """One for all bad files; each finds it as it began. Its listeners stand in the file."""
    text = config(0) + f"listen: 127.0.0.1:{free_port()}\n"
    with Attentive(tmp_path_factory.mktemp("good"), text, arguments=[]) as serve:
        yield serve
        assert serve.stop() == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("gateways: {default: {auth: none\n", r"config\.yaml:\d+:\d+ "),
        (config(1) + "oops: 1\n", r"config\.yaml:8:1 oops: unknown key"),
        (config(1).replace("workers: 1\n", ""), "workers: stood in the file before and is gone"),
        (config(1).replace("    auth: none\n", ""), r"gateways\.default\.auth: stood in the file before and is gone"),
        (config(1) + "listen: 192.0.2.1:80\n", "192.0.2.1:80: no interface of this machine has that address"),
        (config(1) + "access_log: /nowhere/log\n", "access_log: cannot open /nowhere/log: No such file or directory"),
    ],
)
def test_a_bad_file_changes_nothing(good: Serve, text: str, said: str) -> None:
    first, lines = file_of(good).read_text(), len(good.err.lines)
    file_of(good).write_text(text)
    good.err.find("the new config is not obeyed; generation 1 goes on serving", lines)
    good.err.find(f"aigw.* config: .*{said}", lines)
    assert (status(good, "m0"), status(good, "m1")) == (200, 404)
    file_of(good).write_text(first)
    good.err.find("the config is good again; generation 1 serves", lines)


def test_a_gateway_that_is_gone_takes_its_auth_with_it(tmp_path: Path) -> None:
    other = "  other: {hosts: [other.example], auth: none, models: {'*': mock}}\n"
    with Attentive(tmp_path, config(0) + other) as serve:
        file_of(serve).write_text(config(1))
        serve.err.find("generation 2 serves")
        assert status(serve, "m1") == 200


def test_a_half_written_file_is_waited_for(tmp_path: Path) -> None:
    """A writer at work: each look finds the file changed, until it rests."""
    with Serve(tmp_path, config(0)) as serve:
        with file_of(serve).open("w") as file:
            for letter in config(1):
                file.write(letter)
                file.flush()
        serve.err.find("generation 2 serves")
        assert not [line for line in serve.err.lines if "not obeyed" in line]
        assert status(serve, "m1") == 200


def test_every_error_is_said(serve: Serve) -> None:
    file_of(serve).write_text(config(1) + "one: 1\ntwo: 2\n")
    for name in ("one", "two"):
        serve.err.find(rf"config: .*config\.yaml:\d:1 {name}: unknown key")


class Impatient(Serve):
    """Says what is wrong with a config again after a tenth of a second instead of a minute."""

    program = (
        "-c",
        "import sys; from aigw import cli, supervisor as s; s.AGAIN = s.INTERVAL = 0.1; sys.exit(cli.main())",
    )


def test_errors_are_said_again_as_long_as_they_are_there(tmp_path: Path) -> None:
    with Impatient(tmp_path, config(0)) as serve:
        file_of(serve).write_text("oops")
        serve.err.wait(lambda lines: sum("not obeyed" in line for line in lines) >= 3, "third complaint")
        file_of(serve).write_text(config(1))
        serve.err.find("generation 2 serves")
        said = len(serve.err.lines)
        file_of(serve).write_text(config(2))
        serve.err.find("generation 3 serves")
        assert not [line for line in serve.err.lines[said:] if "not obeyed" in line]


# listeners and the log ------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_listeners_come_and_go(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    text = config(0, workers=2) + "listen: {listen}\n"
    with Attentive(tmp_path, text.replace("{listen}", f"127.0.0.1:{first}"), arguments=[]) as serve:
        kept = http.client.HTTPConnection("127.0.0.1", first, timeout=PATIENCE)
        kept.request("GET", "/__/ping")
        kept.getresponse().read()
        file_of(serve).write_text(text.replace("{listen}", f"[127.0.0.1:{first}, 127.0.0.1:{second}]"))
        serve.err.find("generation 2 serves")
        assert status(serve, "m0") == 200
        serve.port = second
        assert status(serve, "m0") == 200
        file_of(serve).write_text(text.replace("{listen}", f"127.0.0.1:{second}"))
        serve.err.find("generation 3 serves")
        assert status(serve, "m0") == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first))
        kept.request("GET", "/__/ping")  # who is connected stays
        assert kept.getresponse().status == 200
        kept.close()
        # all addresses of the port that is ours already
        file_of(serve).write_text(text.replace("{listen}", f"0.0.0.0:{second}"))
        serve.err.find("generation 4 serves")
        assert status(serve, "m0") == 200


def test_the_access_log_goes_elsewhere(serve: Serve) -> None:
    path = serve.folder / "access.log"
    assert status(serve, "m0") == 200
    file_of(serve).write_text(config(0) + f"access_log: {path}\n")
    serve.err.find("generation 2 serves")
    assert status(serve, "gone") == 404
    assert serve.stop() == 0
    assert [record["status"] for record in serve.records] == [200]
    assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == [404]


def test_drain_s_times_take_effect(serve: Serve) -> None:
    file_of(serve).write_text(config(0).replace("{timeout: 20s}", "{delay: 30s, timeout: 100ms}"))
    serve.err.find("generation 2 serves")
    stalled = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
    body = json.dumps({"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
    stalled.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", "x-mock": "stall"})
    stalled.getresponse().close()
    serve.signal(signal.SIGTERM)
    serve.err.find("finishing what runs")
    assert status(serve, "m0") == 200  # the delay
    serve.signal(signal.SIGTERM)
    assert serve.end() == 1
    stalled.close()


# under load -----------------------------------------------------------------------------------------------------------


async def test_ten_reloads_under_load_lose_nothing(tmp_path: Path) -> None:
    with Serve(tmp_path, config(0, workers=2)) as serve:
        async with load(serve.port, clients=50, streams=20, seconds=6) as run:
            for number in range(1, 11):
                before = run.answered
                file_of(serve).write_text(config(number, workers=2))
                serve.signal(signal.SIGHUP)
                await asyncio.to_thread(serve.err.find, f"generation {number + 1} serves")
                assert run.answered > before
        assert run.failed == []
        assert run.ended == 20
        assert run.announced == 0  # nobody was asked to reconnect
        assert status(serve, "m10") == 200
        assert await asyncio.to_thread(serve.stop) == 0
        records = [record for record in serve.records if record["path"] == "/v1/chat/completions"]
        assert {record["end"] for record in records} == {"ok"}
        assert len(records) == run.answered + 21


async def test_more_and_fewer_workers_lose_no_connection(tmp_path: Path) -> None:
    with Attentive(tmp_path, config(0, workers=1)) as serve:
        async with load(serve.port, clients=30, streams=5, seconds=4) as run:
            for generation, workers in enumerate((3, 1, 2), 2):
                file_of(serve).write_text(config(0, workers=workers))
                await asyncio.to_thread(serve.err.find, f"generation {generation} serves")
                before = run.answered
                while run.answered < before + 200:
                    assert not run.failed
                    await asyncio.sleep(0.01)
        assert run.failed == []
        assert run.ended == 5
        assert await asyncio.to_thread(serve.stop) == 0
        assert len(re.findall("is wanted no more", "\n".join(serve.err.lines))) == 2
        assert {record["end"] for record in serve.records} == {"ok"}


def test_nothing_is_left_of_what_was_replaced(serve: Serve) -> None:
    """Descriptors: the supervisor's and the worker's are as many after some reloads as before."""

    def opened() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (serve.process.pid, *serve.workers)]

    before: list[int] = []
    for number in range(1, 6):
        file_of(serve).write_text(config(number) + f"access_log: {serve.folder}/{number}.log\n")
        serve.signal(signal.SIGHUP)
        serve.err.find(f"generation {number + 1} serves")
        assert status(serve, f"m{number}") == 200
        before = before or opened()
    # The client's connection, closed by itself, may be counted in either.
    deadline = time.monotonic() + PATIENCE
    while any(now > then for now, then in zip(opened(), before, strict=True)):
        assert time.monotonic() < deadline, f"{before} descriptors at first, now {opened()}"
        os.sched_yield()


def test_a_signal_ends_a_reload_that_is_under_way(serve: Serve) -> None:
    """Nothing of it is left: no process, no complaint."""
    file_of(serve).write_text(config(1, workers=3))
    serve.signal(signal.SIGHUP)
    serve.signal(signal.SIGTERM)
    assert serve.end() == 0
    assert not re.search("Traceback|unexpected", "\n".join(serve.err.lines))
    assert not list(serve.folder.glob("aigw-*/"))
