"""The web application of both pages: what it serves and refuses, how uploads are read, and where it listens.

An upload's body is the file itself (no form, whose parser would write to disk); nothing is stored, and no name in a
request is used as a path. docs/app.md lists the limits.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from io import BytesIO
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

import hoi
from hoi.errors import UserError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
SAFE_METHODS = frozenset({"GET", "HEAD"})
PACKAGE = "hoi.web"
HOST, PORT = "127.0.0.1", 8008
STOP_S = 5
MAX_CONNECTIONS, MAX_OF_CLIENT = 64, 24
HEADER_TIMEOUT_S, REQUEST_TIMEOUT_S = 10.0, 600.0
LINGER_S, LINGER_BYTES = 5.0, 32_000_000
MEGABYTE = 1_000_000
UPLOAD_TIMEOUT_S = 60.0
MAX_WAITING = 4
"""Requests that wait for the models, each with its upload in memory."""
NAME_HEADER = "x-file-name"
"""Percent-encoded, since headers are ASCII."""
MAX_NAME_LENGTH = 255
MAX_SIDE_PX, JPEG_QUALITY = 1600, 92


class Refused(Exception):
    """A request that is not served, with HTTP's status and a reason for its user."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Refusal(JSONResponse):
    """An answer that may come before the whole request was read; the connection closes after it.

    Closed at once, a client that still sends would see a broken connection instead of the answer. So what it sends is
    thrown away for a while.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_throw_away(receive), LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _throw_away(receive: Receive) -> None:
    num_bytes, more = 0, True
    while more and num_bytes < LINGER_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)


class Connection(H11Protocol):
    """A connection that may not be slow, nor one of too many, and whose own answers have the security headers, too.

    One that has no request under way gives its place to a new one, so half-sent requests shut nobody out.
    """

    _deadline: asyncio.TimerHandle | None = None
    _is_reading = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # In the order in which they came: `connections` is a set.
        self.opened = self.loop.time()
        host = self.client and self.client[0]
        here = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        others = [each for each in here if not each.transport.is_closing()]
        of_client = [each for each in others if each.client and each.client[0] == host]
        for crowd, most in ((of_client, MAX_OF_CLIENT), (others, MAX_CONNECTIONS)):
            if len(crowd) >= most:
                idle = [each for each in crowd if each.is_idle and not each.transport.is_closing()]
                if not idle:
                    self._refuse(503, "the server is busy with other connections: try again in a moment")
                    return
                min(idle, key=lambda each: each.opened).transport.abort()
        self._set_deadline()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way: its header has not come yet, or its answer is sent."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._set_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request")

    def _set_deadline(self) -> None:
        """Let a header, and a request as a whole, have their time; bytes that trickle in do not lengthen it."""
        if self._deadline is None or self._is_reading != self.is_idle:
            if self._deadline is not None:
                self._deadline.cancel()
            self._is_reading = self.is_idle
            seconds = HEADER_TIMEOUT_S if self._is_reading else REQUEST_TIMEOUT_S
            self._deadline = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        if not self.is_idle:
            self.transport.abort()
        elif self.conn.trailing_data[0]:
            self._refuse(408, f"the header of the request took longer than {HEADER_TIMEOUT_S:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer without the application, and close."""
        body = JSONResponse({"error": reason}).body
        headers = {**HEADERS, "Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + bytes(body))
        self.transport.close()


class Guard:
    """Wraps the application: refuses foreign hosts and origins.

    Allowed are `localhost`, the names given, and any numeric address, which unlike a name cannot be pointed elsewhere.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        reason = self._refusal(scope["method"], Headers(scope=scope), scope["scheme"])
        answer = self._app if reason is None else Refusal({"error": reason}, 403)
        await answer(scope, receive, send)

    def _refusal(self, method: str, headers: Headers, scheme: str) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_allowed(hosts[0]):
            return "this page is not served under that host name (--allow-host NAME adds one)"
        if method in SAFE_METHODS:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin not in (None, f"{scheme}://{hosts[0]}") or site not in (None, "same-origin", "none"):
            return "another site sent this request"
        return None

    def _is_allowed(self, host: str) -> bool:
        if set(host) & set("@/?#"):
            return False
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
            return name in self._names or ip_address(name) is not None
        except ValueError:
            return False


def make_app(
    routes: Sequence[BaseRoute],
    student: Mapping[str, Any] | None = None,
    checking: bool = False,
    allow_hosts: Iterable[str] = (),
) -> ASGIApp:
    """Return the application: both pages, their static files, and the routes that answer them.

    Args:
        student: What the predictor's page says of its student; None where that page is not open.
        checking: Whether the checking page is open.
        allow_hosts: Extra host names that it may be called by.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE, "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    def page(name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(environment.get_template(name).render(version=hoi.__version__, **values))

    async def predict(_: Request) -> Response:
        return page("predict.html", facts=student)

    async def check(_: Request) -> Response:
        return page("check.html", is_open=checking)

    static = Mount("/static", StaticFiles(packages=[(PACKAGE, "static")]))
    pages = [Route("/", predict), Route("/check", check), static]
    handlers = dict.fromkeys((Refused, UserError, Exception), _answer_error)
    return Guard(Starlette(routes=[*pages, *routes], exception_handlers=handlers), allow_hosts)


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refused):
        return Refusal({"error": error.reason}, error.status)
    failed = "this failed; the terminal that serves the page has the reason"
    return JSONResponse({"error": str(error) if isinstance(error, UserError) else failed}, 500)


