"""Generations as rows, with what is held and used of their keys' limits: begun and finished, many at once.

Called within the transactions of others; `quota_clock` is read once it is a transaction's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import BindParameter, Connection, and_, bindparam, insert, or_, select, update

from coordinator.policy.quota import MAX_CONTINUATIONS, Wanted
from coordinator.quota_records import GENERATIONS, LockedQuota
from coordinator.quota_rows import LONGEST_GENERATION, OPENS_WITHIN, Reserving, Settling
from coordinator.quota_usage import add_usage
from coordinator.stored_rows import NewGeneration, ReportedEnd, StoredGeneration, stored_generation
from protocol.control_messages import GenerationReport
from protocol.errors import BrigadeError, OverLimitError, QuotaExceededError
from protocol.ids import SessionId, WorkerId
from protocol.key_limits import RateLeft

QuotaClock = Callable[[], float]
RatesLeft = dict[SessionId, tuple[RateLeft, ...]]
"""What was left of its key's rates when a generation began, by session."""
Ended = tuple[StoredGeneration, GenerationReport, datetime]
"""A generation with its end in it, what its tail said, and when."""

END_NAMES = ("n_completion_tokens", "outcome", "finished_at")
"""What is written of a generation that is over."""
# Made once: to put a statement together and compile it takes several times what a database needs for it.
_NAMES: BindParameter[str] = bindparam("names", expanding=True)
_BY_ID = select(GENERATIONS).where(GENERATIONS.c.session_id.in_(_NAMES)).order_by(GENERATIONS.c.session_id)
_LOCKED = _BY_ID.with_for_update()
_BEGIN = insert(GENERATIONS)
_GO_ON = (
    update(GENERATIONS)
    .where(
        or_(
            GENERATIONS.c.session_id == bindparam("before"),
            and_(GENERATIONS.c.session_id == bindparam("replaced"), GENERATIONS.c.continues == bindparam("before")),
        ),
        GENERATIONS.c.key_id == bindparam("of_key"),
    )
    .values(continued_by=bindparam("after"))
)
_END = (
    update(GENERATIONS)
    .where(GENERATIONS.c.session_id == bindparam("ended"))
    .values({name: bindparam(name) for name in END_NAMES})
)


def begin_generations(
    connection: Connection,
    generations: Sequence[NewGeneration],
    quota_clock: QuotaClock | None,
    left: RatesLeft | None = None,
) -> list[BrigadeError | None]:
    """As `Repository.record_generations`."""
    continues = {new.continues for new in generations if new.continues is not None}
    if continues:  # before the quotas, as reports do: else each would wait for what the other holds
        replaced = {new.replaces for new in generations if new.replaces is not None}
        connection.execute(_LOCKED, {"names": list(continues | replaced)})
    reserving = Reserving.of(connection, [new.key_id for new in generations], continues)
    refusals = decisions(reserving, generations, quota_clock, left)
    reserved = reserving.write(connection)
    allowed = [new for new, refusal in zip(generations, refusals, strict=True) if refusal is None]
    if allowed:
        connection.execute(_BEGIN, [new.values(reserved.get(new.session_id)) for new in allowed])
    for new in allowed:
        if new.continues is not None:
            names = {"before": new.continues, "replaced": new.replaces or "", "of_key": new.key_id}
            connection.execute(_GO_ON, names | {"after": new.session_id})
    return refusals


def decisions(
    reserving: Reserving,
    generations: Sequence[NewGeneration],
    quota_clock: QuotaClock | None,
    left: RatesLeft | None = None,
) -> list[BrigadeError | None]:
    """Reserve for each of them in order; why a limit doesn't allow it, or None. `left`: takes what each leaves."""
    refusals: list[BrigadeError | None] = []
    quota_now = quota_time(quota_clock)
    for new in generations:
        wanted = Wanted(n_prompt_tokens=new.n_prompt_tokens, max_tokens=new.max_tokens)
        held_for = OPENS_WITHIN if new.is_opening_told else LONGEST_GENERATION
        now = quota_now or new.at
        try:
            reserving.reserve(new.key_id, new.session_id, wanted, now, new.continues, held_for=held_for)
        except QuotaExceededError as refusal:
            refusal.rates = reserving.rates_left(new.key_id, now)
            refusals.append(refusal)
        except OverLimitError as refusal:
            refusals.append(refusal)
        else:
            refusals.append(None)
            if left is not None:
                left[new.session_id] = reserving.rates_left(new.key_id, now)
    return refusals


