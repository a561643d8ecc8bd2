"""Codes on the disk: found again, made anew when damaged, and never in the way of model files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from structlog.testing import capture_logs

from protocol.ids import FileHash
from worker.codes import PackedCodes, full_precision_coded, pack_codes
from worker.file_tensors import FileTensor
from worker.files import FileCache
from worker.quantised_cache import QuantisedCache


def source(name: str) -> FileTensor:
    return FileTensor(file="ab" * 32, name=name, stored=None)


def codes(n_bits: int, n_rows: int = 300) -> PackedCodes:
    values = torch.randn((n_rows, 64), generator=torch.Generator().manual_seed(n_bits))
    return pack_codes(n_rows, lambda a, b: full_precision_coded(values[a:b], n_bits), torch.device("cpu"))


def files(cache: FileCache) -> int:
    return cache.quantised.total_size()


def test_codes_are_found_again_by_the_next_start(tmp_path: Path) -> None:
    for n_bits in (4, 8):
        kept = codes(n_bits)
        assert QuantisedCache(tmp_path, lambda: 10**9).put(source("a"), n_bits, kept)
        again = QuantisedCache(tmp_path, lambda: 10**9).get(source("a"), n_bits)
        assert again is not None
        assert torch.equal(again.rows(0, 300).values(torch.float32), kept.rows(0, 300).values(torch.float32))
    assert QuantisedCache(tmp_path, lambda: 10**9).get(source("b"), 4) is None


def test_a_damaged_file_is_removed_and_told_of(tmp_path: Path) -> None:
    cache = QuantisedCache(tmp_path, lambda: 10**9)
    cache.put(source("a"), 4, codes(4))
    (path,) = tmp_path.iterdir()
    for data in (path.read_bytes()[:-9], b"", b"\0" * 40):
        path.write_bytes(data)
        with capture_logs() as logs:
            assert cache.get(source("a"), 4) is None
        assert [entry["event"] for entry in logs] == ["quantised_file_damaged"]
        assert not path.exists()


def test_codes_use_the_room_that_model_files_leave_and_make_way_for_them(tmp_path: Path) -> None:
    one = len(codes(4).packed) * 64  # more than a file of these codes takes, less than two
    cache = FileCache(tmp_path, limit_bytes=2 * one)
    older = FileCache(tmp_path, limit_bytes=2 * one).quantised
    assert older.put(source("old"), 4, codes(4))
    (old,) = (tmp_path / "quantised").iterdir()
    os.utime(old, ns=(1, 1))
    assert cache.quantised.put(source("a"), 4, codes(4))
    assert cache.quantised.put(source("b"), 4, codes(4))
    with capture_logs() as logs:
        n_kept = sum(cache.quantised.put(source(name), 4, codes(4)) for name in "cde")
    assert not old.exists()  # what an earlier start used goes first,
    assert n_kept < 3  # but never what this one did
    assert [entry["event"] for entry in logs] == ["quantised_weights_not_kept"]
    assert files(cache) <= 2 * one
    data = b"x" * one
    name = FileHash(hashlib.sha256(data).hexdigest())
    assert cache.make_room(len(data), keep=()) == 0
    cache.put(name, data, 0.0)
    assert cache.hashes() == (name,)
    assert cache.total_size() + files(cache) <= 2 * one


def test_a_disk_that_refuses_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    cache = QuantisedCache(tmp_path / "taken", lambda: 10**9)
    with capture_logs() as logs:
        assert not cache.put(source("a"), 4, codes(4))
        assert not cache.put(source("b"), 4, codes(4))
    assert [entry["event"] for entry in logs] == ["quantised_weights_not_kept"]
    assert cache.get(source("a"), 4) is None


def test_what_can_neither_be_used_nor_removed_is_passed_over(tmp_path: Path) -> None:
    cache = QuantisedCache(tmp_path, lambda: 0)
    QuantisedCache(tmp_path, lambda: 10**9).put(source("a"), 4, codes(4))
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()  # as good as any that this user may not touch: nothing can be read, written or unlinked
    with capture_logs() as logs:
        assert cache.get(source("a"), 4) is None
        assert not cache.put(source("a"), 4, codes(4))
    assert [entry["event"] for entry in logs] == ["quantised_weights_not_kept"]
    assert cache.make_way(10**6) == 0
