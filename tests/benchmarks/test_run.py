"""The benchmarks of `make bench`, as small as they get: that each measures something, not what."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import arrangement, links, run
from benchmarks.arrangement import MODEL, Arranged, Arrangement, split
from benchmarks.held_ports import held_port
from benchmarks.measures import SMALL, Bench
from benchmarks.relay import Relay
from tests.support.forked_program import ForkedCluster
from tests.support.tiny_cluster import tiny_model_folder
from tests.support.tiny_tokenizer import tiny_files, tiny_tokenizer
from tests.support.whole_cluster import packed_tiny, whole_cluster


@pytest.mark.timeout(180)
async def test_everything_is_measured_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "TARGET_DELAY_S", 0.001)
    (tmp_path / "llama-0").mkdir()
    for name, data in tiny_files().items():
        if name != "config.json":
            (tmp_path / "llama-0" / name).write_bytes(data)
    n_tokens = tiny_tokenizer().get_vocab_size()
    packed, _ = packed_tiny(tmp_path, "llama", vocab_size=n_tokens, max_position_embeddings=4096, eos_token_id=None)
    bench = Bench(source=tmp_path / "llama-0", scale=replace(SMALL, n_tokens=64))
    async with whole_cluster(tmp_path) as cluster, AsyncExitStack() as stack:
        await cluster.add_model(MODEL, packed)
        relays = []
        for name, blocks in (("a", "0:2"), ("b", "2:4")):
            port = stack.enter_context(held_port())
            relay = await stack.enter_async_context(Relay("127.0.0.1", port))
            relays.append(relay)
            url = f"https://127.0.0.1:{relay.port}"
            listening = {"listen_host": "127.0.0.1", "listen_port": port, "advertise_url": url}
            await cluster.join(name, blocks, files=packed, **listening)
        await cluster.until_ready(MODEL)
        ready = Arranged(
            client=await stack.enter_async_context(cluster.client()),
            relays=tuple(relays),
            worker_rss_bytes=(10**6, 10**6),
            blocks=tuple(split(4, 2)),
        )
        others = {
            "bfloat16-sixteen",
            "first-token-bfloat16",
            "int8-one",
            "int4-one",
            "int4-compiled",
        }  # the same in other precisions
        for measurement in run.MEASUREMENTS:
            if measurement.target.name in others:
                continue
            figures = await measurement.measure(bench, ready)
            assert figures.ratios, measurement.target.name
            assert all(ratio > 0 for ratio in figures.ratios)
        narrow = await links.link_figures(bench, ready, links.Link(delay_s=0.001, bits_per_s=1e9))
        assert narrow.first_token_s > 0
        assert {relay.delay_s for relay in relays} == {0.0}


@pytest.mark.timeout(180)
async def test_workers_are_arranged_and_what_they_cannot_do_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrangement, "LocalCluster", ForkedCluster)
    bench = Bench(source=tiny_model_folder(tmp_path / "model"), scale=SMALL)
    (first, *_) = run.MEASUREMENTS
    chosen = [
        run.Measurement(
            target=first.target,
            arrangement=Arrangement(precision=precision, n_workers=1),
            measure=first.measure,
        )
        for precision in ("float32", "int3")
    ]
    done, failed = await run.measured(bench, chosen, tmp_path / "cluster")
    assert done.value is not None, done.failure
    assert failed.value is None
    assert "int3" in failed.failure
