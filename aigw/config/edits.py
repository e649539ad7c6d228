"""The config file as the admin API's resources: looked at, edited, compiled. A short-lived child, like `store`.

    python -m aigw.config.edits DESCRIPTOR        of a file that holds the request as JSON

It prints one JSON object and changes nothing: whoever started it writes the file.

    {"config": PATH or null, "edits": null}
        -> {"digest", "document", "items", "etags", "text", "tag"}: what may be shown (masked), see `show`
        or {"digest", "errors"}, where the file cannot be used
    {"schema": true}
        -> the config's JSON Schema
    {"config": PATH, "edits": [edit, ...]}
        -> {"digest", "results": [result, ...], "text", "compiled"}

`digest` is of the file that was read, `text` the new one (null: as it was), `compiled` what `store` says about it. The
edits are done one after the other, each on what the ones before it left; one that is refused leaves nothing. An edit is

    {"op": "create" | "put" | "patch" | "delete" | "rotate" | "check", "at": [step, ...], "value", "text", "match",
     "absent", "grace"}

`at` is the resource without its /api/v1: ["gateways", "default", "keys", "alice"], empty for the whole document; a
create names the collection. `match` are entity tags of which the resource must have one (["*"]: any), `absent` says
that it must not be there. A result is {"status", "item", "etag", "name"} or {"refused": {"status", "code", "message",
"details"}}.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from aigw import watch
from aigw.config import edit as text_edit
from aigw.config import store
from aigw.config.loader import Loader
from aigw.config.problem import ConfigError, Problem, path_text
from aigw.config.resources import Refusal, Resource, described, etag, locate, strange
from aigw.config.schema import json_schema
from aigw.config.secrets import masked_text, restored_text
from aigw.config.view import MISSING, StrangeMask, expanded, masked, merged, restored, root

Edit = dict[str, Any]
Result = dict[str, Any]


class File:
    """The config file as it was read, and what is known about it. Raises: ConfigError, where it cannot be read."""

    def __init__(self, path: str | None, environ: Mapping[str, str]) -> None:
        self.path = path
        self.environ = environ
        if path is None:
            self.name, self.base = "built-in config", FilePath.cwd()
            self.text = store.builtin_text(environ)
            content = self.text.encode()
        else:
            self.name, self.base = path, FilePath(path).parent
            try:
                content = watch.read(path)
                self.text = content.decode()
            except (OSError, ValueError):
                store.load(FilePath(path), environ)  # says what is the matter
                raise ConfigError([Problem(path, 0, 0, "", "changes while it is read; try again")]) from None
        self.digest = watch.digest(content)

    def compile(self, text: str) -> dict[str, Any]:
        """What `store` answers for a good text. Raises: ConfigError."""
        digests: store.Digests = {}
        loaded = store.parse(text, name=self.name, base=self.base, environ=self.environ, digests=digests)
        if self.path is not None:
            digests[self.path] = watch.digest(text.encode())
        return store.answer_of(loaded) | {"files": digests}


def read(text: str) -> Any:
    """What a text says, references and secrets as written. Raises: ConfigError."""
    loader = Loader(text, "config", lambda value: value)
    if loader.problems:
        raise ConfigError(loader.problems)
    return loader.data


# --- showing


def show(path: str | None, environ: Mapping[str, str]) -> Result:
    """The document with all defaults, its resources and the file's text, all masked.

    `items` and `etags` are by the steps of a resource's path, joined by line feeds ("" is the document); `tag` is the
    text's entity tag.
    """
    try:
        file = File(path, environ)
    except ConfigError as error:
        return {"digest": None, "errors": problems(error)}
    try:
        file.compile(file.text)
    except ConfigError as error:
        return {"digest": file.digest, "errors": problems(error)}
    raw = read(file.text)
    whole = expanded(root(), raw)
    etags = {"": etag(whole)}
    shown = masked(root(), raw)
    items = {}
    for resource in described(whole, shown):
        items["\n".join(resource.at)] = resource.shown
        etags["\n".join(resource.at)] = etag(resource.item)
    return {
        "digest": file.digest,
        "document": shown,
        "items": items,
        "etags": etags,
        "text": masked_text(file.text, raw),
        "tag": text_tag(file.digest),
    }


def text_tag(digest: str) -> str:
    return digest[:32]


def problems(error: ConfigError, *, lines: bool = True) -> list[dict[str, Any]]:
    """`details` of an error. Lines and columns mean nothing to those who did not send a text."""
    return [
        {"path": problem.path, "message": problem.message}
        | ({"line": problem.line, "column": problem.column} if lines and problem.line else {})
        for problem in error.problems
    ]


# --- editing


class Editing:
    """One file, edited step by step."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.text = file.text
        self.raw: Any = MISSING  # what `text` says; MISSING: not looked at yet
        self.compiled: dict[str, Any] | None = None  # of `text`, likewise

    def do(self, edit: Edit) -> Result:
        """Does one edit, or refuses it and changes nothing."""
        try:
            return self._whole(edit) if not edit["at"] else self._item(edit)
        except Refusal as refusal:
            return {"refused": refusal.as_json()}
        except StrangeMask as error:
            return {"refused": strange(error.path).as_json()}
        except text_edit.EditError as error:
            return {"refused": Refusal(422, "not_editable", str(error)).as_json()}

    def _raw(self) -> Any:
        try:
            if self.raw is MISSING:
                self.raw = read(self.text)
        except ConfigError as error:
            raise self._broken(error) from None
        return self.raw

    def _broken(self, error: ConfigError) -> Refusal:
        message = "the config file has errors already; put them right first"
        return Refusal(409, "config_invalid", message, problems(error))

    def _whole(self, edit: Edit) -> Result:
        sent: str | None = edit["text"]
        if sent is None and edit["value"] is None:  # a check of the file as it stands
            new = self.text
        elif sent is not None:
            try:
                before = read(self.text)
            except ConfigError:
                before = {}
            self._match(edit, before)
            try:
                new = restored_text(sent, self.text, before)
            except ConfigError as error:
                raise Refusal.invalid(problems(error)) from None
        else:
            before = self._raw()
            self._match(edit, before)
            value = restored(root(), edit["value"], before)
            new = text_edit.set_item(self.text, (), merged(root(), value, before))
        try:
            compiled = self.file.compile(new)
        except ConfigError as error:
            raise Refusal.invalid(problems(error, lines=edit["value"] is None)) from None
        if edit["op"] == "check":
            return {"status": 200, "compiled": compiled}
        self.text, self.raw, self.compiled = new, read(new), compiled
        return {"status": 200, "item": masked(root(), self.raw), "etag": etag(expanded(root(), self.raw))}

    def _match(self, edit: Edit, before: object) -> None:
        tags = {text_tag(watch.digest(self.text.encode())), etag(expanded(root(), before))}
        _check_tags(edit, tags, "the config")

    def _item(self, edit: Edit) -> Result:
        raw = self._raw()
        resource = locate(raw, edit)
        old = resource.stored
        if edit["op"] in ("patch", "delete", "rotate") and old is MISSING:
            raise resource.unknown()
        if edit["op"] == "create" and old is not MISSING:
            raise Refusal(409, "exists", f"{resource.title} exists already; PUT or PATCH changes it")
        _check_tags(edit, set() if old is MISSING else {etag(resource.shown(expanded))}, resource.title)
        if edit["op"] == "delete":
            new = resource.without(self.text)
        else:
            new = resource.with_value(self.text, merged(resource.kind, resource.wanted(edit), old))
        self._keep(new, resource, is_delete=edit["op"] == "delete")
        if edit["op"] == "delete":
            return {"status": 204}
        after = locate(self.raw, {"op": "put", "at": resource.at})
        return {
            "status": 201 if old is MISSING else 200,
            "item": after.shown(masked),
            "etag": etag(after.shown(expanded)),
            "name": resource.name,
        }

    def _keep(self, new: str, resource: Resource, *, is_delete: bool) -> None:
        """Takes over a text that can be served."""
        try:
            compiled = self.file.compile(new)
        except ConfigError as error:
            try:
                self.file.compile(self.text)
            except ConfigError as before:
                raise self._broken(before) from None
            found = problems(error, lines=False)
            above = {path_text(resource.path[:depth]) for depth in range(len(resource.path) + 1)}
            if is_delete and not any(problem["path"] in above for problem in found):
                message = f"{resource.title} is still referenced; change what refers to it first"
                raise Refusal(409, "still_referenced", message, found) from None
            raise Refusal.invalid(found) from None
        self.text, self.raw, self.compiled = new, read(new), compiled


