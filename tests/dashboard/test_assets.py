from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from coordinator.dashboard_files import FOLDER, dashboard_files

SOURCES = Path(__file__).parents[2] / "dashboard"
BESIDE_SRC = ("build.mjs", "package-lock.json", "package.json", "tsconfig.json")
MAX_BYTES = 300_000


def test_what_is_served_was_built_of_these_sources() -> None:
    """`make dashboard` builds it; the hash is made as dashboard/build.mjs makes it."""
    in_src = [str(path.relative_to(SOURCES)) for path in (SOURCES / "src").rglob("*") if path.is_file()]
    lines = (
        f"{name} {hashlib.sha256((SOURCES / name).read_bytes()).hexdigest()}\n"
        for name in sorted([*BESIDE_SRC, *in_src])
    )
    built = json.loads((FOLDER / "sources.json").read_text())["sources_sha256"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == built, "stale: run `make dashboard`"


def test_versions_of_packages_are_exact() -> None:
    package = json.loads((SOURCES / "package.json").read_text())
    versions = {**package["dependencies"], **package["devDependencies"]}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values()), versions


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    files = dashboard_files()
    page = files["index.html"].body.decode()
    assert re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page) is None
    named = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert named
    assert all(url.removeprefix("/dashboard/assets/") in files for url in named), named
    script = next(file.body.decode() for name, file in files.items() if name.endswith(".js"))
    assert re.search(r"\beval\(|new Function\(|innerHTML\s*=[^=]\s*[^\"]*location", script) is None


def test_all_of_it_is_small() -> None:
    assert sum(len(file.body) for file in dashboard_files().values()) < MAX_BYTES
