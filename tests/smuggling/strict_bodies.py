"""What other readers may take for the model of a body: every one that any of them could see, in order.

Where `strict.py` is as strict as can be, this is as lenient as readers are that people use: it shares no code with
`aigw.wire`, and what the gateway takes for *the* model must be the only one found here.
"""

from __future__ import annotations

import json
from typing import Any


def json_models(body: bytes) -> list[Any]:
    """The values of all top-level members of a JSON object that a reader who folds case takes for `model`."""
    pairs = json.loads(body.decode(), object_pairs_hook=list)
    return [value for name, value in pairs if name.casefold() == "model"]


def form_models(boundary: bytes, body: bytes) -> list[bytes]:
    """The contents of all parts of a form whose headers mention a name `model` and no file, up to the last boundary."""
    found = []
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        if part.startswith(b"--"):
            break
        headers, blank, content = part.partition(b"\r\n\r\n")
        lines = [line for line in headers.lower().split(b"\r\n") if line.startswith(b"content-disposition:")]
        parameters = [text.strip(b" \t").replace(b'"', b"") for text in b";".join(lines).split(b";")]
        if blank and b"name=model" in parameters and not any(text.startswith(b"filename") for text in parameters):
            found.append(content)
    return found
