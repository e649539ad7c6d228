"""The config as it stands in the file, for those who only look: read by a child, kept as long as the file is the same.

What is shown is the file and not what is served, since it is what the next change is made of; where the two differ the
status says so. A file that cannot be used cannot be shown by its items either.
"""

import asyncio
from typing import Any

from aigw import watch
from aigw.admin import child
from aigw.admin.messages import Refused
from aigw.admin.writer import Applier, Edit, Result, refused
from aigw.config.problem import quote

Shown = dict[str, Any]


class Looking:
    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._turn = asyncio.Lock()
        self._shown: Shown | None = None  # what `config.edits.show` answered last
        self._schema: Any = None

    async def config(self) -> Shown:
        """See `config.edits.show`. Raises: Refused."""
        path = self._applier.config_path
        async with self._turn:
            shown = self._shown
            now = None if path is None else await asyncio.to_thread(watch.digest_of, path)
            if shown is None or (path is not None and shown["digest"] != now):
                self._shown = None
                shown = await _ask({"config": path, "edits": None})
                if "errors" in shown:
                    message = "the config file cannot be used as it stands, so its items cannot be shown"
                    raise Refused(409, "config_invalid", message, shown["errors"])
                self._shown = shown
            return shown

    async def items(self, at: list[str]) -> list[dict[str, Any]]:
        """The members of a collection. Raises: Refused."""
        items = (await self.config())["items"]
        if len(at) > 1 and _key(at[:2]) not in items:
            raise _unknown(at[:2])
        start = _key(at) + "\n"
        return [item for key, item in items.items() if key.startswith(start) and "\n" not in key[len(start) :]]

    async def item(self, at: list[str]) -> tuple[dict[str, Any], str]:
        """One of them, and its entity tag. Raises: Refused."""
        shown = await self.config()
        for depth in range(2, len(at) + 1, 2):
            if _key(at[:depth]) not in shown["items"]:
                raise _unknown(at[:depth])
        return shown["items"][_key(at)], shown["etags"][_key(at)]

    async def check(self, edit: Edit) -> Result:
        """Does an edit and forgets it; its result. Raises: Refused."""
        answer = await _ask({"config": self._applier.config_path, "edits": [edit]})
        result: Result = answer["results"][0]
        if "refused" in result:
            raise refused(result["refused"])
        return result

    async def schema(self) -> Any:
        if self._schema is None:
            self._schema = await _ask({"schema": True})
        return self._schema


def _key(at: list[str]) -> str:
    return "\n".join(at)


def _unknown(at: list[str]) -> Refused:
    where = f" in the {at[0][:-1]} {quote(at[1], 'of that name')}" if len(at) > 2 else ""
    return Refused(404, "not_found", f"there is no {at[-2][:-1]} {quote(at[-1], 'of that name')}{where}")


async def _ask(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return await child.ask(request)
    except child.ChildFailed as error:
        raise Refused(500, "child_failed", f"the process that reads the config failed: {error}") from None
