"""One architecture of transformers, tiny and random: packed, cut into stages, and held against the library's own.

As a cluster does it: what `coord model add` makes of the folder is what the stages load.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.architecture_configs import N_BLOCKS, VOCAB_SIZE, save_random_model, tiny_config
from coordinator.file_store import FileStore
from coordinator.packing import pack_model
from coordinator.packing.model_config import read_config
from coordinator.packing.opened_source import checked_numbers
from protocol.errors import BrigadeError
from protocol.ids import BlockRange
from protocol.manifest import Manifest
from worker.batching_trial import settle_batching
from worker.kv_cache import KVCache
from worker.loaded_stage import load_stage
from worker.stage import Stage, StageInput

Verdict = Literal["equal", "alone", "refused", "wrong", "fails", "untried"]
"""Equal to transformers; equal, but sessions run one at a time; refused when it is added; other results; an error
where none should be; or there is no tiny model of it to try."""

CUTS = ((0, 2, N_BLOCKS), (0, 1, 3, N_BLOCKS))
STEPS = ((0, 7), (7, 12), (12, 13), (13, 14), (14, 20))
"""Prompts in pieces, single tokens, and a piece again."""
ROUNDS = ((7, 1, 12, 3), (1, 1, 1, 1), (5, 1, 0, 1), (1, 4, 1, 6), (0, 1, 1, 1))
"""New tokens of four sessions that run together."""
N_PROMPT, N_ANSWER = 10, 10
TOLERANCE = 1e-4
"""Largest difference of a hidden state as a share of the largest state, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one architecture. `said` is the refusal, the error or the reason."""

    model_type: str
    verdict: Verdict
    said: str = ""
    largest_difference: float = 0.0
    own_difference: float = 0.0
    """By how much transformers differs from itself, with its own cache from without."""
    kv_elements: tuple[int, int] = (0, 0)
    """Of one token in one block: as the manifest says, and the most that a block really took."""


def tried(model_type: str, folder: Path, **settings: Any) -> Outcome:
    """Make, pack, cut, run and compare. What goes wrong is in the outcome. `settings` are the config's."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    goes_wrong: Verdict = "untried"
    try:
        config = tiny_config(model_type, **settings)
        config.dtype = torch.float32
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
        config.save_pretrained(folder / "config")
        goes_wrong = "fails"
        if refusal := _refusal(folder / "config"):
            return Outcome(model_type=model_type, verdict="refused", said=refusal)
        goes_wrong = "untried"
        model = _saved(config, folder / "model")
        own = _own_difference(model)
        goes_wrong = "fails"
        return replace(_compared(model_type, model, folder), own_difference=own)
    except Exception as exc:  # noqa: BLE001 - whatever an architecture's code raises is what comes out
        return Outcome(model_type=model_type, verdict=goes_wrong, said=_shown(exc))


def _refusal(folder: Path) -> str:
    """What adding says of a folder with a config alone, if it refuses it for what that says."""
    try:
        checked_numbers(read_config(folder, link_root=folder)[0])
    except BrigadeError as exc:
        return str(exc)
    return ""


