"""A ring of two workers on a modelled clock: the real choice of batches, and what batches take by a table.

Each batch takes up to a tenth more or less than the table says, or both workers would run in step for good. Hops
take 0.4 ms, frames of one batch come a tenth of a millisecond apart. What is not in it: event loops, clients, and
the cores that all of them share.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from protocol.ids import SessionId
from worker.batching import ReadyStep, gather_s, gather_until
from worker.fairness import Tenant
from worker.turns import Turn, Turns

HOP_S = 0.0004
FRAME_S = 0.0001
MAX_BATCH_TOKENS = 512
PIECE_TOKENS = 128
N_PROMPT = 1000
N_HOPS = 2
MANY, ONE = Tenant("many"), Tenant("one")

Costs = Mapping[int, float]
"""What a batch takes, in times of one token's, by its tokens; on a line between two of them."""
FLOAT32: Sequence[Costs] = (
    {1: 1.0, 4: 1.6, 8: 2.0, 16: 2.5, 32: 4.0, 128: 13.0, 512: 49.0},
    {1: 1.0, 4: 2.0, 8: 2.4, 16: 3.0, 32: 4.6, 128: 14.0, 512: 50.0},
)
BFLOAT16: Sequence[Costs] = (
    {1: 1.0, 4: 1.2, 8: 1.5, 16: 1.7, 32: 2.6, 128: 9.5, 512: 37.0},
    {1: 1.0, 4: 1.2, 8: 1.4, 16: 1.8, 32: 2.7, 128: 9.5, 512: 37.0},
)
"""Of the first and the last stage: decision 9's table up to sixteen, beyond it a guess."""


def cost(costs: Costs, n_tokens: int) -> float:
    """What a batch of so many tokens takes, in times of one token's."""
    (low, low_s), (high, high_s) = next(pair for pair in pairwise(sorted(costs.items())) if n_tokens <= pair[1][0])
    return low_s + (high_s - low_s) * (n_tokens - low) / (high - low)


@dataclass(slots=True)
class Worker:
    """One hop: what `worker.engine_thread` does, by events."""

    costs: Costs
    turns: Turns = field(default_factory=Turns)
    ready: list[ReadyStep] = field(default_factory=list)
    running: tuple[Turn, list[ReadyStep], float] | None = None
    began_s: float | None = None
    """When it began to wait for more steps; None while it doesn't."""
    until_s: float = 0.0
    group_s: float = 0.0
    decode_step_s: float = 0.0


class Ring:
    """Streams, and prompts one after the other, through both workers."""

    def __init__(self, costs: Sequence[Costs], *, token_s: float, seed: int) -> None:
        """`token_s`: what a batch of one token takes."""
        self.now_s = 0.0
        self.token_times_s: dict[SessionId, list[float]] = {}
        self.n_tokens: Counter[Tenant] = Counter()
        """Tokens that came, and tokens of prompts that were run."""
        self._token_s = token_s
        self._rng = random.Random(seed)
        self._workers = [Worker(of_stage) for of_stage in costs]
        self._tenants: dict[SessionId, Tenant] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._left: dict[SessionId, int] = {}
        """Of a prompt: tokens that the head hasn't run yet."""
        self._n_done: Counter[SessionId] = Counter()
        """Of a prompt: tokens that the tail has run."""

    def begin_streams(self, tenant: Tenant, n_streams: int) -> None:
        """Streams that never end, one after the other begun."""
        for i in range(n_streams):
            session_id = SessionId(f"{tenant.label}-{i}")
            self._tenants[session_id], self.token_times_s[session_id] = tenant, []
            self._at(self.now_s + i * FRAME_S, lambda one=session_id: self._arrive(0, ReadyStep(one, 1)))

    def begin_prompts(self, tenant: Tenant) -> None:
        """Prompts one after the other, each of them a session."""
        session_id = SessionId(f"{tenant.label}-prompt-{next(self._order)}")
        self._tenants[session_id], self._left[session_id] = tenant, N_PROMPT
        self._next_piece(session_id)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self.now_s = until_s

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), act))

    def _next_piece(self, session_id: SessionId) -> None:
        most = min(PIECE_TOKENS, self._left[session_id])
        n_tokens = self._workers[0].turns.bounds.piece_tokens(self._tenants[session_id], most)
        self._left[session_id] -= min(n_tokens, most)
        self._at(self.now_s, lambda: self._arrive(0, ReadyStep(session_id, min(n_tokens, most))))

    def _arrive(self, hop: int, step: ReadyStep) -> None:
        worker = self._workers[hop]
        worker.turns.begun(step.session_id, self._tenants[step.session_id])
        if step.session_id not in self._left:
            worker.turns.decodes(step.session_id, N_HOPS)
        worker.ready.append(step)
        if worker.began_s is not None and worker.group_s:
            worker.until_s = gather_until(worker.began_s, self.now_s, worker.group_s, worker.decode_step_s)
        self._go_on(hop)

    def _go_on(self, hop: int) -> None:
        """Begin a batch, or wait a moment for more."""
        worker, turns = self._workers[hop], self._workers[hop].turns
        if worker.running is not None or not worker.ready:
            return
        size = turns.group_size(worker.ready)
        if worker.began_s is None:
            worker.began_s = self.now_s
            worker.group_s = gather_s(worker.ready, size, worker.decode_step_s)
            wait_s = worker.group_s or turns.wait_s(worker.ready, MAX_BATCH_TOKENS, size)
            worker.until_s = self.now_s + wait_s
        is_short = len(worker.ready) < size.least if worker.group_s else turns.is_waited_for(worker.ready)
        if is_short and self.now_s < worker.until_s:
            self._at(worker.until_s, lambda: self._go_on(hop))
            return
        worker.began_s = None
        turn = turns.next(worker.ready, MAX_BATCH_TOKENS, size)
        batch = [worker.ready[index] for index in turn.chosen]
        worker.ready = [step for index, step in enumerate(worker.ready) if index not in set(turn.chosen)]
        took_s = self._token_s * cost(worker.costs, sum(step.n_tokens for step in batch))
        took_s *= self._rng.uniform(0.9, 1.1)
        worker.running = (turn, batch, took_s)
        self._at(self.now_s + took_s, lambda: self._done(hop))

    def _done(self, hop: int) -> None:
        worker = self._workers[hop]
        assert worker.running is not None
        (turn, batch, took_s), worker.running = worker.running, None
        worker.turns.ran(turn, sum(step.n_tokens for step in batch), took_s)
        if not any(step.session_id in self._left for step in batch):
            worker.decode_step_s = took_s
        for i, step in enumerate(batch):
            self._onward(hop, step, self.now_s + HOP_S + i * FRAME_S)
        self._go_on(hop)

    def _onward(self, hop: int, step: ReadyStep, at_s: float) -> None:
        session_id, tenant = step.session_id, self._tenants[step.session_id]
        if hop + 1 < N_HOPS:
            self._at(at_s, lambda: self._arrive(hop + 1, step))
            if self._left.get(session_id):
                self._next_piece(session_id)
            return
        self.n_tokens[tenant] += step.n_tokens
        if session_id not in self._left:
            self.token_times_s[session_id].append(at_s)
            self._at(at_s, lambda: self._arrive(0, step))
            return
        self._n_done[session_id] += step.n_tokens
        if self._n_done[session_id] == N_PROMPT:
            for worker in self._workers:
                worker.turns.ended(session_id)
            self._at(at_s, lambda: self.begin_prompts(tenant))
