"""Fewer bits for a model that doesn't fit otherwise: which workers hold its blocks as codes, and in words why.

Only workers that leave their precision open are asked, as few as it takes, in as many bits as it takes: first 8 for
one worker after the other, those first that gain most room, then 4 alike. What is held so stays so until it is
placed anew, so that nothing moves back and forth with a little memory.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Self

from msgspec.structs import replace

from coordinator.policy.board import Board
from coordinator.policy.coverage import spans_of
from coordinator.policy.gap_filling import Candidate
from coordinator.policy.mending import fill_model
from coordinator.policy.sizing import KV_TARGETS, span_bytes, weight_capacity_bytes
from coordinator.policy.standing import listed, named
from coordinator.policy.state import ModelRecord, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, WorkerId
from protocol.messages import Quantization, WeightFormat

Quantizations = Mapping[WorkerId, Quantization]
Order = Sequence[tuple[WorkerId, Quantization]]
"""Who is given fewer bits, one after the other; who comes twice has those of the later time."""

_BY_BITS: tuple[Quantization, ...] = ("int8", "int4")
_MAX_TRIED = 8
"""Steps that are planned in full, from the first on by which the sum of all room is enough; then the last."""


def filled_quantised(board: Board, model: ModelRecord) -> Board | None:
    """The board with all of the model held, some of it in fewer bits; None if that mayn't be, or is no help."""
    open_workers = [worker for worker in board.assignable if is_open(worker)]
    if not board.state.settings.auto_quantize or not open_workers:
        return None
    rooms = _Rooms.of(board, model)
    order = _order(rooms, open_workers)
    enough = range(rooms.fewest_enough(order), len(order) + 1)
    for n in dict.fromkeys([*enough[:_MAX_TRIED], *enough[-1:]]):
        trial = board.copy()
        trial.quantizations = dict(order[:n])
        if fill_model(trial, model) or fill_model(trial, model):
            trial.quantizations = {}
            _give_bits_back(trial, board, model)
            return trial
    return None


def is_open(worker: WorkerRecord) -> bool:
    """Whether its operator left it to the coordinator to have blocks held in fewer bits."""
    return worker.device is not None and worker.device.is_precision_open and bool(worker.device.quantizations)


def fitting_quantization(worker: WorkerRecord, model: ModelRecord, blocks: BlockRange) -> Quantization | None:
    """Of a worker whose operator fixed the blocks alone: the most bits that fit. None: as usual, or none do."""
    assert worker.device is not None
    possible = [q for q in _BY_BITS if q in worker.device.quantizations] if is_open(worker) else []
    for quantization in (None, *possible):
        held_as = quantization or worker.device.held_as
        if span_bytes(model.manifest, blocks, held_as, 0) <= weight_capacity_bytes(worker.device):
            return quantization
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rooms:
    """What those have room for who may be given other blocks of a model than they have."""

    wanted: tuple[BlockRange, ...]
    """What they have to hold, all together."""
    n_blocks: int
    """Of the model."""
    candidates: Mapping[Quantization | None, Mapping[WorkerId, Candidate]]
    """By what they hold the model in; None: as usual."""

    @classmethod
    def of(cls, board: Board, model: ModelRecord) -> Self:
        """Of all workers, in every format; who can't do one is there all the same."""
        bare = board.without(model)
        candidates: dict[Quantization | None, dict[WorkerId, Candidate]] = {}
        for quantization in (None, *_BY_BITS):
            bare.quantizations = {} if quantization is None else dict.fromkeys(bare.spans, quantization)
            candidates[quantization] = {c.worker_id: c for c in bare.free(model, KV_TARGETS[-1])}
        return cls(wanted=bare.gaps(model), n_blocks=model.manifest.n_blocks, candidates=candidates)

    @property
    def n_wanted(self) -> int:
        """Blocks that have to be held."""
        return sum(len(blocks) for blocks in self.wanted)

    def fewest_enough(self, order: Order) -> int:
        """Fewer of these can't do: all workers together lack the room, however blocks are laid out.

        One more than there are if they lack it even so.
        """
        numbers = range(1, len(order) + 1)
        return 1 + bisect_left(numbers, self.n_wanted, key=lambda n: self.n_possible(dict(order[:n])))

    def n_possible(self, choice: Quantizations) -> int:
        """Most blocks that there is room for, those at the ends of the model with what belongs there.

        A worker has one range of a model: who holds both ends holds all of it.
        """
        free = [self.candidates[choice.get(worker_id)][worker_id] for worker_id in self.candidates[None]]
        has_first = any(blocks.start == 0 for blocks in self.wanted)
        has_last = any(blocks.end == self.n_blocks for blocks in self.wanted)
        alone = max((c.cap(is_first=has_first, is_last=has_last) for c in free), default=0)
        firsts = nsmallest(2, ((_less(c, is_first=has_first), c.worker_id) for c in free))
        lasts = nsmallest(2, ((_less(c, is_last=has_last), c.worker_id) for c in free))
        less = min((m + n for m, first in firsts for n, last in lasts if first != last), default=math.inf)
        return alone if math.isinf(less) else max(alone, sum(candidate.cap() for candidate in free) - int(less))

    def gain(self, worker_id: WorkerId, quantization: Quantization) -> int:
        """How many blocks more the worker can hold so than as usual."""
        return self.candidates[quantization][worker_id].cap() - self.candidates[None][worker_id].cap()


