"""Which generations run now, known by heart: routes that were given out and whose end wasn't reported.

The coordinator is not on the way of any token, so this is as good as what it is told: a session ends here when its
tail reports it, when its generation goes on by another, when a worker of its route is gone, and when its tickets
have run out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.generation_rest import GenerationInfo
from protocol.ids import BlockRange, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.rest import RouteGrant, RouteRequest

MAX_RUNNING = 20_000
"""That are known by heart; the oldest are forgotten, and in the database only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """One session that was given a route. Without the grant's tickets, which are secrets and long."""

    session_id: SessionId
    model: ModelName
    revision: Revision
    hops: tuple[tuple[WorkerId, BlockRange], ...]
    """From head to tail."""
    key_id: KeyId
    n_prompt_tokens: int
    max_tokens: int
    continues: SessionId | None
    since_s: float


class RunningGenerations:
    """Told of by who gives routes out, and by who hears of ends."""

    def __init__(self) -> None:
        self._running: OrderedDict[SessionId, Running] = OrderedDict()
        self._before: dict[SessionId, tuple[GenerationInfo, float]] = {}
        """Of a coordinator that ran before."""

    def __len__(self) -> int:
        return len(self._running) + len(self._before)

    def take(self, grant: RouteGrant, wanted: RouteRequest, key_id: KeyId, now_s: float) -> None:
        """A route was given out."""
        if wanted.continues is not None:
            self.ended(wanted.continues)
            self._end_later_attempt(wanted)
        self._running[grant.session_id] = Running(
            session_id=grant.session_id,
            model=grant.model,
            revision=grant.revision,
            hops=tuple((hop.worker_id, hop.blocks) for hop in grant.hops),
            key_id=key_id,
            n_prompt_tokens=wanted.n_prompt_tokens,
            max_tokens=wanted.max_tokens,
            continues=wanted.continues,
            since_s=now_s,
        )
        if len(self._running) > MAX_RUNNING:
            self._running.popitem(last=False)

    def _end_later_attempt(self, wanted: RouteRequest) -> None:
        """The failed session that the client names, if that was to go on from the same one."""
        named = wanted.failure.session_id if wanted.failure is not None else None
        if named is None:
            return
        known = self._running.get(named) or self._before.get(named, (None,))[0]
        if known is not None and known.continues == wanted.continues:
            self.ended(named)

    def remember(self, infos: Iterable[tuple[GenerationInfo, float]]) -> None:
        """Routes that were given out, at these times, before this program was started."""
        self._before.update({info.session_id: (info, since_s) for info, since_s in infos})

    def ended(self, session_id: SessionId) -> None:
        """It is over, or goes on by another session."""
        self._running.pop(session_id, None)
        self._before.pop(session_id, None)

    def forget(self, now_s: float, gone: Collection[WorkerId]) -> None:
        """Leave out what can't run any more: its tickets have run out, or a worker of its route is gone."""
        for session_id, one in list(self._running.items()):
            is_late = now_s - one.since_s > TICKET_LIFE_S
            if is_late or (gone and any(worker_id in gone for worker_id, _ in one.hops)):
                self.ended(session_id)
        for session_id, (info, since_s) in list(self._before.items()):
            is_late = now_s - since_s > TICKET_LIFE_S
            if is_late or any(hop.worker_id in gone for hop in info.hops):
                self.ended(session_id)

    def newest(self, n_generations: int) -> Iterator[Running | GenerationInfo]:
        """Those that began last, newest first."""
        for i, one in enumerate(reversed(self._running.values())):
            if i == n_generations:
                return
            yield one
        rest = sorted(self._before.values(), key=lambda known: -known[1])
        yield from (info for info, _ in rest[: max(0, n_generations - len(self._running))])
