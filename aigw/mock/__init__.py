"""A provider that needs no key: for first steps, for tests, as the upstream of benchmarks. It can fail on purpose.

It speaks the dialects of OpenAI, Anthropic and Gemini as far as their SDKs need to be content, and it is an honest
HTTP/1.1 server, though a forgiving one: any credential and any model name will do. Equal requests get equal answers,
byte for byte but for the date; what to say, how fast and how to fail is asked for in the words of `settings`.

    settings    the words
    values      a call, a plain answer, a streamed answer
    content     text, instances of schemas, vectors
    openai, responses, anthropic, gemini    the dialects: call -> answer
    router      method, path, body -> answer
    script      answer -> bytes, pauses and a way to end
    memory      small answers, remembered whole
    server      one connection
    listen      an address, signals, the end

Nothing here knows the gateway, its configuration or its errors.
"""

from aigw.mock.listen import serve
from aigw.mock.server import MockConnection
from aigw.mock.settings import Settings

__all__ = ["MockConnection", "Settings", "serve"]
