"""One worker's gateway: its listeners, the snapshot it serves by, its pools and its clients.

Everything that outlives an exchange and is shared by all of them stands here. `apply` is one assignment: an exchange
keeps the snapshot it began with, connections carry over where the target stayed the same. `drain` ends it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from random import random
from time import monotonic
from typing import Final

from aigw.accept import Acceptor
from aigw.config.snapshot import Snapshot
from aigw.config.upstreams import Candidate, Target, Upstream
from aigw.counters import IN_FLIGHT, TALLIES, Counters, Tally, TargetStates, clear
from aigw.errors import BAD_REQUEST, Failure
from aigw.ledger import refusal
from aigw.meters import Meters
from aigw.policies.attempts import Asker, Attempts, Full
from aigw.policies.clients import Proxies
from aigw.policies.limits import Limits
from aigw.proxy import answers
from aigw.proxy.admission import Admissions
from aigw.proxy.client import ClientConnection
from aigw.proxy.connection import Outbox
from aigw.proxy.dial import Dialler
from aigw.proxy.health import Health
from aigw.proxy.pool import Pool
from aigw.proxy.secure import HTTP_REQUEST, Secure, in_words
from aigw.proxy.states import State
from aigw.proxy.sweep import PERIOD, Sweep
from aigw.proxy.trying import Budget
from aigw.proxy.upstream import UpstreamConnection
from aigw.shared import CONNECTIONS, GENERATION, Cells, Peers
from aigw.wire.head import RequestParser, ResponseParser
from aigw.wire.reply import answer

# Connections that wait to be accepted; the supervisor's sockets were made with the same.
BACKLOG: Final = 4096
# Seconds in which a listener that is about to close accepts what already waits.
ACCEPT: Final = 0.01
# Descriptors kept free for what is no exchange: log, channels, listeners, resolver.
SPARE_DESCRIPTORS: Final = 64
# Of the spare ones, what clients may have that are told that there are too many; the others wait to be accepted.
MOST_REFUSED: Final = 32
# Seconds that a handshake which is under way gets when the worker is about to end: it takes milliseconds.
GREET: Final = 1.0
# With so many descriptors more than the clients need, a full accept queue does no harm.
PLENTY: Final = 2 * BACKLOG
_HEX: Final = [b"%02x" % byte for byte in range(256)]

# What accepts on one socket.
Server = asyncio.AbstractServer | Acceptor


class Gateway:
    """`emit` takes one record line. Of the shared `cells` (default: some that nobody else sees) it writes the row
    `number`.
    `descriptors` is how many files the process may open; an exchange needs two. `log` takes a line for the operator.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[bytes], None],
        *,
        version: str,
        mock_socket: str | None = None,
        descriptors: int | None = None,
        cells: Cells | None = None,
        number: int = 0,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        # wiring
        self.loop = loop
        self.version = version
        self.emit = emit
        self._log = log
        self.cells = cells = Cells.private() if cells is None else cells
        self.row = cells.row(number)
        self._series = series = cells.series(number)
        self._peers = Peers(cells, number)
        clear(self.row, series, TALLIES)
        self.counters = Counters(self.row, series)
        self._targets = TargetStates(self.row, series)
        self._meters = Meters(cells, number)
        self.limits = Limits(self._meters, self.counters.limited)
        self.attempts = Attempts(self._meters, self.counters.limited)
        self._dialler = Dialler(loop, mock_socket)
        self.health = Health(loop, self._dialler, self.row, series, self._peers, log)
        self._descriptors = descriptors
        # the config
        self.snapshot: Snapshot  # from the first `apply`, which comes before the first client
        self.admissions: Admissions  # likewise
        self._contexts: dict[str, ssl.SSLContext] = {}  # of listeners with TLS, by `listen.Listening.key`
        self._most_clients = 0
        self.proxies = Proxies(())  # those that are trusted
        self._authorities: set[tuple[str | None, str | None]] = set()
        # what all exchanges share
        self.outbox = Outbox(loop, self.report)
        self.requests = RequestParser()
        self.responses = ResponseParser()
        self.pools: dict[str, Pool] = {}
        self.tallied: list[Pool] = []  # of them, those that look at other workers' connections
        self._retired: list[Pool] = []
        self._cursors: dict[str, int] = {}
        self._budgets: dict[str, Budget] = {}  # of retries, by upstream
        self.collected = 0  # bytes of request bodies that are held
        self._id_random = os.urandom(8).hex().encode()
        self._id_prefix = self._id_random + b"000000"
        self._id_count = 0
        # clients
        self.clients: set[ClientConnection] = set()
        self._greeting: dict[ClientConnection, Secure] = {}  # those whose handshake is not done, the oldest first
        self._told = 0.0  # monotonic seconds: when the log was last told of a handshake that failed
        # those, on both sides, that do not take what is written to them
        self.slow: set[ClientConnection | UpstreamConnection] = set()
        # life
        self.draining = False  # readiness is red
        self._leaving = False  # no client is kept
        self._servers: list[Server] = []
        self._acceptors: set[Acceptor] = set()  # of the servers, those that wait for room
        self._sweep = Sweep(self)
        self.wall_offset = self._meters.wall_offset = time.time() - monotonic()

    def __repr__(self) -> str:
        return f"<Gateway {len(self.clients)} clients {len(self.pools)} pools{' draining' if self.draining else ''}>"

    @property
    def mock_socket(self) -> str | None:
        """Where the worker serves its own mock, for upstreams with `provider: mock`."""
        return self._dialler.mock_socket

    @mock_socket.setter
    def mock_socket(self, path: str | None) -> None:
        self._dialler.mock_socket = path

    # life ---------------------------------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot) -> None:
        """Serve by another snapshot from the next request on."""
        targets = {t.pool_key: t for upstream in snapshot.upstreams.values() for t in upstream.targets}
        authorities = {(target.ca, target.ca_digest) for target in targets.values()}
        if not authorities <= self._authorities:  # it remembers what stood in a file; who dials already keeps his own
            self._dialler = self.health.dialler = Dialler(self.loop, self.mock_socket)
        self._authorities = authorities
        for key in self.pools.keys() - targets.keys():
            pool = self.pools.pop(key)
            pool.retire()
            self._retired.append(pool)
        for key, target in targets.items():
            pool = self.pools.get(key) or Pool(self, self._dialler, target)
            pool.target = target
            self.pools[key] = pool
            if target.upstream.is_shared != (pool.tally is not None):
                is_shared = target.upstream.is_shared
                pool.share(Tally(self.row, self._series, self._peers, target.text) if is_shared else None)
            pool.trim()
        self.tallied = [pool for pool in self.pools.values() if pool.tally is not None]
        self._cursors = {name: self._cursors.get(name, 0) for name in snapshot.upstreams}
        self._budgets = {name: budget for name, budget in self._budgets.items() if name in snapshot.upstreams}
        most = snapshot.connections_bound
        if self._descriptors is not None:
            most = min(most, max((self._descriptors - SPARE_DESCRIPTORS) // 2, 1))
        self._most_clients = most
        self.admissions = Admissions(snapshot, self.requests)
        self.responses = ResponseParser()  # what it remembers was checked against the bounds of its snapshot
        self.limits.forget()
        self.attempts.forget()
        self.snapshot = snapshot
        self.health.apply(snapshot)
        self.row[GENERATION] = snapshot.generation
        self.proxies = Proxies(snapshot.trusted_proxies)
        for client in self.clients:
            client.forget()

    def stamp(self) -> None:
        """Writes what changes with every client into the shared row; several times a second."""
        self.row[CONNECTIONS] = len(self.clients)

    def secure(self, contexts: Mapping[str, ssl.SSLContext | None]) -> None:
        """Listeners with these keys speak TLS, or do not, from the next connection on. Of others, which are about to
        close, nothing changes."""
        for key, context in contexts.items():
            if context is None:
                self._contexts.pop(key, None)
            else:
                self._contexts[key] = context

    async def listen(self, sockets: list[socket.socket], keys: Sequence[str] = ()) -> list[Server]:
        """Accept clients on these too. The sockets are the servers' then; `keys` says which they are to `secure`."""
        made: list[Server] = []
        for index, sock in enumerate(sockets):
            made.append(await self._serve(sock, keys[index] if keys else ""))
            self._servers.append(made[-1])
        return made

    async def _serve(self, sock: socket.socket, key: str) -> Server:
        def make() -> asyncio.BaseProtocol:
            return self._arrival(key)

        descriptors = self._descriptors
        if descriptors is not None and descriptors < 2 * self._most_clients + PLENTY:
            acceptor = Acceptor(self.loop, sock, make, self._room)
            self._acceptors.add(acceptor)
            return acceptor
        serve = self.loop.create_unix_server if sock.family == socket.AF_UNIX else self.loop.create_server
        return await serve(make, sock=sock, backlog=BACKLOG)

    def _arrival(self, key: str) -> asyncio.BaseProtocol:
        """The protocol of a new connection on that listener."""
        client = ClientConnection(self)
        context = self._contexts.get(key)
        if context is None:
            return client

        def greeted(secure: Secure, error: OSError | None) -> bytes:
            self._greeting.pop(client, None)
            if error is None:
                return b""
            for acceptor in self._acceptors:
                acceptor.resume()
            why = in_words(error)
            if not why:
                return b""
            client.identify(secure)
            now = monotonic()
            if now - self._told >= 1.0:
                self._told = now
                self._log(f"a TLS handshake with {client.address} failed: {why}")
            if why == HTTP_REQUEST:
                return self.refusal(Failure(BAD_REQUEST, "this port speaks HTTPS; write https:// in the URL"), client)
            return b""

        secure = Secure(client, context, None, greeted, monotonic() + self.snapshot.timeouts.handshake)
        self._greeting[client] = secure
        if self._room() <= 0:  # whoever takes longest to greet makes room
            self._greeting.pop(next(iter(self._greeting))).abort()
        return secure

    def _room(self) -> int:
        """How many more clients may be accepted: those over the bound are few, and only told so."""
        return self._most_clients + MOST_REFUSED - len(self.clients) - len(self._greeting)

    async def ignore(self, servers: list[Server]) -> None:
        """Accept no more clients on these, but for those who wait already."""
        await asyncio.sleep(ACCEPT)
        for server in servers:
            server.close()
            self._servers.remove(server)
            if isinstance(server, Acceptor):
                self._acceptors.discard(server)

    def unready(self) -> None:
        """Readiness turns red; clients are told with each answer that it is the last."""
        self.draining = True
        self._leave()

    def _leave(self) -> None:
        self._leaving = True
        for client in self.clients:
            client.close_wanted = True

    async def drain(self, patience: float, idle: float = 0.0) -> int:
        """Stop truthfully: listeners close, and clients that have been idle for `idle` seconds from now on; exchanges
        get `patience` seconds, the rest is cut. Returns how many were cut."""
        self._leave()
        await self.ignore(list(self._servers))
        now = monotonic()
        deadline = now + patience
        idle_until = min(now + idle, deadline)
        greet_until = min(now + GREET, deadline)
        while True:
            now = monotonic()
            for client in [client for client in self.clients if client.state is State.IDLE]:
                if now >= idle_until:
                    client.close()
            for secure in list(self._greeting.values()):
                if now >= greet_until:
                    secure.abort()
            if not (self.clients or self._greeting) or now >= deadline:
                break
            await asyncio.sleep(PERIOD / 2)
        running = [client for client in self.clients if client.exchange is not None]
        for client in list(self.clients):
            client.shut_down()
        return len(running)

    def close(self) -> None:
        self._sweep.stop()
        for server in self._servers:
            server.close()
        for secure in list(self._greeting.values()):
            secure.abort()
        for client in list(self.clients):
            client.shut_down()
        self.health.close()
        for pool in [*self.pools.values(), *self._retired]:
            pool.close()

    # clients ------------------------------------------------------------------------------------------------------

    def give_up_greeting(self, now: float) -> None:
        """End the handshakes that take too long; called by the sweep."""
        for secure in [secure for secure in self._greeting.values() if now >= secure.deadline]:
            secure.give_up()

    def client_opened(self, client: ClientConnection) -> bool:
        """False where there are too many: refuse it."""
        self.clients.add(client)
        client.close_wanted = self._leaving
        return len(self.clients) <= self._most_clients

    def client_closed(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        for acceptor in self._acceptors:
            acceptor.resume()
        self.slow.discard(client)

    def refusal(self, failure: Failure, client: ClientConnection) -> bytes:
        """The answer to what was no request, as bytes; the connection closes behind it. It has its record too."""
        request_id = self.new_request_id()
        body, lines = answers.error(failure, "", request_id)
        lines.append(b"x-request-id: " + request_id)
        wall = self.wall(monotonic())
        self.counters.refused(failure.kind)
        self.emit(refusal(request_id, client.address_bytes, failure, len(body), self.snapshot.generation, wall))
        return answer(failure.kind.status, body, now=wall, lines=lines, close=True)

    def new_request_id(self) -> bytes:
        """Unique: 64 random bits of the worker, and a count."""
        count = self._id_count = self._id_count + 1
        if not count & 0xFF:
            self._id_prefix = b"%b%06x" % (self._id_random, count >> 8)
        return self._id_prefix + _HEX[count & 0xFF]  # a third less than formatting the whole count

    def wall(self, now: float) -> float:
        """Epoch seconds of a monotonic moment; one clock is read per event, not two."""
        return now + self.wall_offset

    def tick(self) -> None:
        """Called by the sweep about once a second: the wall clock may have been set."""
        self.wall_offset = self._meters.wall_offset = time.time() - monotonic()
        self._retired = [pool for pool in self._retired if pool.in_flight]
        self._targets.stamp([*self.pools.values(), *self._retired])

    # exchanges ----------------------------------------------------------------------------------------------------

    def pool(self, candidate: Candidate) -> Pool:
        """The pool of a candidate's target, which the candidate keeps; for one that left the config while an exchange
        was under way, a retired one."""
        target = candidate.target
        pool = self.pools.get(target.pool_key)
        if pool is None:
            pool = Pool(self, self._dialler, target)
            pool.retire()
            self._retired.append(pool)
        candidate.pool = pool
        return pool

    def make_room(self) -> None:
        """A connection to an upstream is about to be opened. Where descriptors are counted, each client has one for
        it; one that is idle at another target is closed for it, the one that would be closed first anyway."""
        if self._descriptors is None:
            return
        pools = [*self.pools.values(), *self._retired]
        if sum(pool.open for pool in pools) >= self._most_clients:
            oldest = min((pool.idle[0] for pool in pools if pool.idle), key=lambda one: one.idle_until, default=None)
            if oldest is not None:
                oldest.abort()

    def in_flight(self, target: Target) -> int:
        pool = self.pools.get(target.pool_key)
        if pool is None:
            return 0
        return pool.in_flight + (pool.tally.others(IN_FLIGHT) if pool.tally is not None else 0)

    def cursor(self, upstream: Upstream) -> int:
        return self._cursors.get(upstream.name, 0)

    def draw(self) -> float:
        return random()

    def out_until(self, target: Target) -> float:
        return self.health.out_until(target)

    def full(self, candidate: Candidate, asker: Asker | None) -> Full | None:
        return self.attempts.full(candidate, asker, monotonic())

    def advance(self, upstream: Upstream) -> None:
        """A choice was made for the upstream: the next one is another's turn."""
        if len(upstream.sequence) > 1:
            self._cursors[upstream.name] = self._cursors.get(upstream.name, 0) + 1

    def budget(self, upstream: str) -> Budget:
        """The retries that there may still be of an upstream."""
        budget = self._budgets.get(upstream)
        if budget is None:
            budget = self._budgets[upstream] = Budget(monotonic())
        return budget

    def report(self, error: Exception, where: object) -> None:
        """A fault of ours, for the operator's log; the loop's handler decides how it is told."""
        self.loop.call_exception_handler({"message": f"unexpected error at {where!r}", "exception": error})
