"""What stages answer to the probes of audits: of tiny models of every architecture, honest ones and cheats."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from coordinator.policy.audit_probe import N_POSITIONS, STEPS, Probe, Projection, projected
from coordinator.policy.audit_rules import Held
from protocol.errors import BrigadeError
from protocol.ids import BlockRange
from tests.support.tiny_models import TINY_CONFIGS, save_tiny_model, split_checkpoint
from worker.loaded_stage import load_stage
from worker.stage import Stage, StageInput

HIDDEN = 64
"""Wide enough for codes of 4 and 8 bits."""
WHOLE = BlockRange(0, 4)
RANGES = (BlockRange(0, 2), BlockRange(1, 2), BlockRange(2, 4), WHOLE)
_WIDTHS = {
    "hidden_size": HIDDEN, "n_embd": HIDDEN, "moe_intermediate_size": HIDDEN, "word_embed_proj_dim": HIDDEN,
    "intermediate_size": 2 * HIDDEN, "ffn_dim": 2 * HIDDEN,
}  # fmt: skip
FORMS: dict[Held, tuple[torch.dtype, Any]] = {
    Held(weights="float32"): (torch.float32, None),
    Held(weights="float16"): (torch.float16, None),
    Held(weights="bfloat16"): (torch.bfloat16, None),
    Held(weights="float32", kv="int8"): (torch.float32, None),
    Held(weights="bfloat16", kv="int8"): (torch.bfloat16, None),
    Held(weights="int8"): (torch.bfloat16, "int8"),
    Held(weights="int4"): (torch.bfloat16, "int4"),
}
"""In what blocks are held: what is computed in, and the codes that weights are."""


@dataclass(frozen=True, slots=True)
class TinyFiles:
    """A tiny model on disk."""

    folder: Path
    block_files: tuple[Path, ...]
    rest: Path
    architecture: str
    vocab_size: int

    def stage(self, blocks: BlockRange, held: Held) -> Stage | None:
        """A stage of these blocks; None where they can't be held so."""
        return self.loaded(blocks, *FORMS[held])

    def loaded(self, blocks: BlockRange, dtype: torch.dtype, quantization: Any) -> Stage | None:
        """Likewise, by what is computed in and the codes that weights are."""
        is_end = blocks.start == 0 or blocks.end == len(self.block_files)
        files = (*self.block_files[blocks.start : blocks.end], *([self.rest] if is_end else []))
        try:
            return load_stage(
                self.folder, files, blocks, dtype=dtype, device=torch.device("cpu"), quantization=quantization
            )
        except BrigadeError:
            return None

    def rounded(self, dtype: torch.dtype) -> TinyFiles:
        """The same with the weights that `dtype` makes of these, still in float32."""

        def copied(file: Path) -> Path:
            copy = file.with_name(f"{dtype}-{file.name}")
            save_file({name: each.to(dtype).float() for name, each in load_file(file).items()}, copy)
            return copy

        return replace(self, block_files=tuple(map(copied, self.block_files)), rest=copied(self.rest))

    def altered(self, how: Callable[[dict[str, torch.Tensor]], None]) -> TinyFiles:
        """The same with other weights in block 1."""
        weights = load_file(self.block_files[1])
        how(weights)
        other = self.block_files[1].with_name("altered.safetensors")
        save_file(weights, other)
        return replace(self, block_files=(self.block_files[0], other, *self.block_files[2:]))


@contextmanager
def tiny_files(architecture: str, *, seed: int = 0) -> Iterator[TinyFiles]:
    """A tiny random model of an architecture, in a folder that goes with the context."""
    config = TINY_CONFIGS[architecture]()
    for name, width in _WIDTHS.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, width)
    with tempfile.TemporaryDirectory(prefix="brigade-audits-") as folder:
        root = Path(folder)
        model = save_tiny_model(config, root / "model", seed=seed)
        block_files, rest = split_checkpoint(root / "model", root / "split")
        yield TinyFiles(root / "model", tuple(block_files), rest, type(model).__name__, config.vocab_size)


