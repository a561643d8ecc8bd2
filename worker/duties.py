"""What a worker does next, decided from what it was told and what it has. Pure: no waiting, no clock.

Make before break: spans that are wanted are loaded before those that aren't are dropped, if memory allows both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, FileHash, Revision
from protocol.manifest import Manifest, ModelFile
from protocol.messages import QUANTISED_PRECISION, Precision, Quantization
from worker.byte_sizes import size_text
from worker.steps import SpanKey

RETIRE_AFTER_S = 3.0
"""How long a span serves on after its replacement is ready: routes made just before are about to be used."""
_RESERVE_BYTES = 512 * 2**20
"""Memory that is left to the system and to the libraries' own buffers."""
_KV_FLOOR_BYTES = 64 * 2**20
"""Least room for key-value caches, below which weights are taken not to fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperLimits:
    """What the worker may use."""

    precision: Precision
    memory_bytes: int
    kv_memory_bytes: int | None
    drain_s: float
    quantization: Quantization | None = None
    draft_bytes: int = 0  # of a draft model, beside `memory_bytes`

    def key(self, span: SpanAssignment) -> SpanKey:
        """What the engine calls an assigned span."""
        return span_key(span, self.precision, self.quantization)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSpan:
    """An assigned span. `files` (weights and auxiliary) is None until the model's manifest is there."""

    span: SpanAssignment
    files: tuple[ModelFile, ...] | None
    weight_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """A loaded span. The times are seconds of any clock that goes forward."""

    key: SpanKey
    weight_bytes: int
    unwanted_since_s: float | None = None
    retired_since_s: float | None = None
    next_drop_s: float = 0.0
    """Not to be tried before: sessions used it a moment ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that the next duty depends on."""

    wanted: tuple[WantedSpan, ...]
    loaded: tuple[LoadedWeights, ...]
    held: Collection[FileHash]
    """Files on disk, checked."""
    precision: Precision
    memory_bytes: int
    kv_memory_bytes: int | None
    now_s: float
    drain_s: float
    quantization: Quantization | None = None
    draft_bytes: int = 0
    retry_at_s: Mapping[SpanAssignment, float] = field(default_factory=dict)
    """Of spans that failed: when to try again; infinite: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchManifest:
    """Get the span's manifest from the coordinator."""

    span: SpanAssignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Get the files that the span still misses."""

    span: SpanAssignment
    files: tuple[ModelFile, ...]
    n_held: int
    """Files of the span that are there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load the span; there is memory for it."""

    span: SpanAssignment
    key: SpanKey
    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Report that the span can't be held here, and why."""

    span: SpanAssignment
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Let no new session use the span."""

    key: SpanKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Unload the span; with `is_forced`, its sessions are closed."""

    key: SpanKey
    is_forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do until something changes, or until then."""

    until_s: float | None


Duty = FetchManifest | Download | Load | Refuse | Retire | Drop | Wait


def next_duty(situation: Situation) -> Duty:
    """The first thing that there is to do."""
    for decide in (_drop, _retire, _fetch_manifest, _download, _refuse, _load, _make_room):
        duty = decide(situation)
        if duty is not None:
            return duty
    return _wait(situation)


def span_key(span: SpanAssignment, precision: Precision, quantization: Quantization | None = None) -> SpanKey:
    """What the engine calls the assigned span: in the worker's own format, where the assignment names no other."""
    if span.quantization is not None:
        precision, quantization = QUANTISED_PRECISION, span.quantization
    return SpanKey(revision=span.revision, blocks=span.blocks, precision=precision, quantization=quantization)


def span_files(manifest: Manifest, blocks: BlockRange) -> tuple[ModelFile, ...]:
    """Every file that holding these blocks takes: weights, config, tokenizer; each once."""
    files = (*manifest.weight_files(blocks), *manifest.auxiliary)
    return tuple({file.sha256: file for file in files}.values())


def files_of(
    spans: Collection[tuple[Revision, BlockRange]], manifests: Mapping[Revision, Manifest]
) -> frozenset[FileHash]:
    """The files of all of these spans, as far as their manifests are known and have such blocks."""
    known = [(manifests[revision], blocks) for revision, blocks in spans if revision in manifests]
    there = (span_files(manifest, blocks) for manifest, blocks in known if blocks.end <= manifest.n_blocks)
    return frozenset(file.sha256 for files in there for file in files)


