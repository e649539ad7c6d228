"""The config file: read, interpolated, validated, checked, and handed over as the plain document.

`load` and `parse` are for commands. Run as a module this is the short-lived config child: parsing 10,000 keys holds the
interpreter for seconds, so neither the supervisor nor a worker does it. The child prints one JSON object and nothing
else, whatever the input: `{"document", "warnings", "stated", "admin", "files"}` with status 0,
`{"errors", "files"}` with status 1. `files` has what was read, or could not be: paths and digests, as `watch` compares
them.

    python -m aigw.config.store [--builtin | PATH]

The document's shape is what `document.expand` returns.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path as FilePath
from typing import Any

from aigw import watch
from aigw.config import checks, schema
from aigw.config.document import expand, listener
from aigw.config.interpolate import interpolate
from aigw.config.loader import Loader
from aigw.config.problem import ConfigError, Finding, Path, Problem, path_text
from aigw.config.walk import select, value_at
from aigw.watch import MAX_BYTES

__all__ = ["ConfigError", "Loaded", "Problem", "admin", "builtin", "load", "parse"]

MAX_SECRET_BYTES = 64 << 10  # of an interpolated file


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config that can be used. `files` are the other files it was made from: interpolated ones, CAs, and
    the listeners' certificates and keys.

    `stated` are the paths of `gateways`, `workers` and each gateway's `auth`, where they are written out. `admin` is
    the admin API's: `listen` (as an entry of the document's `listen`), `token` (None: none), and whether `listen` is
    `stated`. It is no part of the document, since workers have no use for it.
    """

    document: dict[str, Any]
    warnings: list[Problem]
    files: list[str]
    stated: list[list[str]]
    admin: dict[str, Any]

    def __repr__(self) -> str:  # the document holds credentials
        return f"<Loaded {len(self.warnings)} warnings {len(self.files)} files>"


Digests = dict[str, str | None]  # of files, by path: of what was read; None: it could not be read


def load(path: FilePath, environ: Mapping[str, str], digests: Digests | None = None) -> Loaded:
    """The config in the file `path`. `digests` is filled with what was read, whatever comes of it.

    Raises: ConfigError with every problem.
    """
    name = _printable(str(path))
    digests = {} if digests is None else digests
    try:
        text = _read(str(path), MAX_BYTES, digests)
    except ValueError as error:
        raise ConfigError([Problem(name, 0, 0, "", str(error))]) from None
    except UnreadableBytes as error:
        raise ConfigError([Problem(name, error.line, error.column, "", error.message)]) from None
    return parse(text, name=name, base=path.parent, environ=environ, digests=digests)


def parse(
    text: str, *, name: str, base: FilePath, environ: Mapping[str, str], digests: Digests | None = None
) -> Loaded:
    """The config in `text`, called `name` in problems; relative paths are taken from the folder `base`.

    Raises: ConfigError with every problem.
    """
    files = _Files(base, {} if digests is None else digests)
    loader = Loader(text, name, lambda value: interpolate(value, environ, files.secret))
    problems = list(loader.problems)

    def problem(finding: Finding) -> Problem:
        place = loader.place(finding.path, finding.at_key)
        source = getattr(value_at(loader.data, finding.path), "source", None)
        origin = f" (the value comes from {source})" if source else ""
        return Problem(name, *place, path_text(finding.path), finding.message + origin)

    config, refused = schema.validate(loader.data)
    wrong = {finding.path for finding in refused}
    refused += (finding for finding in checks.errors(loader.data) if finding.path not in wrong)
    document: dict[str, Any] = {}
    admin: dict[str, Any] = {}
    if config is not None:
        admin = _admin(config, base, loader.data)
        document, unnamed = expand(config, base)
        refused += [*unnamed, *files.authorities(document), *files.certificates(document, admin, loader.data)]
    said = {known.path for known in problems}  # a reference that led nowhere is one problem, not two
    problems += (found for found in map(problem, refused) if found.path not in said)
    if problems:
        raise ConfigError(_in_order(problems))
    warnings = _in_order(map(problem, [*checks.warnings(loader.data), *checks.unpriced(document), *files.expired]))
    return Loaded(document, warnings, files.names, _stated(loader.data), admin)


