"""The files of the dashboard's page, prebuilt: read once, under names that say what is in them.

Every file but the page itself has a hash of its content in its name, so that browsers may keep it for good.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

FOLDER = Path(__file__).with_name("dashboard") / "assets"
PAGE = "index.html"
CODINGS = {"br": ".br", "gzip": ".gz"}
"""The best first, and how the compressed file's name ends."""
MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
}
_HASHED = re.compile(r"[A-Za-z0-9_]+[-.][A-Za-z0-9_-]{8,64}\.[a-z0-9]{2,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardFile:
    """One file, as it is and compressed."""

    media_type: str
    body: bytes
    compressed: Mapping[str, bytes]
    """By content coding, the best first."""
    etag: str


def dashboard_files(folder: Path = FOLDER) -> Mapping[str, DashboardFile]:
    """All files that are served, by name. Blocks."""
    paths = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    found = {
        name: DashboardFile(
            media_type=MEDIA_TYPES[path.suffix],
            body=path.read_bytes(),
            compressed={
                coding: paths[name + ending].read_bytes()
                for coding, ending in CODINGS.items()
                if name + ending in paths
            },
            etag=hashlib.sha256(path.read_bytes()).hexdigest()[:32],
        )
        for name, path in paths.items()
        if path.suffix in MEDIA_TYPES and (name == PAGE or _HASHED.fullmatch(name))
    }
    return MappingProxyType(found)