def finish_generations(
    connection: Connection,
    ends: Sequence[ReportedEnd],
    quota_clock: QuotaClock | None,
    left: list[LockedQuota] | None = None,
) -> list[StoredGeneration | None]:
    """As `Repository.finish_generations`; `left`: takes the keys' quotas as they are then."""
    finished, done = taken(ends, _locked_generations(connection, {end.report.session_id for end in ends}))
    if not done:
        return finished
    connection.execute(
        _END, [{"ended": generation.session_id} | end_values(generation) for generation, _, _ in done]
    )
    counted = _counted_by_successors(connection, [generation for generation, _, _ in done])
    add_usage(connection, done, counted)
    settling = Settling.of_generations(connection, [generation for generation, _, _ in done])
    quota_now = quota_time(quota_clock)  # routes wait for the keys' locks from here on, so all else is done before
    for generation, report, at in done:
        settling.report(generation, report, quota_now or at, counted.get(generation.session_id))
    settling.write(connection)
    if left is not None:
        left += settling.quotas
    return finished


def taken(
    ends: Sequence[ReportedEnd], generations: Mapping[SessionId, StoredGeneration]
) -> tuple[list[StoredGeneration | None], list[Ended]]:
    """What each report makes of the generations; and those that are to be written, whose first report it is."""
    known = dict(generations)
    finished: list[StoredGeneration | None] = []
    done: list[Ended] = []
    for end in ends:
        before = known.get(end.report.session_id)
        if before is not None and end.is_in(before):  # by a commit whose answer was lost, or it was sent again
            finished.append(before)
            continue
        generation = end.taken_by(before)
        finished.append(generation)
        if generation is not None:
            known[generation.session_id] = generation  # the first report counts
            done.append((generation, end.report, end.at))
    return finished, done


def hold_begun(
    connection: Connection,
    heads: Mapping[SessionId, WorkerId],
    quota_clock: QuotaClock,
    over: Collection[SessionId] = (),
) -> list[StoredGeneration]:
    """As `Repository.hold_begun`."""
    known = _locked_generations(connection, heads)
    running = [
        one
        for one in known.values()
        if one.finished_at is None and one.route[0][0] == heads[SessionId(one.session_id)]
    ]
    settling = Settling.of_generations(connection, running)
    now = datetime.fromtimestamp(quota_clock(), UTC)
    late = [one for one in running if one.session_id not in over and not settling.begun(one, now)]
    for one in running:
        if one.session_id in over:
            settling.over_at_head(one, now)
    settling.write(connection)
    return late


def _locked_generations(
    connection: Connection, session_ids: Collection[SessionId]
) -> dict[SessionId, StoredGeneration]:
    rows = connection.execute(_LOCKED, {"names": list(session_ids)})
    return {row.session_id: stored_generation(row) for row in rows}


def _counted_by_successors(connection: Connection, finished: Sequence[StoredGeneration]) -> dict[str, int]:
    """Of sessions that report after the one by which their generation went on: tokens counted as its prompt."""
    counted: dict[str, int] = {}
    together = {one.session_id for one in finished}
    for one in finished:
        successor = one
        for _ in range(MAX_CONTINUATIONS):
            if successor.continued_by is None or successor.continued_by in together:
                break
            row = connection.execute(_BY_ID, {"names": [successor.continued_by]}).one()
            successor = stored_generation(row)
            if successor.finished_at is not None and (
                successor.outcome != "failed" or successor.n_completion_tokens
            ):
                counted[one.session_id] = max(0, successor.n_prompt_tokens - one.n_prompt_tokens)
                break
    return counted


def end_values(generation: StoredGeneration) -> dict[str, object]:
    """What is written of one that is over, by the names of columns."""
    return {
        "n_completion_tokens": generation.n_completion_tokens,
        "outcome": generation.outcome,
        "finished_at": generation.finished_at,
    }


def quota_time(clock: QuotaClock | None) -> datetime | None:
    """What time it is by this clock, if there is one."""
    return None if clock is None else datetime.fromtimestamp(clock(), UTC)
