"""Two pages served on this machine: predictions for an uploaded image, and marks of right and wrong on predictions."""

from __future__ import annotations

from hoi.errors import UserError

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
