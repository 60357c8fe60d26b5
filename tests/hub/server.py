"""A Hub on loopback for the real clients: accounts, repositories with commits and branches, LFS, downloads, faults.

It speaks the calls that `huggingface_hub`, `datasets` and `transformers` make, with the Hub's own status codes and
error headers. Files go over the LFS protocol; the Hub itself prefers Xet, whose storage service is not spoken here, so
clients run with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.responses import HTMLResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.hub.api import Refusal, application
from tests.hub.repositories import Repository, User


@dataclass
class Fault:
    """What goes wrong with the next requests that match.

    Attributes:
        method, path: of the requests, as regular expressions; `path` has to match somewhere.
        status, headers, text: what is answered instead of doing anything; a text that starts with < as a web page.
        done: do it all the same, before that answer.
        cut: "request" drops the connection when a part of the request has come in, "answer" does what is asked and then
            drops it unanswered.
        before: is called first.
        times: how many requests are hit.
        skip: how many go well before.
    """

    method: str
    path: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    done: bool = False
    cut: str | None = None
    before: Callable[[], object] | None = None
    times: int = 1
    skip: int = 0

    def hits(self, method: str, path: str) -> bool:
        if not self.times or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Hub:
    """The server; a context manager that runs it in a thread.

    Attributes:
        users: accounts by token.
        repositories: by (kind, "owner/name"); kind is "model" or "dataset".
        faults: that wait for their requests.
        asked: (method, path, Authorization header) of every request.
        large: the LFS store, by SHA-256.
    """

    def __init__(self, users: dict[str, User] | None = None):
        self.users = users or {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, str | None]] = []
        self.app = application(self)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        transports = self._transports

        class Protocol(H11Protocol):
            """Remembers connections, so that they can be dropped."""

            def connection_made(self, transport):
                super().connection_made(transport)
                transports[transport.get_extra_info("peername")[:2]] = transport

        config = uvicorn.Config(
            self._serve,
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            loop="asyncio",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def add(self, kind: str, name: str, files: dict[str, bytes] | None = None, **options) -> Repository:
        """Put a repository there."""
        repository = Repository(kind, name, **options)
        if files:
            repository.commit("main", "initial files", files)
        self.repositories[kind, name] = repository
        return repository

    def requests(self, method: str, path: str) -> int:
        """How many requests of this kind came in; `path` is a regular expression."""
        return sum(m == method and bool(re.search(path, p)) for m, p, _ in self.asked)

    async def _serve(self, scope, receive, send):
        method, path = scope["method"], scope["path"]
        headers = {key.decode().lower(): value.decode() for key, value in scope["headers"]}
        self.asked.append((method, path, headers.get("authorization")))
        fault = next((fault for fault in self.faults if fault.hits(method, path)), None)
        if fault and fault.before:
            fault.before()
        if fault and fault.done:
            await self.app(scope, receive, _nowhere)
        if fault and fault.status:
            return await _refusal(fault)(scope, receive, send)
        if fault and fault.cut:
            return await self._cut(fault.cut, scope, receive)
        return await self.app(scope, receive, send)

    async def _cut(self, where: str, scope, receive):
        if where == "request":
            await receive()
        else:
            await self.app(scope, receive, _nowhere)
        self._transports[tuple(scope["client"])].abort()
        await asyncio.sleep(0)


async def _nowhere(_):
    """Where an answer goes that nobody gets."""


def _refusal(fault: Fault) -> Response:
    if fault.text.startswith("<"):
        return HTMLResponse(fault.text, fault.status, headers=fault.headers)
    return Refusal(fault.status, fault.text, headers=fault.headers).answer()
