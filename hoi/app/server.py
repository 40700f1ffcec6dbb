"""The application: pages, their static files, what answers them, and how mistakes are told."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import hoi
from hoi.app.guard import Guard
from hoi.app.looking import Looking
from hoi.app.marking import Marking
from hoi.app.uploads import Refused
from hoi.errors import UserError

PACKAGE = "hoi.app"
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