def answer(stage: Stage, held: Held, seed: str) -> Projection:
    """What an honest worker, or one whose stage was tampered with, gives to the probe."""
    probe = Probe(seed=seed, blocks=stage.blocks, hidden_size=stage.hidden_size, vocab_size=stage.vocab_size)
    cache = stage.new_cache(N_POSITIONS, held.kv)
    rows: list[list[float]] = []
    for n_tokens in STEPS:
        position = len(rows)
        if probe.takes_tokens:
            payload = torch.tensor(probe.token_ids(position, n_tokens))
        else:
            data = bytearray(probe.states(position, n_tokens))
            payload = torch.frombuffer(data, dtype=torch.float32).reshape(n_tokens, -1).to(stage.dtype)
        one = StageInput(payload=payload, position=position, cache=cache)
        rows += stage.run([one])[0].float().tolist()
    return projected(seed, rows)


def inputs_of(probes: Sequence[Probe]) -> torch.Tensor:
    """What the probes, all of the same blocks, send: token ids (probes, positions), or states (.., hidden_size)."""
    if probes[0].takes_tokens:
        starts = [sum(STEPS[:number]) for number in range(len(STEPS))]
        steps = tuple(zip(starts, STEPS, strict=True))
        return torch.tensor([[token for step in steps for token in probe.token_ids(*step)] for probe in probes])
    codes = bytearray(b"".join(probe.state_codes(0, N_POSITIONS) for probe in probes))
    return torch.frombuffer(codes, dtype=torch.int8).reshape(len(probes), N_POSITIONS, -1) / 512.0


@torch.inference_mode()
def states_of(stage: Stage, inputs: torch.Tensor) -> torch.Tensor:
    """What an honest worker's blocks make of `inputs_of` probes: (probes, positions, hidden_size).

    Each probe goes whole in one step: what `answer` does, as another machine might, with sums in another order.
    Hundreds at once take the time of a few.
    """
    if stage.dtype == torch.float64:  # for which grouped products of experts are not made
        for config in stage.configs:
            config._experts_implementation_internal = "eager"  # noqa: SLF001
    given: dict[str, Any] = {"use_cache": False}
    if stage.is_first:
        given["input_ids"] = inputs
    else:
        given["inputs_embeds"] = stage._taps.incoming = inputs.to(stage.dtype)  # noqa: SLF001 - `Stage` runs sessions
    if stage._takes_position_ids:  # noqa: SLF001
        given["position_ids"] = torch.arange(N_POSITIONS).expand(len(inputs), -1)
    return stage._rows(stage._base(**given)[0]).float()  # noqa: SLF001


Attack = Callable[[Stage], None]


def _layer(stage: Stage, index: int) -> torch.nn.Module:
    layer: torch.nn.Module = stage._model.model.layers[index]  # noqa: SLF001 - a cheat has its own stage
    return layer


def other_weights_of_one_block(weights: dict[str, torch.Tensor]) -> None:
    """One block of another model."""
    for name, matrix in weights.items():
        if matrix.dim() > 1:
            weights[name] = matrix.std() * torch.randn_like(matrix)


def one_matrix_a_little_off(weights: dict[str, torch.Tensor]) -> None:
    """Noise of 1 % of its size on one matrix."""
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name] = weights[name] + 0.01 * weights[name].std() * torch.randn_like(weights[name])


def zeros(stage: Stage) -> None:
    """Nothing is computed."""
    _change_output(stage, -1, torch.zeros_like)


def skips_a_block(stage: Stage) -> None:
    """One block hands on what it was given."""
    _pass_through(_layer(stage, 1))


def leaves_early(stage: Stage) -> None:
    """The last half of the blocks is left out."""
    n_blocks = len(stage.blocks)
    for index in range(n_blocks - n_blocks // 2, n_blocks):
        _pass_through(_layer(stage, index))


def garbage(share: float, seed: int) -> Attack:
    """Numbers of the right size that mean nothing, on so many of the steps."""
    rng = Random(seed)  # noqa: S311 - printed, to be repeated

    def changed(states: torch.Tensor) -> torch.Tensor:
        return states.std() * torch.randn_like(states) if rng.random() < share else states

    def attack(stage: Stage) -> None:
        _change_output(stage, -1, changed)

    return attack


def _pass_through(layer: torch.nn.Module) -> None:
    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    layer.register_forward_hook(hook, with_kwargs=True, prepend=True)


def _change_output(stage: Stage, index: int, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (how(output[0]), *output[1:]) if isinstance(output, tuple) else how(output)

    _layer(stage, index).register_forward_hook(hook, prepend=True)
