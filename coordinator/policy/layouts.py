"""Layouts to choose between: who would hold what, how fast that is, and what if one worker held something else.

A change is looked through without the rest of the fleet: of many streams by the blocks that it is about, of one
stream only if its way is lost. So hundreds of changes to a large fleet take no longer than a few whole layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from coordinator.policy.coverage import spans_of
from coordinator.policy.handover import Spans
from coordinator.policy.links import known_links
from coordinator.policy.modelled import ModelledSpeed, segment_of, speed_of
from coordinator.policy.sizing import decode_times
from coordinator.policy.state import ClusterState, ModelRecord
from protocol.ids import ModelName, WorkerId

Speeds = Mapping[ModelName, ModelledSpeed | None]
"""None where blocks are left out."""
Links = Mapping[WorkerId, Mapping[WorkerId, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who would hold what."""

    state: ClusterState
    links: Links
    spans: Mapping[WorkerId, Spans]
    served: Mapping[ModelName, Served]

    @classmethod
    def of(cls, state: ClusterState, spans: Mapping[WorkerId, Spans]) -> Self:
        """If these workers, and no others, held these spans."""
        links = known_links([state.workers[worker_id] for worker_id in spans])
        empty = {name: Served.nothing(model) for name, model in state.models.items()}
        layout = cls(state=state, links=links, spans=spans, served=empty)
        return layout._with_ways(
            {name: layout._changed(model, empty[name], {}, spans) for name, model in state.models.items()}
        )

    def changed(self, changes: Mapping[WorkerId, Spans]) -> Self:
        """If these workers held this instead. One stream keeps its way, if it can, even where there is a better."""
        after = replace(self, spans={**self.spans, **changes})
        before = {worker_id: self.spans[worker_id] for worker_id in changes}
        served = {
            name: self._changed(model, self.served[name], before, changes)
            for name, model in self.state.models.items()
        }
        return after._with_ways(served)  # noqa: SLF001 - a layout like this one

    @property
    def speeds(self) -> Speeds:
        """How fast the models would be."""
        return {name: served.speed for name, served in self.served.items()}

    def keeps_replicas(self, before: Self) -> bool:
        """Whether no block has fewer holders than before that are wanted."""
        return all(
            n >= min(m, model.n_replicas)
            for name, model in self.state.models.items()
            for n, m in zip(self.served[name].n_holders, before.served[name].n_holders, strict=True)
        )

    def _changed(
        self, model: ModelRecord, served: Served, old: Mapping[WorkerId, Spans], new: Mapping[WorkerId, Spans]
    ) -> Served:
        n_holders, rates = list(served.n_holders), list(served.rates)
        for n, spans in ((-1, old), (1, new)):
            for worker_id, own in spans.items():
                for span in spans_of(model, own):
                    worker = self.state.workers[worker_id]
                    times = decode_times(worker, model.manifest, quantization=span.quantization)
                    range_s = times.of_range(span.blocks, model.manifest.n_blocks)
                    for i in range(span.blocks.start, span.blocks.end):
                        n_holders[i] += n
                        rates[i] += n / range_s
        is_lost = any(worker_id in served.way for worker_id in old)
        return Served(n_holders=n_holders, rates=rates, speed=None if is_lost else served.speed)

    def _with_ways(self, served: Mapping[ModelName, Served]) -> Self:
        return replace(self, served={name: self._with_way(name, found) for name, found in served.items()})

    def _with_way(self, name: ModelName, served: Served) -> Served:
        if min(served.n_holders) == 0:
            return replace(served, speed=None)
        if served.speed is None:
            return replace(served, speed=self._speed(self.state.models[name]))
        return replace(served, speed=replace(served.speed, tokens_per_s=min(served.rates)))

    def _speed(self, model: ModelRecord) -> ModelledSpeed | None:
        segments = [
            segment_of(self.state.workers[worker_id], model, span, self.links[worker_id])
            for worker_id in sorted(self.spans)
            for span in spans_of(model, self.spans[worker_id])
        ]
        return speed_of(segments, model.manifest.n_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How one model would be served."""

    n_holders: list[int]
    """Of each block."""
    rates: list[float]
    """Tokens a second that the holders of each block can do together."""
    speed: ModelledSpeed | None

    @classmethod
    def nothing(cls, model: ModelRecord) -> Self:
        """A model of which nobody holds anything."""
        n_blocks = model.manifest.n_blocks
        return cls(n_holders=[0] * n_blocks, rates=[0.0] * n_blocks, speed=None)

    @property
    def way(self) -> frozenset[WorkerId]:
        """Who works for one stream."""
        return frozenset() if self.speed is None else frozenset(w for w, _ in self.speed.stages)