def admin(path: FilePath, environ: Mapping[str, str]) -> dict[str, Any]:
    """`Loaded.admin` of the file `path`, though the rest of it may be wrong: it is asked for what is wrong.

    Raises: ConfigError with every problem of the file, where it does not say where the admin API is.
    """
    try:
        return load(path, environ).admin
    except ConfigError:
        if found := _admin_alone(path, environ):
            return found
        raise


def _admin_alone(path: FilePath, environ: Mapping[str, str]) -> dict[str, Any] | None:
    files = _Files(path.parent, {})
    try:
        loader = Loader(_read(str(path), MAX_BYTES, {}), "", lambda value: interpolate(value, environ, files.secret))
    except (ConfigError, ValueError, UnreadableBytes):
        return None
    raw = dict(_LEAST)
    if isinstance(loader.data, dict) and "admin" in loader.data:
        raw["admin"] = loader.data["admin"]
    config, _ = schema.validate(raw)
    if config is None or any(problem.path.partition(".")[0] == "admin" for problem in loader.problems):
        return None
    found = _admin(config, path.parent, raw)
    return None if files.certificates({"listen": []}, found, {}) else found


def _admin(config: schema.Config, base: FilePath, raw: object) -> dict[str, Any]:
    is_stated = value_at(raw, ("admin", "listen")) is not None
    return {"listen": listener(config.admin.listen, base), "token": config.admin.token, "stated": is_stated}


# What a config has to have, whatever it is asked about.
_LEAST = {
    "upstreams": {"mock": {"provider": "mock"}},
    "gateways": {"default": {"auth": "none", "models": {"*": "mock"}}},
}


def _stated(raw: object) -> list[list[str]]:
    places = [path for pattern in ("gateways", "workers", "gateways.*.auth") for path, _ in select(raw, pattern)]
    return [[str(step) for step in path] for path in places]


def builtin(environ: Mapping[str, str]) -> Loaded:
    """The config for those who have none: providers whose key the environment holds, else the mock. Loopback only.

    Raises: ConfigError, where the environment holds something unusable.
    """
    return parse(builtin_text(environ), name="built-in config", base=FilePath.cwd(), environ=environ)


def builtin_text(environ: Mapping[str, str]) -> str:
    return "\n".join(_builtin_lines(environ))


# Variable of the key, variable of the URL, and which models are whose where there are several providers.
_PROVIDERS = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL", ("gpt-*", "chatgpt-*", "o*", "text-embedding-*", "dall-e-*")),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", ("claude-*",)),
    "gemini": ("GEMINI_API_KEY", None, ("gemini-*",)),
}


def _builtin_lines(environ: Mapping[str, str]) -> Iterable[str]:
    present = {name: entry for name, entry in _PROVIDERS.items() if environ.get(entry[0])}
    yield "upstreams:"
    for name, (key, url, _) in present.items():
        yield f'  {name}: {{provider: {name}, api_key: "${{{key}}}"'
        yield f'    , targets: [{{name: {name}, url: "${{{url}}}"}}]' if url and environ.get(url) else ""
        yield "    }"
    if not present:
        yield "  mock: {provider: mock}"
    yield "usage_store: off"  # it writes no file into the folder where it happens to be started
    yield "gateways:"
    yield "  default:"
    yield "    auth: none"
    yield "    models:"
    if len(present) > 1:
        yield from (f'      "{glob}": {name}' for name, (_, _, globs) in present.items() for glob in globs)
    yield f'      "*": {next(iter(present), "mock")}'


class UnreadableBytes(Exception):
    """Bytes that are no UTF-8, and where they stand."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.message = message


def _read(path: str, bound: int, digests: Digests) -> str:
    """A file's text. Raises: ValueError or UnreadableBytes, with a message for people."""
    digests[path] = None
    try:
        content = watch.read(path)
    except FileNotFoundError:
        raise ValueError("does not exist; check the path") from None
    except PermissionError:
        raise ValueError("may not be read by this user; check owner and mode") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        if "null" in str(error):
            raise ValueError("has a path with a NUL in it; check the path") from None
        raise
    digests[path] = watch.digest(content)
    if len(content) > bound:
        raise ValueError(f"is larger than {bound >> 10} KiB; is it the right file?")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode()) + 1
        raise UnreadableBytes(line, column, "is not UTF-8 from here on; save the file as UTF-8") from None


