"""Processes that serve a model of a few kilobytes: as fast as processes get."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.local_cluster import LocalCluster, polls
from tests.support.forked_program import ForkedCluster
from tests.support.tiny_models import TINY_CONFIGS, save_tiny_model
from tests.support.tiny_tokenizer import tiny_files, tiny_tokenizer

TINY = "tiny"
Done = subprocess.CompletedProcess[bytes]
WITHIN_S = 60.0


def tiny_model_folder(folder: Path, *, seed: int = 0, context: int | None = None) -> Path:
    """A checkpoint with random weights and a tokenizer, as `coord model add` takes it."""
    config = TINY_CONFIGS["llama"]()
    config.vocab_size = tiny_tokenizer().get_vocab_size()
    config.max_position_embeddings = context or config.max_position_embeddings
    save_tiny_model(config, folder, seed=seed)
    for name, data in tiny_files().items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)
    return folder


def add_tiny_model(cluster: LocalCluster, name: str = TINY, *, seed: int = 0, context: int | None = None) -> None:
    """Make one and `coord model add` it."""
    folder = tiny_model_folder(cluster.folder / f"checkpoint-{name}", seed=seed, context=context)
    done = cluster.run("coord", "model", "add", name, str(folder))
    assert done.returncode == 0, done.stderr.decode()


@contextmanager
def cluster_without_workers(folder: Path) -> Iterator[LocalCluster]:
    """A coordinator with a tiny model; workers come and go with the tests."""
    with ForkedCluster(folder) as cluster:
        cluster.environment["BRIGADE_CACHE"] = str(cluster.folder / "cache")
        cluster.start_coordinator()
        add_tiny_model(cluster)
        yield cluster


def error_line(done: Done, exit_code: int, *words: str) -> str:
    """The one line that says what is wrong."""
    said = done.stderr.decode()
    assert done.returncode == exit_code, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def generate(cluster: LocalCluster, model: str = TINY) -> Done:
    return cluster.run("client", "generate", "a b", "--model", model, "--max-tokens", "3", "--raw")


@contextmanager
def worker(cluster: LocalCluster, *arguments: str, state: Path | None = None) -> Iterator[str]:
    """A worker, stopped at the end; its name."""
    name = f"worker-{len(list(cluster.folder.glob('worker-*.log')))}"
    options = ("--precision", "float32", *arguments)
    if state is not None:
        options += ("--state", str(state))
    process = cluster.start_worker(name, *options)
    try:
        yield name
        assert process.poll() is None, cluster.log(name)
    finally:
        cluster.stop(name)
    assert "Traceback" not in cluster.log(name), cluster.log(name)


def workers_of(cluster: LocalCluster) -> list[dict[str, Any]]:
    """Those that are connected."""
    return [one for one in cluster.status()["workers"] if one["state"] not in ("gone", "lost", "enrolling")]


def until(cluster: LocalCluster, look: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The only worker's status, once `look` says yes."""
    shown: list[dict[str, Any]] = []
    for _ in polls(WITHIN_S):
        shown = workers_of(cluster)
        if len(shown) == 1 and look(shown[0]):
            return shown[0]
    raise AssertionError(shown)


def reason_of(shown: dict[str, Any]) -> str:
    return " ".join([shown["reason"], *(span["reason"] for span in shown["spans"])])
