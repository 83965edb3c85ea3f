"""The playground: one page with its stylesheet and modules, served as they lie here."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent
ASSET_SUFFIXES = (".js", ".css", ".svg")
"""What the page may fetch from `/playground/`; nothing else in the folder is served."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # With the ETag: asked for again each time, sent again only after an update.
    "Cache-Control": "no-cache",
}

_FILES = StaticFiles(directory=FOLDER)


def add_playground(router: APIRouter) -> None:
    """Register `GET /playground` and the files that the page asks for beside it.

    The page names everything relative to itself, so it works below any `--root-path`.
    vLLM's API key guards the API only: the page loads without one and asks for it.
    """
    methods = ["GET", "HEAD"]
    for path, endpoint in (("/playground", _page), ("/playground/{name}", _asset)):
        router.add_api_route(path, endpoint, methods=methods, include_in_schema=False)


async def _page(request: Request) -> Response:
    return await _file("index.html", request)


async def _asset(name: str, request: Request) -> Response:
    if not name.endswith(ASSET_SUFFIXES):
        raise HTTPException(404)
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await _FILES.get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
