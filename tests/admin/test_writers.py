"""Writes of the config under pressure: many at once, a person who saves the file meanwhile, bad disks, a stuck worker.

Whatever was accepted is in the file and served by every worker; whatever was not has left no trace.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from admin.calls import AdminServe, Answer
from processes import PATIENCE

from aigw.config import store

pytestmark = pytest.mark.unmeasured

CONFIG = """\
listen: 127.0.0.1:0
workers: 2
upstreams: {mock: {provider: mock}}
gateways:
  default:
    models: {gpt-4o: mock}
    keys:
      first: {sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}
"""
KEYS = "/gateways/default/keys"


class EachWorker:
    """A connection to each of the workers: request ids begin with a worker's own 64 random bits."""

    def __init__(self, gateway: AdminServe, count: int) -> None:
        self._turn = threading.Lock()
        self._connections: dict[str, http.client.HTTPConnection] = {}
        while len(self._connections) < count:
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
            _, request_id = self._ask(connection, "none")
            known = self._connections.setdefault(request_id[:16], connection)
            if known is not connection:
                connection.close()

    def _ask(self, connection: http.client.HTTPConnection, key: str) -> tuple[int, str]:
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        with connection.getresponse() as response:
            response.read()
            return response.status, response.headers["x-request-id"]

    def answer(self, key: str) -> list[int]:
        """What each of them says to a client with this key."""
        with self._turn:
            return [self._ask(connection, key)[0] for connection in self._connections.values()]

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


def keys_in(text: str, folder: Path) -> set[str]:
    """The names of keys in a config, which is good as a whole."""
    return set(store.parse(text, name="config.yaml", base=folder, environ={}).document["gateways"]["default"]["keys"])


class Person:
    """Who saves the file as editors do: the new one beside it, unless it has changed since, and then in its place."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.saved = 0
        self.overwritten: set[str] = set()  # what was saved between the last look and the rename is the person's loss

    def save(self) -> None:
        beside = self._file.with_name("config.yaml.swp")
        while True:
            before = self._file.read_text()
            beside.write_text(f"{before}# note {self.saved}\n")
            if self._file.read_text() == before:
                break
        # an exchange of both, rather than a rename, tells what was replaced
        done = self._libc.renameat2(-100, os.fsencode(beside), -100, os.fsencode(self._file), 2)
        assert not done, os.strerror(ctypes.get_errno())
        replaced = beside.read_text()
        beside.unlink()
        self.overwritten |= keys_in(replaced, self._file.parent) - keys_in(before, self._file.parent)
        self.saved += 1


def test_two_hundred_writers_and_a_person_lose_nothing(tmp_path: Path) -> None:
    with AdminServe(tmp_path, CONFIG) as gateway, closing(EachWorker(gateway, 2)) as workers:
        person = Person(gateway.file)
        ready = threading.Barrier(200)
        some = threading.Semaphore(0)  # an answer has come

        def write(number: int) -> tuple[Answer, list[int]]:
            ready.wait(PATIENCE)
            made = gateway.call("POST", KEYS, {"name": f"k{number}"})
            usable = workers.answer(made.json["key"]) if made.status == 201 else []
            some.release()
            return made, usable

        with ThreadPoolExecutor(200) as writers:
            running = [writers.submit(write, number) for number in range(200)]
            for _ in range(10):
                for _ in range(20):
                    assert some.acquire(timeout=PATIENCE)
                person.save()
            done = [future.result() for future in running]
        assert {made.status for made, _ in done} == {201}
        names = {f"k{number}" for number in range(200)}
        assert {f"k{number}" for number, (_, usable) in enumerate(done) if usable != [200, 200]} <= person.overwritten
        person.save()
        text = gateway.file.read_text()
        assert keys_in(text, tmp_path) | person.overwritten == {"first"} | names | person.overwritten
        assert text.endswith("# note 10\n")
        assert gateway.call("POST", "/reload").status == 200
        assert gateway.stop() == 0
    assert {path.name for path in tmp_path.glob("*config*")} == {"config.yaml", "config.yaml.bak"}


# workers --------------------------------------------------------------------------------------------------------------


class Hasty(AdminServe):
    """Who waits for a worker less than it should."""

    program = (
        "-c",
        "import sys; from aigw import cli, workers; from aigw.admin import writer;"
        "workers.LATE = writer.PATIENCE = 0.2; sys.exit(cli.main())",
    )


def test_a_worker_that_does_not_follow_is_named(tmp_path: Path) -> None:
    with Hasty(tmp_path, CONFIG) as gateway, closing(EachWorker(gateway, 2)) as each:
        stopped, other = (worker["pid"] for worker in gateway.call("GET", "/status").json["workers"])
        os.kill(stopped, signal.SIGSTOP)
        try:
            made = gateway.call("POST", KEYS, {"name": "alice"})
            assert made.status == 202
            assert made.json["pending"] == [stopped]
            assert made.json["generation"] == 2
            assert "alice" in keys_in(gateway.file.read_text(), tmp_path)
            now = {worker["pid"]: worker["generation"] for worker in gateway.call("GET", "/status").json["workers"]}
            assert now == {stopped: 1, other: 2}
            gateway.err.find(rf"audit: .* POST /api/v1{KEYS} \(alice\): 202, generation 2$")
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert gateway.call("POST", KEYS, {"name": "bob"}).status == 201
        assert each.answer(made.json["key"]) == [200, 200]
        assert gateway.stop() == 0


# disks ----------------------------------------------------------------------------------------------------------------

LONELY = """\
listen: 127.0.0.1:0
usage_store: off
upstreams: {nobody: {provider: http, targets: [{url: "http://127.0.0.1:9"}]}}
gateways:
  default:
    rules: [{name: a, path: /a, upstream: nobody}]
    keys:
      first: {sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}
