"""Models that can't be served or added: said in one line, with what to do, and nothing is left half done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.local_cluster import LocalCluster, polls
from protocol import exit_codes
from tests.coordinator.gguf_support import write_gguf
from tests.support.tiny_cluster import (
    TINY,
    Done,
    cluster_without_workers,
    error_line,
    generate,
    reason_of,
    tiny_model_folder,
    until,
    worker,
)
from tests.support.tiny_models import N_BLOCKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster_without_workers(tmp_path_factory.mktemp("bad")) as running:
        yield running


# ------------------------------------------------------------------ what can't be served


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[LocalCluster]:
    """One that never had a worker: the blocks of those that left are kept for them for a while."""
    with cluster_without_workers(tmp_path) as running:
        yield running


def wait_for_placement(cluster: LocalCluster) -> None:
    """It settles a moment after somebody has joined."""
    for _ in polls(40):
        reasons = [one["reason"] for one in cluster.status()["models"] if one["name"] == TINY]
        if all("nobody" in reason and "worker join" in reason for reason in reasons):
            return


def test_without_workers_it_says_how_to_get_one(untouched: LocalCluster) -> None:
    error_line(generate(untouched), exit_codes.EXIT_UNAVAILABLE, f"0:{N_BLOCKS}", TINY, "worker join")
    shown = untouched.run("coord", "status")
    assert shown.returncode == 0
    assert b"worker join" in shown.stdout.replace(b"\n", b" ")


def test_without_full_coverage_it_says_what_is_missing(untouched: LocalCluster) -> None:
    with worker(untouched, "--blocks", "0:2"):
        until(untouched, lambda one: one["state"] == "ready")
        wait_for_placement(untouched)
        error_line(
            generate(untouched), exit_codes.EXIT_UNAVAILABLE, f"blocks 2:{N_BLOCKS}", TINY, "nobody", "worker join"
        )
        model = next(one for one in untouched.status()["models"] if one["name"] == TINY)
        assert model["state"] != "ready"
        assert f"2:{N_BLOCKS}" in model["reason"]


def block_file(cluster: LocalCluster, model: str, which: str | int) -> Path:
    """A file of a model in the coordinator's store: a block's, or another by its name."""
    info = next(one for one in cluster.status()["models"] if one["name"] == model)
    files = cluster.state / "files" / "files"
    manifest = json.loads((files / info["revision"][:2] / info["revision"]).read_bytes())
    file = manifest["blocks"][which] if isinstance(which, int) else _named(manifest["auxiliary"], which)
    return files / file["sha256"][:2] / file["sha256"]


def _named(files: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(file for file in files if file["name"] == name)


def test_wrecked_blocks_in_the_coordinators_store_are_named_and_mended(cluster: LocalCluster) -> None:
    truncated, altered = block_file(cluster, TINY, 0), block_file(cluster, TINY, 1)
    good = {path: path.read_bytes() for path in (truncated, altered)}
    for path in good:
        path.chmod(0o600)
    truncated.write_bytes(good[truncated][:-100])
    altered.write_bytes(good[altered][:-1] + bytes([good[altered][-1] ^ 1]))
    try:
        with worker(cluster) as name:
            shown = until(cluster, lambda one: "can't be had" in reason_of(one))
            assert "try again" in reason_of(shown)
            error_line(generate(cluster), exit_codes.EXIT_UNAVAILABLE, TINY)
            cached = {file.name for file in (cluster.folder / name / "cache" / "files").glob("??/*")}
            assert cached.isdisjoint(path.name for path in good)
            mend(good)
            until(cluster, lambda one: one["state"] == "ready")
            assert generate(cluster).returncode == 0
    finally:
        mend(good)


def mend(good: dict[Path, bytes]) -> None:
    for path, data in good.items():
        path.write_bytes(data)


def test_a_wrecked_tokenizer_is_refused_by_the_client(cluster: LocalCluster) -> None:
    path = block_file(cluster, TINY, "tokenizer.json")
    data = path.read_bytes()
    shutil.rmtree(cluster.folder / "cache", ignore_errors=True)
    path.chmod(0o600)
    path.write_bytes(data[:-10])
    try:
        error_line(generate(cluster), exit_codes.EXIT_STORAGE, "tokenizer.json")
    finally:
        path.write_bytes(data)
    cached = [file.name for file in (cluster.folder / "cache").rglob("*")]
    assert path.name not in cached


# ------------------------------------------------------------------ what can't be added


def refused_model(cluster: LocalCluster, source: Path) -> Done:
    """`coord model add` of something bad; checks that it leaves nothing."""
    store = cluster.state / "files"
    before = {path for path in store.rglob("*") if path.is_file()}
    done = cluster.run("coord", "model", "add", "bad", str(source))
    assert {path for path in store.rglob("*") if path.is_file()} == before
    assert "bad" not in [model["name"] for model in cluster.status()["models"]]
    return done


@pytest.mark.parametrize("how", ["tensors", "truncated"])
def test_a_gguf_that_lies_about_its_sizes(cluster: LocalCluster, tmp_path: Path, how: str) -> None:
    path = write_gguf(tmp_path / "bad.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:-2000] if how == "truncated" else data[:8] + b"\xff" * 8 + data[16:])
    error_line(refused_model(cluster, path), exit_codes.EXIT_STORAGE, "bad.gguf")


def test_an_index_that_points_outside_its_folder(cluster: LocalCluster, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    error_line(refused_model(cluster, folder), exit_codes.EXIT_STORAGE, "outside.safetensors")


def test_a_truncated_safetensors_file(cluster: LocalCluster, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    error_line(refused_model(cluster, folder), exit_codes.EXIT_STORAGE, "model.safetensors")
