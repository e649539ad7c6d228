"""Who may call the admin API: a token, or nobody but this machine; and no web page on behalf of either.

Without a token the listener is only on loopback or a unix socket, which the config's checks see to. A browser on this
machine reaches loopback too, for any page it shows: so the Host must be one of loopback's names (a page whose own name
was pointed at 127.0.0.1 sends that name), and what a page of another origin sends is refused.

Guessing is slowed: each wrong token is answered later than the one before, per address, and only a few at a time. An
answer that comes at once is never a judgement on the token.
"""

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address

from aigw.admin.messages import Refused, Request

FREE = 2  # wrong tokens that are answered at once: somebody mistyped
FIRST_DELAY = 0.25  # seconds, for the one after those; each further one takes twice as long ...
MOST_DELAY = 8.0  # ... up to this
FORGET = 300.0  # seconds without a wrong token after which an address is as good as new
MOST_WAITING = 4  # answers to one address that wait; more calls of it are refused unread meanwhile
MOST_ADDRESSES = 4096  # remembered; the oldest are forgotten first

UNIX = "unix"


class _Failures:
    __slots__ = ("count", "last", "waiting")

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.waiting = 0


class Guard:
    """`token` may be changed at any time; None: none is asked for. `clock` and `sleep` are for tests."""

    def __init__(
        self,
        token: str | None,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object] = asyncio.sleep,
    ) -> None:
        self.set_token(token)
        self._clock = clock
        self._sleep = sleep
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Guard {'no token' if self._digest is None else 'token'}, {len(self._failures)} addresses failed>"

    def set_token(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token)

    @property
    def has_token(self) -> bool:
        return self._digest is not None

    async def admit(self, request: Request, authorization: str, host: str) -> None:
        """Returns if the call may be done. `authorization` is the header's value, `host` the Host with its port.

        Raises: Refused.
        """
        self._check_origin(request, host)
        if self._digest is None:
            self._check_host(request)
            return
        place = _place(request.client)
        failures = self._failures.get(place)
        if failures is not None:
            if self._clock() - failures.last > FORGET and not failures.waiting:
                del self._failures[place]
            elif failures.waiting >= MOST_WAITING:
                message = "too many wrong tokens from this address; wait a few seconds"
                raise Refused(429, "too_many_failures", message, lines=(b"retry-after: %d" % MOST_DELAY,))
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(token.strip()), self._digest):
            return
        await self._fail(place)
        message = (
            "wrong token; it is the config's admin.token"
            if authorization
            else "a token is needed: authorization: Bearer TOKEN, with the config's admin.token"
        )
        raise Refused(401, "unauthorized", message, lines=(b'www-authenticate: Bearer realm="aigw"',))

    async def _fail(self, place: str) -> None:
        failures = self._failures.setdefault(place, _Failures())
        self._failures.move_to_end(place)
        failures.count += 1
        failures.last = self._clock()
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        late = failures.count - FREE
        if late > 0:
            failures.waiting += 1
            try:
                await self._sleep(min(FIRST_DELAY * 2 ** min(late - 1, 10), MOST_DELAY))  # type: ignore[misc]
            finally:
                failures.waiting -= 1

    def _check_host(self, request: Request) -> None:
        if request.client == UNIX or _is_loopback(request.header("host")):
            return
        message = (
            "this Host is not served here; without a token the admin API answers to localhost, 127.0.0.1 and [::1]"
        )
        raise Refused(421, "misdirected", message)

    def _check_origin(self, request: Request, host: str) -> None:
        origin = request.header("origin").lower()
        site = request.header("sec-fetch-site").lower()
        ours = (f"http://{host.lower()}", f"https://{host.lower()}")
        if (origin and origin not in ours) or site not in ("", "same-origin", "none"):
            raise Refused(403, "cross_origin", "pages of other origins may not call the admin API")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _place(client: str) -> str:
    """What counts as one address: of IPv6 the network of 64 bits, which is one customer's."""
    try:
        address = ip_address(client)
    except ValueError:
        return client
    return client if address.version == 4 else address.exploded[:19]