def _saved(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """A random model of the config, in the folder; as transformers loads it from there again."""
    save_random_model(config, folder)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded.eval()


def _compared(model_type: str, model: PreTrainedModel, folder: Path) -> Outcome:
    store = FileStore(folder / "store")
    try:
        packed = pack_model(str(folder / "model"), store, lambda *_: None, allow_no_tokenizer=True)
    except BrigadeError as exc:
        return Outcome(model_type=model_type, verdict="refused", said=str(exc))
    packed_model = _PackedModel(packed.manifest, store, folder / "worker")
    worst, because = 0.0, ""
    wrong: list[str] = []
    for cut in CUTS:
        stages = packed_model.stages(cut)
        worst = max(worst, _difference_alone(stages, model))
        if not _are_greedy(model, _greedy(stages)):
            wrong.append(f"other greedy tokens, cut {cut}")
        for stage in stages:
            settle_batching(stage)
            because = because or stage.batching.because
        worst = max(worst, _difference_together(stages, model))
    kv_elements = max(n // 4 for stage in stages for n in stage.kv_bytes_by_block())
    if worst > TOLERANCE:
        wrong.append(f"states differ by {worst:.1g}")
    return Outcome(
        model_type=model_type,
        verdict="wrong" if wrong else "alone" if because else "equal",
        said="; ".join(wrong) or because,
        largest_difference=worst,
        kv_elements=(packed.manifest.kv_elements_per_token, kv_elements),
    )


@dataclass(frozen=True, slots=True)
class _PackedModel:
    manifest: Manifest
    store: FileStore
    folder: Path

    def stages(self, cut: Sequence[int]) -> list[Stage]:
        """As workers load them."""
        self.folder.mkdir(exist_ok=True)
        for file in self.manifest.auxiliary:
            (self.folder / file.name).write_bytes(self.store.path(file.sha256).read_bytes())
        return [self._stage(BlockRange(start, end)) for start, end in pairwise(cut)]

    def _stage(self, blocks: BlockRange) -> Stage:
        files = [self.store.path(file.sha256) for file in self.manifest.weight_files(blocks)]
        return load_stage(self.folder, files, blocks, dtype=torch.float32, device=torch.device("cpu"))


@torch.inference_mode()
def _whole(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the whole model, (n_tokens, vocab), without any cache."""
    logits: torch.Tensor = model(ids[None].long(), use_cache=False).logits[0]
    return logits


@torch.inference_mode()
def _in_pieces(model: PreTrainedModel, ids: torch.Tensor, pieces: Sequence[int]) -> torch.Tensor:
    """The same, as transformers gives it piece by piece with its own cache."""
    cache = DynamicCache(config=model.config)
    got = [
        model(piece[None].long(), past_key_values=cache, use_cache=True).logits[0]
        for piece in ids.split(list(pieces))
        if len(piece)
    ]
    return torch.cat(got)


def _sessions() -> list[tuple[torch.Tensor, Sequence[int]]]:
    """Token ids and pieces of each."""
    return [(_token_ids(sum(pieces), seed), pieces) for seed, pieces in enumerate(zip(*ROUNDS, strict=True))]


def _both(model: PreTrainedModel, ids: torch.Tensor, pieces: Sequence[int]) -> list[torch.Tensor]:
    """What transformers gives with and without its cache: it may differ from itself, and either is right then."""
    return [_whole(model, ids), _in_pieces(model, ids, pieces)]


def _own_difference(model: PreTrainedModel) -> float:
    return max(_difference(_in_pieces(model, ids, pieces), _whole(model, ids)) for ids, pieces in _sessions())


def _difference_alone(stages: Sequence[Stage], model: PreTrainedModel) -> float:
    ids = _token_ids(STEPS[-1][1], 1)
    caches = [stage.new_cache(len(ids)) for stage in stages]
    got = []
    for start, end in STEPS:
        _through(stages, caches, _token_ids(end - start, 2), start, 1)  # a guess that doesn't hold
        for cache in caches:
            cache.truncate(start)
        got.append(_through(stages, caches, ids[start:end], start, end - start))
    expected = _both(model, ids, [end - start for start, end in STEPS])
    return min(_difference(torch.cat(got), one) for one in expected)


def _difference_together(stages: Sequence[Stage], model: PreTrainedModel) -> float:
    sessions = _sessions()
    expected = [_both(model, ids, pieces) for ids, pieces in sessions]
    caches = [[stage.new_cache(len(ids)) for stage in stages] for ids, _ in sessions]
    got: list[list[torch.Tensor]] = [[] for _ in sessions]
    for n_tokens in ROUNDS:
        running = [index for index, n_new in enumerate(n_tokens) if n_new]
        starts = [of_session[0].length for of_session in caches]
        passed = [sessions[i][0][starts[i] : starts[i] + n_tokens[i]] for i in running]
        for number, stage in enumerate(stages):
            inputs = [
                StageInput(
                    payload=payload,
                    position=starts[i],
                    cache=caches[i][number],
                    n_logits=n_tokens[i] if stage.is_last else 0,
                )
                for i, payload in zip(running, passed, strict=True)
            ]
            passed = stage.run(inputs)
        for i, logits in zip(running, passed, strict=True):
            got[i].append(logits)
    return max(
        min(_difference(torch.cat(logits), one) for one in both) for logits, both in zip(got, expected, strict=True)
    )


def _greedy(stages: Sequence[Stage]) -> list[int]:
    """What stages say after a prompt, token by token."""
    ids = _token_ids(N_PROMPT, 3)
    caches = [stage.new_cache(N_PROMPT + N_ANSWER) for stage in stages]
    answer: list[int] = []
    position = 0
    while len(answer) < N_ANSWER:
        logits = _through(stages, caches, ids, position, 1)
        position += len(ids)
        ids = logits.argmax(-1).int()
        answer.append(int(ids))
    return answer


def _are_greedy(model: PreTrainedModel, answer: Sequence[int]) -> bool:
    """Whether transformers says nothing else, with its cache or without."""
    ids = torch.cat([_token_ids(N_PROMPT, 3), torch.tensor(answer, dtype=torch.int32)])
    both = _both(model, ids, [N_PROMPT, *(1 for _ in answer)])
    return any(one[N_PROMPT - 1 : -1].argmax(-1).tolist() == list(answer) for one in both)


def _through(
    stages: Sequence[Stage], caches: Sequence[KVCache], payload: torch.Tensor, position: int, n_logits: int
) -> torch.Tensor:
    """Logits of the last positions, (n_logits, vocab)."""
    for stage, cache in zip(stages, caches, strict=True):
        one = StageInput(payload=payload, position=position, cache=cache, n_logits=n_logits if stage.is_last else 0)
        payload = stage.run([one])[0]
    return payload


def _difference(got: torch.Tensor, right: torch.Tensor) -> float:
    share = float((got - right).abs().max() / right.abs().max())
    return share if share == share else float("inf")


def _token_ids(n_tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (n_tokens,), generator=generator, dtype=torch.int32)


def _shown(exc: Exception) -> str:
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__}: {str(exc)[:300]} ({Path(last.filename).name}:{last.lineno})"