def default_memory_bytes(free_bytes: int) -> int:
    """How much of the free memory a worker takes if nobody says: all but a reserve, at least half."""
    return max(free_bytes - max(_RESERVE_BYTES, free_bytes // 10), free_bytes // 2)


def kv_budget_bytes(memory_bytes: int, n_weight_bytes: int, kv_memory_bytes: int | None) -> int:
    """Bytes for key-value caches: what is set, or most of what the weights leave (steps need room as well)."""
    left = max(0, memory_bytes - n_weight_bytes)
    return min(left, kv_memory_bytes) if kv_memory_bytes is not None else left * 4 // 5


def _drop(situation: Situation) -> Duty | None:
    for loaded in situation.loaded:
        if loaded.retired_since_s is not None and loaded.next_drop_s <= situation.now_s:
            is_forced = situation.now_s >= loaded.retired_since_s + situation.drain_s
            return Drop(key=loaded.key, is_forced=is_forced)
    return None


def _retire(situation: Situation) -> Duty | None:
    """Retire what isn't wanted, once everything that is wanted has been ready for a moment."""
    if _missing(situation):
        return None
    for loaded in _unwanted(situation):
        if loaded.retired_since_s is None and situation.now_s >= _retire_at_s(loaded, situation):
            return Retire(key=loaded.key)
    return None


def _fetch_manifest(situation: Situation) -> Duty | None:
    for wanted in _due(situation):
        if wanted.files is None:
            return FetchManifest(span=wanted.span)
    return None


def _download(situation: Situation) -> Duty | None:
    for wanted in _due(situation):
        files = wanted.files or ()
        missing = tuple(file for file in files if file.sha256 not in situation.held)
        if missing:
            return Download(span=wanted.span, files=missing, n_held=len(files) - len(missing))
    return None


def _refuse(situation: Situation) -> Duty | None:
    """A span that doesn't fit even when everything unwanted is gone."""
    for wanted in _due(situation):
        kept = sum(loaded.weight_bytes for loaded in situation.loaded if _is_wanted(loaded, situation))
        if _free_bytes(situation, kept) < wanted.weight_bytes:
            return Refuse(span=wanted.span, reason=_too_big(wanted, situation, kept))
    return None


def _load(situation: Situation) -> Duty | None:
    used = sum(loaded.weight_bytes for loaded in situation.loaded)
    for wanted in _due(situation):
        if wanted.files is not None and wanted.weight_bytes <= _free_bytes(situation, used):
            key = _key(wanted.span, situation)
            return Load(span=wanted.span, key=key, files=wanted.files)
    return None


def _make_room(situation: Situation) -> Duty | None:
    """Something wanted doesn't fit beside what isn't: break before make, since there is no other way."""
    due = _due(situation)
    staying = sum(loaded.weight_bytes for loaded in situation.loaded if loaded.retired_since_s is None)
    # what is on its way out already may be enough
    if not due or any(wanted.weight_bytes <= _free_bytes(situation, staying) for wanted in due):
        return None
    for loaded in _unwanted(situation):
        if loaded.retired_since_s is None:
            return Retire(key=loaded.key)
    return None


def _wait(situation: Situation) -> Wait:
    times = [at_s for span, at_s in situation.retry_at_s.items() if span in {w.span for w in _missing(situation)}]
    times += [loaded.next_drop_s for loaded in situation.loaded if loaded.retired_since_s is not None]
    if not _missing(situation):
        times += [_retire_at_s(one, situation) for one in _unwanted(situation) if one.retired_since_s is None]
    return Wait(until_s=min(filter(math.isfinite, times), default=None))


def _key(span: SpanAssignment, situation: Situation) -> SpanKey:
    return span_key(span, situation.precision, situation.quantization)


def _missing(situation: Situation) -> list[WantedSpan]:
    keys = {loaded.key for loaded in situation.loaded}
    return [w for w in situation.wanted if _key(w.span, situation) not in keys]


def _due(situation: Situation) -> list[WantedSpan]:
    """Wanted spans that aren't loaded, less those whose last failure is too fresh."""
    return [w for w in _missing(situation) if situation.retry_at_s.get(w.span, 0.0) <= situation.now_s]


def _is_wanted(loaded: LoadedWeights, situation: Situation) -> bool:
    return any(_key(w.span, situation) == loaded.key for w in situation.wanted)


def _unwanted(situation: Situation) -> list[LoadedWeights]:
    return [loaded for loaded in situation.loaded if not _is_wanted(loaded, situation)]


def _retire_at_s(loaded: LoadedWeights, situation: Situation) -> float:
    since_s = situation.now_s if loaded.unwanted_since_s is None else loaded.unwanted_since_s
    return since_s + RETIRE_AFTER_S


def _free_bytes(situation: Situation, used_bytes: int) -> int:
    """Memory that weights may still take, when `used_bytes` of them are there."""
    floor = min(_KV_FLOOR_BYTES, situation.memory_bytes // 10)
    reserved = floor if situation.kv_memory_bytes is None else situation.kv_memory_bytes
    return situation.memory_bytes - reserved - used_bytes


def _too_big(wanted: WantedSpan, situation: Situation, kept_bytes: int) -> str:
    free = max(0, _free_bytes(situation, kept_bytes))
    held_as, draft_bytes = _key(wanted.span, situation).held_as, situation.draft_bytes
    drafts = f"{size_text(draft_bytes)} of --draft-model, " if draft_bytes else ""
    return (
        f"blocks {wanted.span.blocks} in {held_as} need {size_text(wanted.weight_bytes)} of memory and "
        f"{size_text(free)} can be used ({size_text(situation.memory_bytes + draft_bytes)} in all, less {drafts}"
        f"{size_text(kept_bytes)} of other wanted blocks and room for sessions); next: the coordinator assigns "
        "fewer blocks, unless --blocks names them; or give it more with --memory"
    )
