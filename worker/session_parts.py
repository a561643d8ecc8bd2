"""What a session is made with: what it has in common with the others here, and how it was opened."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from protocol.ids import WorkerId
from protocol.messages import OpenSession
from protocol.spans import NO_SPANS, SpanSink
from protocol.tickets import Ticket
from protocol.tracing import Trace
from worker.connections import Connection
from worker.cutting import PromptCutter, Route
from worker.engine import Engine
from worker.fairness import Tenant
from worker.grammars import Grammars
from worker.hop_times import HopTimes
from worker.peers import Peers
from worker.speculation import DraftPrior
from worker.steps import SessionSpec, SpanKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all sessions of a worker use."""

    engine: Engine
    peers: Peers
    worker_id: WorkerId
    cutter: PromptCutter
    draft_prior: DraftPrior = field(default_factory=DraftPrior)
    grammars: Grammars = field(default_factory=Grammars)
    hop_times: HopTimes = field(default_factory=HopTimes)
    spans: SpanSink = NO_SPANS


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A session that may be opened: its checked ticket, the tickets of the later hops, and who opens it."""

    ticket: Ticket
    later_tickets: tuple[str, ...]
    span: SpanKey
    opener: Connection
    deadline_at_s: float
    """On the loop's clock; for the whole generation."""
    predecessor_over: asyncio.Event | None = None
    """Set when the session that this one continues has left what it has; None if it isn't running here."""
    trace: Trace | None = None
    """What it belongs to, as its client says."""
    wants_timings: bool = False
    n_prompt: int = 0
    """Tokens before the answer, as the client says; 0: not said."""

    @property
    def route(self) -> Route:
        """The way of its prompts from here on."""
        ticket = self.ticket
        return Route(self.span, len(ticket.blocks), ticket.next, ticket.tail, len(self.later_tickets))

    @property
    def tenant(self) -> Tenant:
        """Whose it is."""
        return Tenant(self.ticket.tenant, self.ticket.priority)

    @property
    def spec(self) -> SessionSpec:
        """What the engine is to reserve."""
        ticket = self.ticket
        return SessionSpec(
            session_id=ticket.session_id,
            span=self.span,
            blocks=ticket.blocks,
            n_positions=ticket.max_positions,
            continues=ticket.continues,
            prefix=ticket.prefix,
            n_prompt=self.n_prompt,
            n_hops=ticket.n_hops,
            hands_on=ticket.next is not None or ticket.gives_states,
            wants_inputs=ticket.returned == "inputs",
            tenant=self.tenant,
        )

    def onward(self) -> OpenSession:
        """What opens the next hop."""
        return OpenSession(
            session_id=self.ticket.session_id,
            tickets=self.later_tickets,
            deadline_s=max(0.001, self.time_left_s()),
            traceparent=self.trace.traceparent() if self.trace is not None else "",
            wants_timings=self.wants_timings,
            n_prompt=self.n_prompt,
        )

    def time_left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_at_s - asyncio.get_running_loop().time()
