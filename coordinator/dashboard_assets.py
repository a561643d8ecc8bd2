"""The dashboard's page and its files over HTTP: what may be kept for how long, and what the page may do.

What was compressed when it was built is served so. Nothing else can be fetched: a name is looked up, not opened.
"""

from __future__ import annotations

import re

from aiohttp import ETag, hdrs, web

from coordinator.dashboard_files import PAGE, DashboardFile
from coordinator.keys import CLUSTER, DASHBOARD_FILES
from coordinator.middleware import CONTENT_POLICY, add_route
from coordinator.route_docs import Download, RouteDoc
from protocol.errors import NotFoundError

KEPT_FOR_GOOD = "public, max-age=31536000, immutable"
ASKED_EACH_TIME = "no-cache"
PERMISSIONS = "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"

PAGE_DOC = RouteDoc("Show the dashboard.", answer=Download("text/html"), errors=(NotFoundError,))
FILE_DOC = RouteDoc("A file of the dashboard's page.", answer=Download("text/javascript"))
MOVED_DOC = RouteDoc("Go to the dashboard.", answer=None, status=308)


def content_policy(gateway_url: str) -> str:
    """What the page may load, run and talk to: this coordinator alone, and the gateway if there is one."""
    sources = " ".join(filter(None, ("'self'", gateway_url)))
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "require-trusted-types-for 'script'; trusted-types 'none'; "
        f"connect-src {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def add_dashboard_file_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "open", "GET", "/", to_page, MOVED_DOC)
    add_route(app, "open", "GET", "/dashboard", to_page, MOVED_DOC)
    add_route(app, "open", "GET", "/dashboard/", page, PAGE_DOC)
    add_route(app, "open", "GET", "/dashboard/assets/{name}", file, FILE_DOC)


async def to_page(_request: web.Request) -> web.Response:
    """-> where the page is."""
    return web.Response(status=308, headers={hdrs.LOCATION: "/dashboard/"})


async def page(request: web.Request) -> web.StreamResponse:
    """-> the page, which may run our scripts alone."""
    found = request.app[DASHBOARD_FILES].get(PAGE)
    if found is None:
        raise NotFoundError(
            "this coordinator was installed without the dashboard's page: `make dashboard` builds it"
        )
    answer = _answer(request, found, ASKED_EACH_TIME)
    answer.headers[CONTENT_POLICY] = content_policy(request.app[CLUSTER].state.settings.gateway_url)
    return answer


async def file(request: web.Request) -> web.StreamResponse:
    """-> a file of the page."""
    name = request.match_info["name"]
    found = request.app[DASHBOARD_FILES].get(name)
    if found is None or name == PAGE:
        raise NotFoundError(f"the dashboard has no file {name[:100]!r}; load the page anew")
    return _answer(request, found, KEPT_FOR_GOOD)


def _answer(request: web.Request, found: DashboardFile, caching: str) -> web.Response:
    headers = {
        hdrs.CACHE_CONTROL: caching,
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
        "Permissions-Policy": PERMISSIONS,
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if any(each.value in (found.etag, "*") for each in request.if_none_match or ()):
        answer = web.Response(status=304, headers=headers)
    else:
        coding = _coding(request, found)
        body = found.body if coding is None else found.compressed[coding]
        answer = web.Response(body=body, content_type=found.media_type, headers=headers)
        if found.media_type.startswith("text/"):
            answer.charset = "utf-8"
        if coding is not None:
            answer.headers[hdrs.CONTENT_ENCODING] = coding
    answer.etag = ETag(value=found.etag, is_weak=True)
    return answer


def _coding(request: web.Request, found: DashboardFile) -> str | None:
    """The best coding that the browser takes; `q=0` says that it doesn't."""
    taken = [
        each.split(";")[0].strip()
        for each in request.headers.get(hdrs.ACCEPT_ENCODING, "").lower().split(",")
        if not re.search(r";\s*q=0(\.0*)?\s*$", each)
    ]
    return next((coding for coding in found.compressed if coding in taken), None)