class _Files:
    """The other files a config names: read once each, and remembered so that they can be watched."""

    def __init__(self, base: FilePath, digests: Digests) -> None:
        self.base = base
        self.names: list[str] = []
        self.expired: list[Finding] = []  # warnings about certificates
        self._digests = digests

    def secret(self, path: str) -> str:
        """The content of an interpolated file without its last line break. Raises: ValueError."""
        if not path:
            raise ValueError('names no file; write "${file:/run/secrets/name}"')
        try:
            return self._read(path, MAX_SECRET_BYTES).removesuffix("\n").removesuffix("\r")
        except ValueError as error:
            raise ValueError(f"the file of ${{file:{_printable(path)}}} {error}") from None

    def authorities(self, document: dict[str, Any]) -> list[Finding]:
        """Findings for CA files that cannot be used; those that can are known by their content from then on."""
        found = []
        for name, upstream in document["upstreams"].items():
            upstream["tls"]["ca_digest"] = None
            if path := upstream["tls"]["ca"]:
                try:
                    text = self._read(path, MAX_BYTES)
                    _check_authorities(text)
                    upstream["tls"]["ca_digest"] = sha256(text.encode()).hexdigest()
                except ValueError as error:
                    found.append(Finding(("upstreams", name, "tls", "ca"), f"the file {error}"))
        return found

    def certificates(self, document: dict[str, Any], admin: dict[str, Any], raw: object) -> list[Finding]:
        """Findings for listeners' certificates and keys that cannot be used; the document has their text then, so that
        every worker, whenever it starts, has those that were checked here."""
        is_list = isinstance(value_at(raw, ("listen",)), list)
        listeners: list[tuple[Path, dict[str, Any]]] = [
            (("listen", index) if is_list else ("listen",), listen) for index, listen in enumerate(document["listen"])
        ]
        listeners.append((("admin", "listen"), admin["listen"]))
        pairs = [((*path, "tls"), listen["tls"]) for path, listen in listeners if "tls" in listen]
        return [found for path, pair in pairs for found in self._pair(path, pair)]

    def _pair(self, path: Path, pair: dict[str, str]) -> list[Finding]:
        """Puts the files' text in place of their paths."""
        from aigw import tls  # 30 ms that only configs with TLS pay

        found = []
        for which, file in pair.items():
            try:
                pair[which] = self._read(file, MAX_SECRET_BYTES)
            except ValueError as error:
                found.append(Finding((*path, which), f"the file {error}"))
        if found:
            return found
        try:
            tls.server_context(**pair)
        except tls.TlsError as error:
            return [Finding((*path, error.which), f"the file {error}")]
        begin, end = tls.validity(pair["cert"])
        now = time.time()
        if not begin <= now < end:
            when = time.strftime("%Y-%m-%d", time.gmtime(end if now >= end else begin))
            word = "has expired on" if now >= end else "is not valid before"
            self.expired.append(Finding((*path, "cert"), f"the certificate {word} {when}; clients refuse it"))
        return []

    def _read(self, path: str, bound: int) -> str:
        full = os.path.abspath(self.base / path)
        if full not in self.names:
            self.names.append(full)
        try:
            return _read(full, bound, self._digests)
        except UnreadableBytes:
            raise ValueError("is not UTF-8 text") from None


def _check_authorities(text: str) -> None:
    import ssl  # 20 ms that only configs with a CA pay

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise ValueError("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """As they stand in the file, each once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))


def _printable(path: str) -> str:
    """A path for messages; bytes that are no text and control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def answer_of(loaded: Loaded) -> dict[str, Any]:
    """What a child answers for a good config, without `files`."""
    return {
        "document": loaded.document,
        "warnings": [str(problem) for problem in loaded.warnings],
        "stated": loaded.stated,
        "admin": loaded.admin,
    }


def _child(arguments: list[str]) -> int:
    """The config child."""
    import json
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too, and is not a crash
    answer: dict[str, Any]
    digests: Digests = {}
    try:
        if len(arguments) != 1:
            raise ConfigError([Problem("aigw.config.store", 0, 0, "", "takes one argument: --builtin or a path")])
        loaded = (
            builtin(os.environ) if arguments == ["--builtin"] else load(FilePath(arguments[0]), os.environ, digests)
        )
        answer = answer_of(loaded)
    except ConfigError as error:
        answer = {"errors": [str(problem) for problem in error.problems]}
    answer["files"] = digests
    json.dump(answer, sys.stdout)
    sys.stdout.write("\n")
    return 1 if "errors" in answer else 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
