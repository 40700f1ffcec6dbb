"""Who may talk to the page: the browser of this machine, at the page's own address, and no other site through it.

A site that is open in the same browser can send requests here. It cannot choose the `Host` that its own name resolved
to, nor hide its origin, so a foreign name or origin is refused, and every answer forbids frames, foreign scripts and
sniffing.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
