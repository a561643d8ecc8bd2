"""Whose steps go into the next batch: what the engine's thread keeps for `worker.fairness` and `batch_bounds`.

Where all sessions are of one tenant nothing is decided here, and nothing counted but what batches take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from protocol.ids import SessionId
from worker.batch_bounds import BatchBounds, batch_bounds
from worker.batch_costs import BatchCosts
from worker.batching import GroupSize, ReadyStep, group_size, next_batch
from worker.fairness import UNLABELLED, Shares, Tenant

_WAIT_SHARE = 0.1
"""Of a batch with a prompt in it: what it waits at most for a tenant that is behind, and whose next token goes
round. Between two tokens there is always a moment without a step; to begin a long batch in it would cost that
tenant all of the batch, each time."""
_AWAY_BATCHES = 32
"""Without a step of a tenant's, until its streams bound no batch: they wait for something else, not for this."""
_MEASURED_BATCHES = 24
"""After so many larger ones, whoever bounds batches runs alone for once: by what it takes then they are bounded."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The next batch. Of several tenants: how many tokens each has in it, and who had steps ready."""

    chosen: list[int]
    """Indexes into the ready steps, in the order to run them."""
    n_tokens: Mapping[Tenant, int] = field(default_factory=dict)
    ready: Collection[Tenant] = ()