"""
MOUNTS = {
    "a read-only mount": "mount --bind . . && mount -o remount,ro,bind .",
    "a full disk": """text=$(cat config.yaml; echo .) && mount -t tmpfs -o size=16k aigw . && cd "$PWD" &&
        printf %s "${text%.}" >config.yaml && ! head -c 1000000 /dev/zero >filler 2>/dev/null""",
    "a mount of its own": "cp config.yaml source && mount --bind source config.yaml",
}


class Mounted(AdminServe):
    """A gateway in a mount namespace of its own, which ends with it: the command `$MOUNT` has run there before."""

    program = (
        "-c",
        """
import ctypes, os, subprocess, sys
if ctypes.CDLL(None).unshare(0x20000) or subprocess.call(["mount", "--make-rprivate", "/"], stderr=subprocess.DEVNULL):
    sys.exit("mounting is not permitted here")
folder = os.getcwd()
subprocess.run(["sh", "-ec", os.environ["MOUNT"]], check=True)
os.chdir(folder)
os.execv(sys.executable, [sys.executable, "-m", "aigw", *sys.argv[1:]])
""",
    )

    @property
    def file(self) -> Path:
        """As the gateway sees it."""
        return Path(f"/proc/{self.process.pid}/root{self.folder}/config.yaml")


@contextmanager
def mounted(folder: Path, what: str) -> Iterator[Mounted]:
    try:
        gateway = Mounted(folder, LONELY, environ={"MOUNT": MOUNTS[what]})
    except AssertionError as error:
        if "mounting is not permitted here" in str(error):
            pytest.skip("mounting is not permitted here")
        raise
    with gateway:
        yield gateway
        assert gateway.ask(path="/a") == 401  # it goes on
        assert gateway.call("GET", KEYS).status == 200
        assert gateway.stop() == 0


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("a read-only mount", 500, "this user may not write to its folder (Read-only file system)"),
        ("a full disk", 507, "there is no room on its disk; make some and try again"),
    ],
)
def test_a_disk_that_does_not_take_it(tmp_path: Path, what: str, status: int, said: str) -> None:
    with mounted(tmp_path, what) as gateway:
        refused = gateway.call("POST", KEYS, {"name": "alice"})
        assert (refused.status, refused.code) == (status, "config_not_written")
        assert said in refused.message
        assert gateway.call("GET", "/status").json["generation"] == 1
        assert gateway.file.read_text() == LONELY
        assert not list(gateway.file.parent.glob(".config*"))
        if what == "a full disk":
            gateway.file.with_name("filler").unlink()
            assert gateway.call("POST", KEYS, {"name": "alice"}).status == 201


def test_a_file_that_is_a_mount_of_its_own_is_written(tmp_path: Path) -> None:
    with mounted(tmp_path, "a mount of its own") as gateway:
        made = gateway.call("POST", KEYS, {"name": "alice"})
        assert made.status == 201
        assert keys_in((tmp_path / "source").read_text(), tmp_path) == {"first", "alice"}
        assert gateway.ask(path="/a", key=made.json["key"]) == 502  # nobody is there, but the key is good
    assert (tmp_path / "config.yaml").read_text() == LONELY  # what the mount covered
