"""Whose steps go into the next batch: what the engine's thread keeps for `worker.fairness`.

Where all sessions are of one tenant nothing is decided here, and nothing counted but what batches take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from protocol.ids import SessionId
from worker.batch_costs import BatchCosts
from worker.batching import GroupSize, ReadyStep, next_batch
from worker.fairness import UNLABELLED, Shares, Tenant

_WAIT_SHARE = 0.1
"""Of a batch with a prompt in it: what it waits at most for a tenant that is behind, and whose next token goes
round. Between two tokens there is always a moment without a step; to begin a long batch in it would cost that
tenant all of the batch, each time."""


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
        self._tenants: dict[SessionId, Tenant] = {}
        self._n_sessions: Counter[Tenant] = Counter()

    @property
    def is_shared(self) -> bool:
        """Whether the sessions that run are of more than one tenant."""
        return len(self._n_sessions) > 1

    def begun(self, session_id: SessionId, tenant: Tenant) -> None:
        """A session has a step."""
        if session_id not in self._tenants:
            self._tenants[session_id] = tenant
            self._n_sessions[tenant] += 1

    def ended(self, session_id: SessionId) -> None:
        """A session is over."""
        tenant = self._tenants.pop(session_id, None)
        if tenant is None:
            return
        self._n_sessions[tenant] -= 1
        if not self._n_sessions[tenant]:
            del self._n_sessions[tenant]
            self.shares = self.shares.among(self._n_sessions)

    def next(self, ready: Sequence[ReadyStep], max_batch_tokens: int, size: GroupSize) -> Turn:
        """What to run now: a batch (see `worker.batching`) of all that is ready, as far as nobody loses by it."""
        if not self.is_shared:
            return Turn(next_batch(ready, max_batch_tokens, size))
        tenants = self._of(ready)
        turn = _turn(next_batch(ready, max_batch_tokens, size), ready, tenants)
        for fewer in self.shares.fewer(turn.ready):
            if self.shares.lets_pass(turn.n_tokens, turn.ready, self.costs):
                break
            theirs = [index for index, tenant in enumerate(tenants) if tenant in fewer]
            batch = next_batch([ready[index] for index in theirs], max_batch_tokens, size)
            turn = _turn([theirs[index] for index in batch], ready, tenants)
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
        if turn.ready:
            self.shares = self.shares.after(turn.n_tokens, turn.ready, self.costs)

    def _of(self, ready: Sequence[ReadyStep]) -> list[Tenant]:
        """Steps of a session that is over already fail; they need no tenant of their own."""
        return [self._tenants.get(step.session_id, UNLABELLED) for step in ready]


def _turn(chosen: list[int], ready: Sequence[ReadyStep], tenants: Sequence[Tenant]) -> Turn:
    n_tokens: Counter[Tenant] = Counter()
    for index in chosen:
        n_tokens[tenants[index]] += ready[index].n_tokens
    return Turn(chosen, n_tokens, frozenset(tenants))
