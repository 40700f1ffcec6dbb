"""Where a page listens, what is said of it, and the loop that serves it until it is stopped."""

from __future__ import annotations

import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from hoi.errors import UserError

if TYPE_CHECKING:
    from uvicorn import Server


PORT = 8008
STOP_S = 5
MAX_CONNECTIONS = 64


def add_options(parser: ArgumentParser) -> None:
    """The options of every page."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine only)")
    add("--port", type=int, default=PORT, help="0 takes a free one (default: %(default)s)")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a further name the page may be called by")


def require_libraries() -> None:
    """Nothing, where the optional libraries are installed.

    Raises:
        UserError: one is missing.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the page needs a library that is not installed",
            expected="starlette and uvicorn",
            got=f"no {error.name}",
            fix="pip install 'hoi-distill[app]', or pip install starlette uvicorn",
        ) from None


def host_names(options: Namespace) -> frozenset[str]:
    """Names that the page may be called by."""
    return frozenset({options.host, *options.allow_host})


def open_socket(host: str, port: int) -> socket.socket:
    """An address to a socket that listens there.

    Raises:
        UserError: it is taken, forbidden, or not of this machine.
    """
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address, a number."""
    return ip_address(host.split("%")[0]).is_loopback


def announcement(listener: socket.socket, path: str) -> str:
    """What is printed when the page is up."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if is_loopback(host):
        return f"http://{shown}:{port}{path}  (this machine only; Ctrl-C ends it)"
    return (
        "WARNING: EVERYBODY WHO REACHES THIS MACHINE OVER THE NETWORK CAN USE THIS PAGE AND SEE ITS IMAGES.\n"
        f"WARNING: it listens on {shown}, without password or encryption. Without --host it is for this machine only.\n"
        f"http://{shown}:{port}{path}  (Ctrl-C ends it)"
    )


def make_server(app: Callable) -> Server:
    """The application to a server, which `run(sockets=[...])` starts."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=STOP_S,
            timeout_graceful_shutdown=STOP_S,
            ws="none",
        )
    )


def serve(app: Callable, listener: socket.socket, path: str = "/") -> None:
    """Serves until Ctrl-C or SIGTERM."""
    print(announcement(listener, path), flush=True)
    try:
        make_server(app).run(sockets=[listener])
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
