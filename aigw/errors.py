"""Every error the gateway makes: status, code, whose fault it is, and whether another try can help.

An expected refusal is a value (`Failure`), passed back along the path of the exchange; exceptions are for what is
unexpected. What an error looks like on the wire is the business of `providers` (one body per dialect); this module
knows no dialect, no socket and no config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Fault = Literal["none", "client", "gateway", "upstream"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of errors.

    `code` is what `x-aigw-error`, the access log and the metrics carry. `retry` says whether the same request, sent
    once more by the client, can reasonably succeed. `kind` of the end in the log is `end`. `cause` is the word that
    `retry.when` has for it; without one its status decides there.
    """

    code: str
    status: int
    fault: Fault
    retry: bool = False
    end: str = "refused"
    cause: str = ""


# The client's doing ---------------------------------------------------------------------------------------------
BAD_REQUEST: Final = Kind("bad_request", 400, "client")
INVALID_JSON: Final = Kind("invalid_json", 400, "client")
MISSING_MODEL: Final = Kind("missing_model", 400, "client")
DIALECT_MISMATCH: Final = Kind("dialect_mismatch", 400, "client")
MISSING_KEY: Final = Kind("missing_key", 401, "client")
INVALID_KEY: Final = Kind("invalid_key", 401, "client")
AMBIGUOUS_KEY: Final = Kind("ambiguous_key", 401, "client")
EXPIRED_KEY: Final = Kind("expired_key", 401, "client")
DISABLED_KEY: Final = Kind("disabled_key", 401, "client")
MODEL_NOT_ALLOWED: Final = Kind("model_not_allowed", 403, "client")
RESOURCE_NOT_ALLOWED: Final = Kind("resource_not_allowed", 403, "client")
NO_GATEWAY: Final = Kind("no_gateway", 404, "client")
NO_RULE: Final = Kind("no_rule", 404, "client")
MODEL_NOT_FOUND: Final = Kind("model_not_found", 404, "client")
METHOD_NOT_ALLOWED: Final = Kind("method_not_allowed", 405, "client")
REQUEST_TIMEOUT: Final = Kind("request_timeout", 408, "client", retry=True)
BODY_TOO_LARGE: Final = Kind("body_too_large", 413, "client")
URI_TOO_LONG: Final = Kind("uri_too_long", 414, "client")
UNSUPPORTED_ENCODING: Final = Kind("unsupported_encoding", 415, "client")
EXPECTATION_FAILED: Final = Kind("expectation_failed", 417, "client")
RATE_LIMIT_EXCEEDED: Final = Kind("rate_limit_exceeded", 429, "client", retry=True)
INSUFFICIENT_QUOTA: Final = Kind("insufficient_quota", 429, "client")
HEAD_TOO_LARGE: Final = Kind("head_too_large", 431, "client")
BAD_VERSION: Final = Kind("bad_version", 505, "client")

# The gateway's own state ----------------------------------------------------------------------------------------
INTERNAL: Final = Kind("internal_error", 500, "gateway", retry=True, end="failed")
TOO_MANY_CONNECTIONS: Final = Kind("too_many_connections", 503, "gateway", retry=True)
TOO_MUCH_COLLECTED: Final = Kind("too_much_collected", 503, "gateway", retry=True)
DRAINING: Final = Kind("draining", 503, "gateway", retry=True)
QUEUE_TIMEOUT: Final = Kind("queue_timeout", 503, "gateway", retry=True)
NO_CAPACITY: Final = Kind("no_capacity", 503, "gateway", retry=True, cause="connect")

# The upstream's doing -------------------------------------------------------------------------------------------
CONNECT_FAILED: Final = Kind("connect_failed", 502, "upstream", retry=True, end="failed", cause="connect")
CONNECT_TIMEOUT: Final = Kind("connect_timeout", 502, "upstream", retry=True, end="failed", cause="connect")
NO_TARGET: Final = Kind("no_target", 503, "upstream", retry=True, end="failed", cause="connect")
UPSTREAM_RESET: Final = Kind("upstream_reset", 502, "upstream", retry=True, end="failed", cause="reset")
UPSTREAM_MALFORMED: Final = Kind("upstream_malformed", 502, "upstream", retry=True, end="failed")
UPSTREAM_CREDENTIAL_REFUSED: Final = Kind(
    "upstream_credential_refused", 502, "upstream", end="failed", cause="upstream_credential_refused"
)
UPSTREAM_CUT: Final = Kind("upstream_cut", 502, "upstream", retry=True, end="cut", cause="reset")
SEND_TIMEOUT: Final = Kind("send_timeout", 504, "upstream", retry=True, end="failed")
FIRST_BYTE_TIMEOUT: Final = Kind("first_byte_timeout", 504, "upstream", retry=True, end="failed", cause="first_byte")
FIRST_TOKEN_TIMEOUT: Final = Kind("first_token_timeout", 504, "upstream", retry=True, end="failed", cause="first_token")
IDLE_TIMEOUT: Final = Kind("idle_timeout", 504, "upstream", retry=True, end="stalled")
TOTAL_TIMEOUT: Final = Kind("total_timeout", 504, "upstream", retry=True, end="stalled")
# What an upstream reports in a stream in place of content, as the answer that it should have been.
UPSTREAM_ERROR: Final = Kind("upstream_error", 500, "upstream", retry=True, end="failed")
UPSTREAM_RATE_LIMITED: Final = Kind("upstream_rate_limited", 429, "upstream", retry=True, end="failed")
UPSTREAM_OVERLOADED: Final = Kind("upstream_overloaded", 529, "upstream", retry=True, end="failed")


@dataclass(frozen=True, slots=True)
class Failure:
    """One error of one exchange. `message` says what was wrong and what would be right; it never holds a secret.

    `param` names the request's member at fault, where there is one. `allow` is the value of the `allow` header that
    a 405 must carry (RFC 9110 section 15.5.6). `limit` is the label of the limit that stood in the way, `lines` are
    header lines that say how much of it there is and when.
    """

    kind: Kind
    message: str
    param: str | None = None
    allow: str | None = None
    limit: str = ""
    lines: tuple[bytes, ...] = ()


class Refused(Exception):
    """A failure on its way out of a parser, where a value cannot be returned."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refuse(kind: Kind, message: str, param: str | None = None) -> Refused:
    return Refused(Failure(kind, message, param))
