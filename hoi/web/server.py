"""The application: pages, their static files, what answers them, and how mistakes are told."""

from __future__ import annotations

from importlib.resources import files
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hoi
from hoi.errors import UserError
from hoi.web.app import Looking
from hoi.web.check_page import Marking
from hoi.web.uploads import Refused

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
READING = frozenset({"GET", "HEAD"})
LOOPBACK = "localhost"


class Guard:
    """Wraps the application: refuses foreign hosts and origins, and puts the headers on every answer.

    Args:
        app: What is wrapped.
        names: Host names that the page may be called by, besides `localhost` and any address in numbers: a name can be
            made to point here by whoever owns it, an address cannot.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._names = {LOOPBACK, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        reason = self._refusal(scope["method"], Headers(scope=scope), scope["scheme"])
        answer = self._app if reason is None else JSONResponse({"error": reason}, 403)
        await answer(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers, scheme: str) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return "this page is not served under that host name (--allow-host NAME adds one)"
        if method in READING:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin != f"{scheme}://{hosts[0]}":
            return "another site asked for this"
        return "another site asked for this" if site not in (None, "same-origin", "none") else None

    def _is_ours(self, host: str) -> bool:
        if set(host) & set("@/?#"):
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
            _ = urlsplit(f"//{host}").port
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


PACKAGE = "hoi.web"
STATIC = {
    "app.css": "text/css",
    "scene.js": "text/javascript",
    "talk.js": "text/javascript",
    "look.js": "text/javascript",
    "check.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def make_app(looking: Looking | None, marking: Marking | None, names: frozenset[str] = frozenset()) -> ASGIApp:
    """What is served to the application; a page whose part is None says how to start it.

    Args:
        looking: The predictor's page.
        marking: The checking page.
        names: Host names that it may be called by, besides `localhost`.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE, "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    contents = {name: files(PACKAGE).joinpath("static", name).read_bytes() for name in STATIC}

    def page(name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(environment.get_template(name).render(version=hoi.__version__, **values))

    async def look(_: Request) -> Response:
        return page("look.html", facts=None if looking is None else looking.facts)

    async def check(_: Request) -> Response:
        return page("check.html", is_open=marking is not None)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in contents:
            raise Refused(404, "there is no such file")
        return Response(contents[name], media_type=STATIC[name])

    routes = [
        Route("/", look),
        Route("/check", check),
        Route("/static/{name}", static),
        *([] if looking is None else looking.routes()),
        *([] if marking is None else marking.routes()),
    ]
    handlers = {Refused: _refused, UserError: _mistaken, Exception: _failed}
    # The guard is outermost, so that answers to mistakes have its headers, too.
    return Guard(Starlette(routes=routes, exception_handlers=handlers), names)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, Refused):
        raise error
    # The rest of a body that was not read would be taken for the next request.
    return JSONResponse({"error": error.reason}, error.status, headers={"Connection": "close"})


async def _mistaken(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 500)


async def _failed(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"error": "this failed; the terminal of the page has the reason"}, 500)
