"""Changes of the config: whoever wants one waits in a line, and all that wait are done together.

    edits -> config child: new text, compiled -> sockets bound -> file written -> every worker switches -> answers

A child takes a quarter of a second and a switch of all workers as long again, so edits that come meanwhile are taken as
one batch: one child, one write, one generation. Each is accepted or refused by itself. A batch that is good and cannot
be applied (an address in use) is done once more edit by edit, so that only the one at fault is refused. The file is
written when nothing can be refused any more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from aigw import watch
from aigw.admin import child, file
from aigw.admin.messages import Refused
from aigw.process import describe_error, log

TRIES = 10  # for a file that somebody saves again and again
MOST = 100  # edits of one batch
PATIENCE = 3.0  # seconds from the file's writing to the answer, whether or not every worker has switched

ENDING = "the gateway is about to end"

Edit = dict[str, Any]
Result = dict[str, Any]


class Applier(Protocol):
    """What the supervisor does for it."""

    @property
    def turn(self) -> asyncio.Lock:
        """Held by whoever changes what is served; also around `obey`."""

    @property
    def generation(self) -> int: ...

    @property
    def config_path(self) -> str | None: ...

    async def obey(self, compiled: dict[str, Any], commit: Callable[[], Awaitable[None]]) -> list[str]:
        """Lets every worker prepare, binds what must be bound, awaits `commit`, lets every worker switch. Answers why
        not, if so: then everything is as it was, and `commit` was not called. What that raises comes through."""

    def lagging(self) -> tuple[int, list[int]]:
        """The generation that is on its way, and the processes of workers that do not run it yet."""


class Outcome(NamedTuple):
    """`pending`: workers that had not switched when the answer was due."""

    result: Result
    generation: int
    pending: list[int]


class _Waiting:
    __slots__ = ("done", "edit", "result", "written")

    def __init__(self, edit: Edit, loop: asyncio.AbstractEventLoop) -> None:
        self.edit = edit
        self.result: Result = {}
        self.written: asyncio.Future[None] = loop.create_future()  # or it is certain that it will not be
        self.done: asyncio.Future[Result] = loop.create_future()

    def finish(self, result: Result) -> None:
        for future, value in ((self.written, None), (self.done, result)):
            if not future.done():
                future.set_result(value)  # type: ignore[arg-type]


class Writer:
    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._line: list[_Waiting] = []
        self._runner: asyncio.Task[None] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Writer {len(self._line)} waiting>"

    async def submit(self, edit: Edit) -> Outcome:
        """Does an edit, as `config.edits` takes it. Raises: Refused."""
        if self._applier.config_path is None:
            message = "the built-in config cannot be changed; write a config.yaml and serve that with --config"
            raise Refused(409, "config_read_only", message)
        if self._is_closed:
            raise Refused(503, "draining", ENDING)
        waiting = _Waiting(edit, asyncio.get_running_loop())
        self._line.append(waiting)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        await asyncio.wait({waiting.written})
        await asyncio.wait({waiting.done}, timeout=PATIENCE)
        result = waiting.done.result() if waiting.done.done() else waiting.result
        if "refused" in result:
            raise refused(result["refused"])
        if waiting.done.done():
            return Outcome(result, self._applier.generation, [])
        return Outcome(result, *self._applier.lagging())

    async def close(self) -> None:
        """Nothing is written any more."""
        self._is_closed = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait({self._runner})

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while self._line:
                batch, self._line = self._line[:MOST], self._line[MOST:]
                async with self._applier.turn:
                    await self._together(list(batch))
        finally:  # cancelled, as far as somebody still waits
            self._runner = None
            _refuse([*batch, *self._line], 503, "draining", f"{ENDING}; the change may have been written")

    async def _together(self, batch: list[_Waiting]) -> None:
        try:
            why = await self._do(batch)
        except Exception as error:
            log(f"unexpected: {describe_error(error)}")
            _refuse(batch, 500, "internal_error", "the change failed, and the gateway's log says where")
            return
        if not why:
            return
        batch = [waiting for waiting in batch if not waiting.done.done()]
        if len(batch) > 1:
            for waiting in batch:
                await self._together([waiting])
        else:
            _refuse(batch, 422, "cannot_apply", "; ".join(why))

    async def _do(self, batch: list[_Waiting]) -> list[str]:
        """Answers why the whole cannot be applied; everybody of the batch has a result otherwise."""
        path = self._applier.config_path
        assert path is not None
        for _ in range(TRIES):
            batch[:] = [waiting for waiting in batch if not waiting.done.done()]  # refused in the last round
            if not batch:
                return []
            before = await asyncio.to_thread(_content, path)
            try:
                answer = await child.ask({"config": path, "edits": [waiting.edit for waiting in batch]})
            except child.ChildFailed as error:
                _refuse(batch, 500, "child_failed", f"the process that edits the config failed: {error}")
                return []
            if answer["digest"] is not None and watch.digest(before) != answer["digest"]:
                continue
            try:
                return await self._write(path, batch, answer)
            except file.Changed:
                continue
            except file.SaveError as error:
                _refuse(batch, 507 if error.is_full else 500, "config_not_written", str(error))
                return []
        _refuse(batch, 409, "config_changed", "the config file is saved all the time; try again once it rests")
        return []

    async def _write(self, path: str, batch: list[_Waiting], answer: Result) -> list[str]:
        results: list[Result] = answer["results"]
        for waiting, result in zip(batch, results, strict=True):
            waiting.result = result
            if "refused" in result:
                waiting.finish(result)
        text: str | None = answer["text"]

        async def commit() -> None:
            if text is not None:
                await asyncio.to_thread(file.save, path, text.encode(), answer["digest"])
            for waiting in batch:
                if not waiting.written.done():
                    waiting.written.set_result(None)

        accepted = [waiting for waiting in batch if not waiting.done.done()]
        if not accepted:
            return []
        why = await self._applier.obey(answer["compiled"], commit)
        if why:
            return why
        for waiting in accepted:
            waiting.finish(waiting.result)
        return []


def refused(why: dict[str, Any]) -> Refused:
    return Refused(why["status"], why["code"], why["message"], why["details"])


def _refuse(batch: list[_Waiting], status: int, code: str, message: str) -> None:
    why = {"refused": {"status": status, "code": code, "message": message, "details": []}}
    for waiting in batch:
        waiting.finish(why)


def _content(path: str) -> bytes:
    try:
        return watch.read(path)
    except (OSError, ValueError):
        return b""