def upload_name(request: Request) -> str:
    """Return the file name of an upload, or refuse a path, a very long name, and control characters."""
    name = unquote(request.headers.get(NAME_HEADER, "image"), errors="replace")
    if not name or len(name) > MAX_NAME_LENGTH:
        raise Refused(400, f"the file name is refused: 1 to {MAX_NAME_LENGTH} letters are expected")
    if name in (".", "..") or any(letter in "/\\" for letter in name):
        raise Refused(400, "the file name is refused: it is a path; a plain file name is expected")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise Refused(400, "the file name is refused: it holds control characters")
    return name


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """Read the body of a request, or refuse one that is too large, as announced or as read, empty, cut or slow."""
    too_large = Refused(413, f"the file is larger than {max_bytes / MEGABYTE:g} MB")
    announced = request.headers.get("content-length")
    if announced is not None and (not announced.isdecimal() or int(announced) > max_bytes):
        raise too_large
    body = bytearray()

    async def read() -> None:
        async for piece in request.stream():
            body.extend(piece)
            if len(body) > max_bytes:
                raise too_large

    try:
        await asyncio.wait_for(read(), UPLOAD_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise Refused(408, f"the upload took longer than {UPLOAD_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the upload broke off") from None
    if not body:
        raise Refused(400, "the file is empty")
    return bytes(body)


class RequestLimiter:
    """Lets one request at a time use the models, `MAX_WAITING` wait, and refuses others before they are read."""

    def __init__(self) -> None:
        self._num_admitted = 0
        self.turn = asyncio.Lock()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Hold a place, running or waiting, or raise Refused where all are taken."""
        if self._num_admitted > MAX_WAITING:
            raise Refused(503, "the server is busy with other images: try again in a moment")
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1


def as_jpeg(pixels: np.ndarray) -> bytes:
    """Encode an image, uint8 [H, W, 3], as a JPEG whose longest side is at most `MAX_SIDE_PX`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def open_socket(host: str, port: int) -> socket.socket:
    """Open a socket that listens at an address; port 0 takes a free one."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise UserError(
            "the page cannot listen there",
            where=f"{host}, port {port}",
            got=getattr(error, "strerror", None) or error,
            fix="give another --port, or the --host of this machine",
        ) from None
    return listener


def announcement(listener: socket.socket, path: str) -> str:
    """Return what is printed when the page is up: its address, and a warning where others can reach it."""
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    if ip_address(host.split("%")[0]).is_loopback:
        return f"{address}  (this machine only; Ctrl-C stops it)"
    return (
        "WARNING: EVERYBODY WHO REACHES THIS MACHINE OVER THE NETWORK CAN USE THIS PAGE AND SEE ITS IMAGES.\n"
        f"WARNING: it listens on {host}, without password or encryption. Without --host it is for this machine only.\n"
        f"{address}  (Ctrl-C stops it)"
    )


def make_server(app: Callable) -> uvicorn.Server:
    """Return the application's server, which `run(sockets=[...])` starts."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            # Of every answer: the application's, and those that the server gives without asking it.
            headers=list(HEADERS.items()),
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=STOP_S,
            timeout_graceful_shutdown=STOP_S,
            ws="none",
        )
    )


def serve(app: Callable, listener: socket.socket, path: str = "/") -> None:
    """Serve until Ctrl-C or SIGTERM."""
    print(announcement(listener, path), flush=True)
    try:
        make_server(app).run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
