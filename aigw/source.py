"""Where the document comes from: the config file, read by a short-lived child, with the command line laid over it.

The supervisor holds the document as plain data and checks nothing that the child can check, which has the schema. What
is decided here needs the command line, or the document before: what a flag may open, and whether a file looks like half
of the one before it.
"""

import asyncio
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any

import orjson

from aigw import listen
from aigw.process import describe_exit

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for; it wins over the file."""

    config: str | None  # the file's path; None: the built-in config
    listen: tuple[str, ...] = ()  # addresses that `listen.parse` takes
    workers: int | str | None = None  # a number or "auto"
    since: float = 0.0  # `time.monotonic` when the command started, for the screen
    admin_listen: str | None = None  # an address that `admin.server.bind` takes


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading the config gave: a document, or errors. `files` are all files that it depends on, with the digest of
    what was in them."""

    document: Document = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    files: dict[str, str | None] = field(default_factory=dict)
    stated: list[list[str]] = field(default_factory=list)  # paths of keys whose absence would be dangerous
    errors: list[str] = field(default_factory=list)
    admin: dict[str, Any] = field(default_factory=dict)  # as `store.Loaded` has it

    def __repr__(self) -> str:  # the document holds credentials
        return f"<Reading {len(self.errors)} errors {len(self.warnings)} warnings {len(self.files)} files>"


async def read(loop: asyncio.AbstractEventLoop, child: subprocess.Popen[bytes], options: Options) -> Reading:
    """What the config child says, with the command line over it."""
    assert child.stdout is not None
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
    try:
        output = await reader.read()
    finally:
        transport.close()
    try:
        answer = orjson.loads(output)
    except orjson.JSONDecodeError:  # it was killed, or said on stderr what is the matter
        why = describe_exit(child.wait())
        return Reading(errors=[f"the config was not read: the process that reads it {why}"])
    return laid_over(answer, options)


def laid_over(answer: dict[str, Any], options: Options) -> Reading:
    """What a config child answered, with the command line over it."""
    files = answer["files"]
    if "errors" in answer:
        return Reading(files=files, errors=answer["errors"])
    admin = answer["admin"]
    if options.admin_listen is not None:
        admin = {**admin, "listen": {"address": options.admin_listen}, "stated": True}
        is_local = options.admin_listen.startswith("unix:") or listen.is_loopback(options.admin_listen)
        if not is_local and admin["token"] is None:
            why = (
                f"--admin-listen {options.admin_listen}: a token is mandatory when the admin API listens off loopback; "
                'write admin: {token: "${AIGW_ADMIN_TOKEN}"} into the config'
            )
            return Reading(files=files, errors=[why])
    document = answer["document"]
    warnings: list[str] = answer["warnings"]
    if options.workers is not None:
        document["workers"] = options.workers
    if options.listen:
        document["listen"] = [{"address": address} for address in options.listen]
        outside = [address for address in options.listen if not listen.is_loopback(address)]
        if outside and options.config is None:
            why = (
                f"--listen {outside[0]}: the built-in config asks for no key, so it listens on loopback only; "
                "write a config.yaml with keys (aigw key NAME) to serve others"
            )
            return Reading(files=files, errors=[why])
        warnings += [
            f"--listen {address}: the gateway {name!r} asks for no key (auth: none); whoever reaches it may use it"
            for address in outside
            for name, gateway in document["gateways"].items()
            if gateway["auth"] == "none"
        ]
    return Reading(document, warnings, files, answer["stated"], admin=admin)


def count_workers(document: Document) -> int:
    """`workers`; auto is one for each core that this process may use."""
    workers = document["workers"]
    if workers != "auto":
        return int(workers)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_budgets(document: Document) -> bool:
    """Whether there is a limit of a day or a month."""
    gateways = document["gateways"].values()
    limited = [*document["upstreams"].values(), *gateways]
    limited += [target for upstream in document["upstreams"].values() for target in upstream["targets"]]
    for gateway in gateways:
        limited += [*gateway["keys"].values(), *gateway["models"].values(), *gateway["rules"]]
    return any(limit["window"] in ("day", "month") for one in limited for limit in one["limits"])


def vanished(before: Reading, after: Reading) -> list[str]:
    """Errors for what stood in the last good file and is gone, where its default could be a catastrophe."""
    return [
        f"{'.'.join(path)}: stood in the file before and is gone; a file that was written in part is not obeyed: "
        "write the default out to mean it"
        for path in before.stated
        if path not in after.stated and (len(path) == 1 or path[1] in after.document["gateways"])
    ]
