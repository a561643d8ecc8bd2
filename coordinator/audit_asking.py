"""Asking workers: tickets for the sessions of audits, and where workers reach the coordinator as a neighbour."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from coordinator.audit_neighbours import Neighbour, Neighbours
from coordinator.audit_session import Asked, NoAnswerError, answer, most_frame_bytes, new_session_id
from coordinator.cluster import Cluster
from coordinator.policy.audit_probe import N_POSITIONS, Probe, Projection
from coordinator.policy.audit_schedule import ANSWER_S, AuditPlan, Candidate, is_as_planned
from coordinator.ticket_desk import TICKET_LIFE_S, TicketDesk
from protocol.errors import ModelUnavailableError
from protocol.ids import SessionId, WorkerId
from protocol.tickets import Ticket

Answer = Projection | NoAnswerError


class Examiner:
    """Asks workers and waits for their answers."""

    def __init__(
        self,
        neighbours: Neighbours,
        tickets: TicketDesk,
        ca_pem: str,
        clock: Callable[[], float],
        cluster: Cluster,
    ) -> None:
        self._neighbours = neighbours
        self._tickets = tickets
        self._ca_pem = ca_pem
        self._clock = clock
        self._cluster = cluster
        self._own_urls: dict[WorkerId, str] = {}

    @contextmanager
    def reached_at(self, worker_id: WorkerId, host: str) -> Iterator[None]:
        """A worker's control socket is open, and came to us by this host and port: others of its can, too."""
        url = self._own_urls[worker_id] = f"https://{host}"
        try:
            yield
        finally:
            if self._own_urls.get(worker_id) is url:
                del self._own_urls[worker_id]

    async def answers(
        self, plan: AuditPlan, seed: str, candidates: Sequence[Candidate]
    ) -> Mapping[WorkerId, Answer]:
        """What each of them makes of the probe with this seed, all asked at the same time."""
        manifest = plan.model.manifest
        probe = Probe(
            seed=seed,
            blocks=plan.blocks,
            hidden_size=manifest.hidden_size,
            vocab_size=manifest.vocab_size,
            is_whole=manifest.kind == "encoder",
        )
        async with asyncio.TaskGroup() as asking:
            tasks = {
                candidate.worker_id: asking.create_task(
                    self._answer(plan, probe, candidate), name=f"audit {candidate.worker_id}"
                )
                for candidate in candidates
            }
        return {worker_id: task.result() for worker_id, task in tasks.items()}

    async def _answer(self, plan: AuditPlan, probe: Probe, candidate: Candidate) -> Answer:
        own_url = self._own_urls.get(candidate.worker_id)
        if own_url is None:
            return NoAnswerError("busy", "its control socket closed the moment that it was to be asked")
        is_tail = probe.blocks.end == plan.model.manifest.n_blocks
        if is_tail and candidate.worker_id in self._tickets.without_private():
            return NoAnswerError("incapable", "its version hands on nothing that the last block makes; upgrade it")
        session_id = new_session_id()
        async with self._neighbours.one(most_frame_bytes(probe)) as neighbour:
            try:
                ticket = self._ticket(plan, probe, candidate, neighbour, own_url, session_id)
                asked = Asked(
                    worker_id=candidate.worker_id,
                    url=candidate.url,
                    session_id=session_id,
                    ticket=ticket,
                    probe=probe,
                )
                given = await answer(asked, neighbour, self._ca_pem, within_s=ANSWER_S)
            except ModelUnavailableError as exc:
                return NoAnswerError("busy", exc.message)
            except NoAnswerError as exc:
                return exc
        if not is_as_planned(self._cluster.state, plan, candidate):
            return NoAnswerError("busy", "it was given other blocks meanwhile, or holds them in another precision")
        return given

    def _ticket(
        self,
        plan: AuditPlan,
        probe: Probe,
        candidate: Candidate,
        neighbour: Neighbour,
        own_url: str,
        session_id: SessionId,
    ) -> str:
        """As that of a route over three workers, of which the audited one is the first or the second."""
        is_head = probe.takes_tokens
        longest = min(plan.model.manifest.context_length, 4 * N_POSITIONS)
        return self._tickets.signed(
            Ticket(
                expires_at_s=self._clock() + TICKET_LIFE_S,
                worker_id=candidate.worker_id,
                session_id=session_id,
                model=plan.model.name,
                revision=plan.model.revision,
                blocks=probe.blocks,
                epoch=candidate.epoch,
                previous=None if is_head else neighbour.worker_id,
                next=neighbour.worker_id,
                next_url=own_url,
                head=candidate.worker_id if is_head else neighbour.worker_id,
                head_url=candidate.url if is_head else own_url,
                tail=neighbour.worker_id,
                max_positions=N_POSITIONS + secrets.randbelow(max(1, longest - N_POSITIONS + 1)),
                n_hops=3,
                tenant=secrets.token_hex(12),
            )
        )
