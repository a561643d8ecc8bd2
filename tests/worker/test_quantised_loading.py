"""Stages that hold codes: against the same values multiplied out, cut anywhere; models that can't be held so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from structlog.testing import capture_logs

from coordinator.file_store import FileStore
from coordinator.packing import PackedModel, pack_model
from protocol.errors import ConfigError
from protocol.ids import BlockRange
from protocol.messages import Quantization
from protocol.weight_sizes import span_weight_bytes
from tests.coordinator.gguf_support import write_gguf
from tests.support.open_files import is_open
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from tests.support.waiting import eventually
from worker.engine import Engine
from worker.loaded_stage import load_stage
from worker.quantised_cache import QuantisedCache
from worker.stage import Stage, StageInput
from worker.steps import LoadRequest, SpanKey

IDS = torch.arange(3, 13, dtype=torch.int32)
TINY = BlockRange(0, 2)
HALVES = (BlockRange(0, 1), BlockRange(1, 2))


class Packed:
    """A tiny llama, packed from a GGUF file whose matrices are encoded."""

    def __init__(self, folder: Path, encoding: str, *, has_head: bool) -> None:
        path = write_gguf(folder / "m.gguf", encoding=GGMLQuantizationType[encoding], has_head=has_head)
        self.store = FileStore(folder / "store")
        self.model: PackedModel = pack_model(str(path), self.store, lambda *_: None)
        self.config = folder / "config"
        self.config.mkdir()
        for file in self.model.manifest.auxiliary:
            (self.config / file.name).write_bytes(self.store.path(file.sha256).read_bytes())

    def load(
        self,
        blocks: BlockRange,
        dtype: torch.dtype,
        quantization: Quantization | None = None,
        quantised: QuantisedCache | None = None,
    ) -> Stage:
        return load_stage(
            self.config,
            self.files(blocks),
            blocks,
            dtype=dtype,
            device=CPU,
            quantization=quantization,
            quantised=quantised,
        )

    def files(self, blocks: BlockRange) -> list[Path]:
        return [self.store.path(file.sha256) for file in self.model.manifest.weight_files(blocks)]


def logits(stages: list[Stage]) -> torch.Tensor:
    payload = IDS
    for stage in stages:
        one = StageInput(payload=payload, position=0, cache=stage.new_cache(16), n_logits=10 * stage.is_last)
        payload = stage.run([one])[0]
    return payload.float()


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_files_are_closed_once_their_codes_are_held(tmp_path: Path) -> None:
    packed = Packed(tmp_path, "Q4_0", has_head=True)
    stage = packed.load(TINY, torch.float32, "int4")
    assert [file for file in packed.files(TINY) if is_open(file)] == []
    assert stage.blocks == TINY


@pytest.mark.parametrize(
    ("encoding", "quantization", "has_head"),
    [("Q4_1", "int4", False), ("Q4_0", "int8", True), ("Q8_0", "int8", False)],
)
def test_codes_of_a_gguf_give_what_its_values_give_in_bfloat16(
    encoding: str, quantization: Quantization, has_head: bool, tmp_path: Path
) -> None:
    packed = Packed(tmp_path, encoding, has_head=has_head)
    expected = logits([packed.load(TINY, torch.float32)])
    bfloat16 = off_by(logits([packed.load(TINY, torch.bfloat16)]), expected)
    whole = packed.load(TINY, torch.bfloat16, quantization)
    assert off_by(logits([whole]), expected) < 5 * bfloat16  # scales are bfloat16 as well, and they add up
    for cut in ([packed.load(b, torch.bfloat16, quantization) for b in HALVES], [whole.view(b) for b in HALVES]):
        torch.testing.assert_close(logits(cut), logits([whole]))


@pytest.mark.parametrize(("encoding", "quantization"), [("Q4_1", "int4"), ("Q4_0", "int8"), ("Q8_0", "int8")])
def test_unpacked_codes_of_a_gguf_are_its_values_without_another_rounding(
    encoding: str, quantization: Quantization, tmp_path: Path
) -> None:
    packed = Packed(tmp_path, encoding, has_head=False)
    expected = logits([packed.load(TINY, torch.float32)])
    whole = packed.load(TINY, torch.float32, quantization)  # the packed kernel has no fast code for float32
    torch.testing.assert_close(logits([whole]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits([whole.view(b) for b in HALVES]), expected, rtol=1e-5, atol=1e-6)
    assert "float32" in whole.unpacked_because


def test_without_vector_instructions_codes_are_unpacked_for_the_same_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = Packed(tmp_path, "Q4_1", has_head=False)
    expected = logits([packed.load(TINY, torch.float32)])
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    whole = packed.load(TINY, torch.bfloat16, "int4")
    assert "DEFAULT" in whole.unpacked_because
    bfloat16 = off_by(logits([packed.load(TINY, torch.bfloat16)]), expected)
    assert off_by(logits([whole]), expected) < 1.5 * bfloat16  # its weights are rounded as bfloat16's are


def test_rounded_weights_are_kept_for_the_next_start(tmp_path: Path) -> None:
    packed = Packed(tmp_path, "Q8_0", has_head=False)
    folder = tmp_path / "quantised"
    cache = QuantisedCache(folder, lambda: 10**9)

    def load() -> torch.Tensor:
        return logits([packed.load(TINY, torch.bfloat16, "int4", cache)])

    first = load()
    written = {path: path.stat().st_ino for path in folder.iterdir()}
    assert torch.equal(load(), first)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == written  # read, not written anew
    damaged = max(written)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert torch.equal(load(), first)
    assert damaged.read_bytes() == whole


def test_a_long_rounding_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.quantised_loading._SAY_EVERY_S", 0.0)
    packed = Packed(tmp_path, "Q8_0", has_head=False)
    with capture_logs() as logs:
        packed.load(TINY, torch.bfloat16, "int4")
    assert {entry["where"] for entry in logs if entry["event"] == "quantising"} == {"block 1 of 2", "block 2 of 2"}


async def test_the_engine_keeps_what_it_rounds(tmp_path: Path) -> None:
    packed = Packed(tmp_path, "Q8_0", has_head=False)
    cache = QuantisedCache(tmp_path / "quantised", lambda: 10**9)
    key = SpanKey(revision=packed.model.revision, blocks=TINY, precision="bfloat16", quantization="int4")
    request = LoadRequest(key=key, config_folder=packed.config, files=tuple(packed.files(TINY)))
    async with Engine(device=CPU, kv_budget_bytes=10**6, n_threads=1, quantised=cache) as engine:
        loaded = await engine.load(request)
    assert loaded.unpacked_because == ""
    assert cache.total_size() > 0


async def test_an_idle_engine_has_steps_of_fewer_bits_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine_thread.IDLE_S", 0.01)
    packed = Packed(tmp_path, "Q8_0", has_head=False)
    with capture_logs() as logs:
        async with Engine(device=CPU, kv_budget_bytes=10**6, n_threads=1) as engine:
            for quantization in ("int4", None):
                key = SpanKey(
                    revision=packed.model.revision, blocks=TINY, precision="bfloat16", quantization=quantization
                )
                await engine.load(
                    LoadRequest(key=key, config_folder=packed.config, files=tuple(packed.files(TINY)))
                )
            await eventually(lambda: sum(entry["event"] == "stage_recorded" for entry in logs) == 2)
    assert [entry["differs_by"] for entry in logs if entry["event"] == "stage_recorded"] == [0.0, 0.0]


def test_a_quantised_span_takes_no_more_than_was_planned(tmp_path: Path) -> None:
    packed = Packed(tmp_path, "Q8_0", has_head=False)
    whole = packed.load(TINY, torch.bfloat16, "int8")
    # the intermediate size is 96, and rows are padded to whole blocks of 64
    assert whole.n_weight_bytes() < 1.35 * span_weight_bytes(packed.model.manifest, TINY, "int8")


def test_a_model_whose_weights_are_elsewhere_is_refused(checkpoint: Callable[[str], TinyCheckpoint]) -> None:
    whole = checkpoint("gpt2")
    with pytest.raises(ConfigError, match=r"--precision int4: .* gpt2 model .*bfloat16"):
        load_stage(whole.folder, whole.files(WHOLE), WHOLE, dtype=torch.bfloat16, device=CPU, quantization="int4")
