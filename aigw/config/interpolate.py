"""`${NAME}`, `${NAME:-default}`, `${file:/run/secrets/x}` in the values of a config, and `$${` for a literal `${`.

Text that was brought in is never repeated by a message; messages name the variable or file instead.
"""

import re
from collections.abc import Callable, Mapping

from aigw.config.values import Interpolated, Plain

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}\n]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def interpolate(text: str, environ: Mapping[str, str], read: Callable[[str], str]) -> str | None:
    """`text` with its references replaced; None if only empty defaults are left (`${NAME:-}` means absent).

    `read` gives the content of a file, without its last line break. What held a reference comes back as `Interpolated`,
    anything else as the type it was.

    Raises: ValueError with the reason and the remedy (unset, empty, malformed, unreadable).
    """
    sources: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if not match[2]:
            raise ValueError('${ without its }; write "${NAME}", or $${ for a literal ${')
        value, source = _look_up(match[1], environ, read)
        sources.append(source)
        return value

    found = _REFERENCE.sub(replace, text)
    if sources:
        return Interpolated(found, " and ".join(sources)) if found else None
    return Plain(found) if isinstance(text, Plain) else found


def _look_up(reference: str, environ: Mapping[str, str], read: Callable[[str], str]) -> tuple[str, str]:
    """The value of what stands between the braces, and what to call it."""
    if reference.startswith("file:"):
        source = f"${{{reference}}}"
        content = read(reference[5:])
        if not content:
            raise ValueError(f"{source} is empty; write the value into the file")
        return content, source
    name, separator, default = reference.partition(":-")
    if not _NAME.fullmatch(name):
        raise ValueError('a reference is "${NAME}", "${NAME:-default}" or "${file:/path}"; write $${ for a literal ${')
    source = f"${{{name}}}"
    value = environ.get(name, "")
    if value:
        return value, source
    if separator:
        return default, source
    if name in environ:
        raise ValueError(f'{source} is empty in the environment; give it a value, or write "${{{name}:-}}" for absent')
    raise ValueError(f'{source} is not set in the environment; set it, or write "${{{name}:-default}}"')
