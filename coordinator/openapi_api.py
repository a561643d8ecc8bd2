"""`/openapi.json`, and `/docs`, a page that shows it: Swagger UI from our own disk, pinned by its hash.

Both are open: they say what anybody can read in the program's source, and a browser that opens a page shows no key.
The page runs no inline script and loads nothing from elsewhere; the key that one types into it stays in the page.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

import msgspec
from aiohttp import hdrs, web

from coordinator.keys import ACCESS, OPENAPI, ROUTE_DOCS, VERSION
from coordinator.middleware import CONTENT_POLICY, add_route
from coordinator.openapi import DescribedRoute, openapi
from coordinator.route_docs import Download, RouteDoc
from protocol.errors import NotFoundError

SWAGGER_UI = "5.31.0"
INTEGRITY = {
    "swagger-ui-bundle.js": "sha384-cxafBeQ+zYROeFafGFxtFbnp1ICqeS9mG7+f0WWSHzhnrUvwg9Za5CCw6wgrHA7K",
    "swagger-ui.css": "sha384-KX9Rx9vM1AmUNAn07bPAiZhFD4C8jdNgG6f5MRNvR+EfAxs2PmMFtUUazui7ryZQ",
}
"""Of that version's files, as npm's swagger-ui-dist, which its makers publish, ships them."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Brigade coordinator</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css" integrity="{INTEGRITY["swagger-ui.css"]}">
</head>
<body>
<div id="viewer"></div>
<script src="/docs/swagger-ui-bundle.js" integrity="{INTEGRITY["swagger-ui-bundle.js"]}"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
START = """"use strict";
SwaggerUIBundle({url: "/openapi.json", dom_id: "#viewer", deepLinking: true, validatorUrl: null,
                 persistAuthorization: false, queryConfigEnabled: false});
"""

DOCUMENT_DOC = RouteDoc("Give this document.", answer=Download("application/json"))
PAGE_DOC = RouteDoc("Show this document to people.", answer=Download("text/html"))
START_DOC = RouteDoc("Start the viewer.", answer=Download("text/javascript"))
SCRIPT_DOC = RouteDoc("The viewer.", answer=Download("text/javascript"), errors=(NotFoundError,))
STYLE_DOC = RouteDoc("How the viewer looks.", answer=Download("text/css"), errors=(NotFoundError,))


def add_openapi_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "open", "GET", "/openapi.json", document, DOCUMENT_DOC)
    add_route(app, "open", "GET", "/docs", page, PAGE_DOC)
    add_route(app, "open", "GET", "/docs/start.js", start, START_DOC)
    add_route(app, "open", "GET", "/docs/swagger-ui-bundle.js", asset, SCRIPT_DOC)
    add_route(app, "open", "GET", "/docs/swagger-ui.css", asset, STYLE_DOC)


async def document(request: web.Request) -> web.Response:
    """-> the OpenAPI document; made when it is first asked for."""
    made = request.app[OPENAPI]
    if not made:
        made.append(await asyncio.to_thread(_document, request.app))
    return web.Response(body=made[0], content_type="application/json")


async def page(_request: web.Request) -> web.Response:
    """-> the page."""
    return web.Response(text=PAGE, content_type="text/html", headers={CONTENT_POLICY: POLICY})


async def start(_request: web.Request) -> web.Response:
    """-> the script that shows the document in the page."""
    return web.Response(text=START, content_type="text/javascript")


async def asset(request: web.Request) -> web.StreamResponse:
    """-> a file of Swagger UI."""
    path = await asyncio.to_thread(_asset, request.path.rpartition("/")[2])
    if path is None:
        raise NotFoundError(
            "the viewer isn't installed with this coordinator: pip install '.[viewer]' in Brigade's folder, or "
            "show /openapi.json with another"
        )
    media_type = "text/css" if path.suffix == ".css" else "text/javascript"
    return web.FileResponse(path, headers={hdrs.CONTENT_TYPE: media_type})


def described_routes(app: web.Application) -> list[DescribedRoute]:
    """All routes that are described, as they were put in."""
    return [
        DescribedRoute(access=app[ACCESS][route], method=route.method, path=route.resource.canonical, doc=doc)
        for route, doc in app[ROUTE_DOCS].items()
        if route.resource is not None
    ]


def _document(app: web.Application) -> bytes:
    return msgspec.json.encode(openapi(described_routes(app), app[VERSION]))


def _asset(name: str) -> Path | None:
    """Where the file lies; None: not here, or of another version, which a browser would refuse. Blocks."""
    spec = find_spec("swagger_ui_bundle")
    folders = [] if spec is None else spec.submodule_search_locations or []
    paths = (Path(folder) / "vendor" / f"swagger-ui-{SWAGGER_UI}" / name for folder in folders)
    return next((path for path in paths if path.is_file()), None)