def _check_tags(edit: Edit, tags: set[str], title: str) -> None:
    """RFC 9110 section 13.1: what the client believes must hold. `tags` is empty where nothing is there."""
    wanted = edit.get("match")
    if wanted is not None and not tags & set(wanted) and not (tags and "*" in wanted):
        raise Refusal(412, "stale", f"{title} is no longer what If-Match says; GET it again and repeat the change")
    if edit.get("absent") and tags:
        raise Refusal(412, "exists", f"{title} exists already, and If-None-Match: * says that it must not")


def edit_all(path: str | None, edits: list[Edit], environ: Mapping[str, str]) -> Result:
    """See the module. The file is read once."""
    try:
        file = File(path, environ)
    except ConfigError as error:
        message = "the config file cannot be read; put it back first"
        refused = Refusal(409, "config_invalid", message, problems(error)).as_json()
        return {"digest": None, "results": [{"refused": refused} for _ in edits], "text": None, "compiled": None}
    editing = Editing(file)
    results = [editing.do(edit) for edit in edits]
    text = None if editing.text == file.text else editing.text
    return {"digest": file.digest, "results": results, "text": text, "compiled": editing.compiled}


def _answer(request: dict[str, Any]) -> Any:
    if "schema" in request:
        return json_schema()
    path, edits = request["config"], request["edits"]
    return show(path, os.environ) if edits is None else edit_all(path, edits, os.environ)


def main(arguments: list[str]) -> int:
    """The child."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too, and is not a crash
    with open(int(arguments[0]), "rb") as file:
        request = json.load(file)
    json.dump(_answer(request), sys.stdout)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
