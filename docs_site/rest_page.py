"""The reference of the coordinator's HTTP API: its OpenAPI document, and a table of what is in it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from coordinator.application import add_routes
from coordinator.openapi import openapi
from coordinator.openapi_api import described_routes
from docs_site.tables import code, plain, table
from protocol.version import program_version

INTRODUCTION = """\
# REST API

What `coord` does is an API for admin keys, at the coordinator's own address. The whole description is
[openapi.json](openapi.json) (OpenAPI 3.1, made of the message types); a coordinator has its own at
`/openapi.json`,
and shows it at `/docs` (with the extra `viewer`). The key goes into `Authorization: Bearer`. The certificate is
of the cluster's own CA: `coord dashboard --save-ca brigade-ca.pem` gives it to other programs.

```sh
coord key create --kind admin script > admin.key
coord dashboard --save-ca brigade-ca.pem
curl --cacert brigade-ca.pem -H "Authorization: Bearer $(cat admin.key)" https://coordinator:7400/admin/v1/status
```

Pages, ETags and repeated requests are described in [the
protocol](../protocol.md#coordinator-http-default-port-7400), errors [here](errors.md). OpenAI's, Anthropic's
and Ollama's APIs are [the gateway's](../gateway.md).
"""
_WHO = {"apiKey": "client key", "adminKey": "admin key", "sessionToken": "worker"}


def openapi_document() -> dict[str, Any]:
    """The document of a coordinator of this version."""
    app = web.Application()
    add_routes(app, has_dashboard=True)
    return openapi(described_routes(app), program_version())


def rest_page(document: dict[str, Any]) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for tag in document["tags"]:
        rows = [
            (code(f"{method.upper()} {path}"), plain(operation["summary"]), _who(operation))
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if operation["tags"] == [tag["name"]]
        ]
        parts += [f"## {tag['name'] or 'start'}", table(("", "", "who"), rows)]
    return "\n\n".join(parts) + "\n"


def _who(operation: dict[str, Any]) -> str:
    return ", ".join(_WHO[name] for scheme in operation["security"] for name in scheme) or "anybody"