class Turns:
    """Whose sessions are running, and who is behind. Lives on the engine's thread."""

    def __init__(self) -> None:
        self.costs = BatchCosts()
        self.shares = Shares()
        self.bounds = BatchBounds()
        self._tenants: dict[SessionId, Tenant] = {}
        self._n_sessions: Counter[Tenant] = Counter()
        self._decoding: dict[SessionId, int] = {}
        """The sessions that decode, and the hops of their routes."""
        self._n_batches_since: Counter[Tenant] = Counter()
        """Since each tenant last had a step ready, while there are several."""
        self._n_unmeasured = 0
        """Batches since one that was no larger than those of the tenant that bounds them."""

    @property
    def n_decoding(self) -> int:
        """How many sessions decode; until they are over."""
        return len(self._decoding)

    @property
    def is_shared(self) -> bool:
        """Whether the sessions that run are of more than one tenant."""
        return len(self._n_sessions) > 1

    def begun(self, session_id: SessionId, tenant: Tenant) -> None:
        """A session has a step."""
        if session_id not in self._tenants:
            self._tenants[session_id] = tenant
            self._n_sessions[tenant] += 1

    def decodes(self, session_id: SessionId, n_hops: int) -> None:
        """A session's step is one of decoding; `n_hops`: of its route."""
        self._decoding[session_id] = n_hops

    def ended(self, session_id: SessionId) -> None:
        """A session is over."""
        self._decoding.pop(session_id, None)
        tenant = self._tenants.pop(session_id, None)
        if tenant is None:
            return
        self._n_sessions[tenant] -= 1
        if not self._n_sessions[tenant]:
            del self._n_sessions[tenant]
            self.shares = self.shares.among(self._n_sessions)
            self._n_batches_since.pop(tenant, None)
            self.bounds = self._bounds()

    def group_size(self, ready: Iterable[ReadyStep]) -> GroupSize:
        """How many sessions decode together, of those that have decoded and aren't over."""
        size = group_size(self._decoding.values())
        if not self.bounds.longest_s:
            return size
        return self.bounds.group(size, has_prompts=any(not step.is_decode for step in ready))

    def next(self, ready: Sequence[ReadyStep], max_batch_tokens: int, size: GroupSize) -> Turn:
        """What to run now: a batch (see `worker.batching`) of all that is ready, as far as nobody loses by it."""
        if not self.is_shared:
            return Turn(next_batch(ready, max_batch_tokens, size))
        tenants, n_tokens = self._of(ready), self.bounds.n_tokens(max_batch_tokens)
        least = self.bounds.least()
        if least in tenants and self._n_unmeasured >= _MEASURED_BATCHES:
            return _turn_of({least}, ready, tenants, n_tokens, size)
        turn = _turn_of(set(tenants), ready, tenants, n_tokens, size)
        for fewer in self.shares.fewer(turn.ready):
            if self.shares.lets_pass(turn.n_tokens, turn.ready, self.costs):
                break
            turn = _turn_of(fewer, ready, tenants, n_tokens, size)
        return turn

    def is_waited_for(self, ready: Sequence[ReadyStep]) -> bool:
        """Whether a tenant is behind that has no step ready just now."""
        if not self.is_shared:
            return False
        away = self._n_sessions.keys() - self._of(ready)
        return any(self.shares.is_behind(tenant) for tenant in away)

    def wait_s(self, ready: Sequence[ReadyStep], max_batch_tokens: int, size: GroupSize) -> float:
        """How long the next batch is to wait for such a tenant; 0 if for none."""
        if not self.is_waited_for(ready):
            return 0.0
        batch = [ready[index] for index in self.next(ready, max_batch_tokens, size).chosen]
        if all(step.is_decode for step in batch):
            return 0.0
        return _WAIT_SHARE * self.costs.seconds(sum(step.n_tokens for step in batch))

    def ran(self, turn: Turn, n_tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long."""
        self.costs = self.costs.with_batch(n_tokens, seconds)
        if not turn.ready:
            return
        self.shares = self.shares.after(turn.n_tokens, turn.ready, self.costs)
        self._n_batches_since = Counter(
            {
                tenant: 0 if tenant in turn.ready else self._n_batches_since[tenant] + 1
                for tenant in self._n_sessions
            }
        )
        is_measured = turn.n_tokens.keys() == {self.bounds.least()}
        self._n_unmeasured = 0 if is_measured else self._n_unmeasured + 1
        self.bounds = self._bounds()

    def _bounds(self) -> BatchBounds:
        """By those who decode and had a step of late."""
        if not self.is_shared:
            return BatchBounds()
        n_hops: dict[Tenant, list[int]] = {}
        for session_id, n in self._decoding.items():
            n_hops.setdefault(self._tenants[session_id], []).append(n)
        n_rows = {
            tenant: group_size(of_tenant).most
            for tenant, of_tenant in n_hops.items()
            if self._n_batches_since[tenant] < _AWAY_BATCHES
        }
        return batch_bounds(n_rows, sum(tenant.weight for tenant in self._n_sessions), self.costs)

    def _of(self, ready: Sequence[ReadyStep]) -> list[Tenant]:
        """Steps of a session that is over already fail; they need no tenant of their own."""
        return [self._tenants.get(step.session_id, UNLABELLED) for step in ready]


def _turn_of(
    those: Collection[Tenant | None],
    ready: Sequence[ReadyStep],
    tenants: Sequence[Tenant],
    max_tokens: int,
    size: GroupSize,
) -> Turn:
    """A batch of these tenants' steps."""
    theirs = _by_turns([index for index, tenant in enumerate(tenants) if tenant in those], ready, tenants)
    chosen = [theirs[index] for index in next_batch([ready[index] for index in theirs], max_tokens, size)]
    n_tokens: Counter[Tenant] = Counter()
    for index in chosen:
        n_tokens[tenants[index]] += ready[index].n_tokens
    return Turn(chosen, n_tokens, frozenset(tenants))


def _by_turns(indexes: Sequence[int], ready: Sequence[ReadyStep], tenants: Sequence[Tenant]) -> list[int]:
    """The first session of each tenant, by weight, then the second, and so on: who has few isn't left out."""
    places: dict[SessionId, float] = {}
    n_sessions: Counter[Tenant] = Counter()
    for index in indexes:
        if ready[index].session_id not in places:
            n_sessions[tenants[index]] += 1
            places[ready[index].session_id] = n_sessions[tenants[index]] / tenants[index].weight
    return sorted(indexes, key=lambda index: places[ready[index].session_id])