def _less(candidate: Candidate, *, is_first: bool = False, is_last: bool = False) -> float:
    """How many blocks an end of the model takes the room of; endless if there is none beside it."""
    n = candidate.cap(is_first=is_first, is_last=is_last)
    return candidate.cap() - n if n > 0 else math.inf


def loses_bits(now: Iterable[SpanAssignment], then: Iterable[SpanAssignment]) -> bool:
    """Whether a model's spans would have fewer bits then than any of them has now: no speed is worth that."""
    fewest = {span.model: _rank(span.quantization) for span in sorted(now, key=lambda s: _rank(s.quantization))}
    return any(span.model in fewest and _rank(span.quantization) > fewest[span.model] for span in then)


def _rank(quantization: Quantization | None) -> int:
    """How few bits; 0: as usual."""
    return 0 if quantization is None else 1 + _BY_BITS.index(quantization)


def _order(rooms: _Rooms, workers: Sequence[WorkerRecord]) -> Order:
    """Who is to have fewer bits, one after the other: each step gives no worker less room than the one before."""
    order: list[tuple[WorkerId, Quantization]] = []
    for quantization in _BY_BITS:
        gains = {
            worker.worker_id: rooms.gain(worker.worker_id, quantization)
            for worker in workers
            if worker.worker_id in rooms.candidates[None] and _is_less(worker, quantization)
        }
        order += [(worker_id, quantization) for worker_id in sorted(gains, key=lambda w: (-gains[w], w))]
    return order


def _is_less(worker: WorkerRecord, quantization: Quantization) -> bool:
    """Whether the worker can hold weights so, and has fewer bits then than as usual."""
    assert worker.device is not None
    own = worker.device.quantization
    return quantization in worker.device.quantizations and (
        own is None or _BY_BITS.index(own) < _BY_BITS.index(quantization)
    )


def _give_bits_back(board: Board, before: Board, model: ModelRecord) -> None:
    """Have what was given in fewer bits than its worker needs for it held in more, one worker after the other."""
    for worker in board.assignable:
        assert worker.device is not None
        for span in spans_of(model, board.spans[worker.worker_id]):
            if span.quantization is None or span in before.spans[worker.worker_id]:
                continue
            spans = board.spans[worker.worker_id]
            more = [q for q in _BY_BITS[: _BY_BITS.index(span.quantization)] if q in worker.device.quantizations]
            for quantization in (None, *more):
                wider = replace(span, quantization=quantization)
                board.spans[worker.worker_id] = tuple(wider if s == span else s for s in spans)
                if board.room_bytes(worker, KV_TARGETS[-1]) >= 0 and not board.breaks_a_route():
                    break
                board.spans[worker.worker_id] = spans


# ------------------------------------------------------------------ in words


def why_quantised(board: Board, model: ModelRecord) -> str:
    """Why blocks of the model are held in fewer bits: what it takes, what there is."""
    workers = [worker for worker in board.assignable if worker.pinned_blocks is None]
    held_as = usual_format(board.assignable)
    n_bytes = span_bytes(model.manifest, BlockRange(0, model.manifest.n_blocks), held_as, KV_TARGETS[-1])
    bare = board.without(model)
    room_bytes = sum(max(0, bare.room_bytes(worker, KV_TARGETS[-1])) for worker in workers)
    too_little = "" if n_bytes > room_bytes else ", but too little each"
    return (
        f"{model.name} takes {n_bytes / 1e9:.2f} GB in {held_as} and the workers have {room_bytes / 1e9:.2f} GB "
        f"for it{too_little}"
    )


def what_would_hold(board: Board, model: ModelRecord) -> str:
    """With which precision of whose workers the model would fit, or that it wouldn't; empty if none can be changed.

    From sums alone: it is said whenever somebody asks, and planning takes its time.
    """
    workers = [worker for worker in board.assignable if worker.device is not None and worker.device.quantizations]
    rooms = _Rooms.of(board, model)
    order = _order(rooms, workers)
    if not order:
        return ""
    n = rooms.fewest_enough(order)
    choice = dict(order[:n])
    room = f"room for {rooms.n_possible(choice)} blocks, and {rooms.n_wanted} are wanted"
    if n > len(order):
        return f"even in {_least(choice)} there is {room}"
    fixed = [worker for worker in workers if worker.worker_id in choice and not is_open(worker)]
    ways = [f"with {_options(fixed, choice)} (now {_formats(fixed)})"] if fixed else []
    if len(fixed) < len(choice) and not board.state.settings.auto_quantize:
        ways.append("with `coord serve --auto-quantize on`")
    return f"{' and '.join(ways)} there would be {room}" if ways else ""


def usual_format(workers: Iterable[WorkerRecord]) -> WeightFormat:
    """What most of these workers hold weights in."""
    formats = Counter(worker.device.held_as for worker in workers if worker.device is not None)
    return formats.most_common(1)[0][0]


def _least(choice: Quantizations) -> Quantization:
    return max(choice.values(), key=_BY_BITS.index)


def _options(workers: Sequence[WorkerRecord], choice: Quantizations) -> str:
    """The option that helps, and on which workers."""
    options = []
    for quantization in _BY_BITS:
        names = [named(worker) for worker in workers if choice[worker.worker_id] == quantization]
        if names:
            options.append(f"--precision {quantization} on {listed(names)}")
    return " and ".join(options)


def _formats(workers: Iterable[WorkerRecord]) -> str:
    return ", ".join(sorted({worker.device.held_as for worker in workers if worker.device is not None}))
