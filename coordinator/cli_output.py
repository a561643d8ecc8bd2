"""What the commands print: tables for people, JSON for programs. What workers say is made harmless."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from protocol.admin_rest import MAX_PAGE
from protocol.answer_console import answer_console
from protocol.byte_sizes import human_bytes
from protocol.cluster_rest import ClusterStatus, WorkerInfo
from protocol.errors import BrigadeError
from protocol.plan_rest import ModelledSpeed, PlanInfo, PlannedSpan
from protocol.rest import BlockCoverage, ModelInfo
from protocol.trust_rest import TrustHistory, TrustInfo

_STATE_STYLES = {
    "ready": "green",
    "gone": "red",
    "failed": "red",
    "quarantined": "red",
    "banned": "red",
    "weak": "yellow",
    "incomplete": "yellow",
    "refused": "red",
    "draining": "yellow",
}


_WORKER_ID = re.compile(r"\bw-[a-z2-7]{26}\b")
_ID_CHARS = 12
"""Of a worker's id are shown to people: enough to tell workers apart, and to name one in a command."""


def console() -> Console:
    """Where answers go."""
    return answer_console()


def notes() -> Console:
    """Where everything goes that isn't the answer itself."""
    return Console(stderr=True, highlight=False)


def note_older(next_cursor: str | None, n_lines: int) -> None:
    """Say that a list has more than its newest `n_lines`, if it has."""
    if next_cursor is not None:
        notes().print(f"these are the newest {n_lines:,}; --lines shows more, up to {MAX_PAGE:,}", markup=False)


def print_error(error: BrigadeError) -> None:
    """One red line on standard error."""
    notes().print(Text(f"error: {printable(error.message)}", style="red"), soft_wrap=True)


def print_json(body: Any) -> None:
    """A message, or several, as indented JSON on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")


def print_answer(body: Any, shown: RenderableType, *, as_json: bool) -> None:
    """What a command found: `body` as JSON for programs, else what people are shown of it."""
    if as_json:
        print_json(body)
    else:
        console().print(shown, markup=False, soft_wrap=isinstance(shown, str))


def print_done(body: Any, words: str, *, as_json: bool) -> None:
    """What a command did: `body` as JSON for programs, else in words, which are no answer."""
    if as_json:
        print_json(body)
    else:
        notes().print(words, markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """The text on one line, without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def short_ids(text: str) -> str:
    """The text with every worker's id cut to its first 12 characters."""
    return _WORKER_ID.sub(lambda found: found[0][:_ID_CHARS], text)


def coverage_text(coverage: tuple[BlockCoverage, ...]) -> str:
    """Which blocks how many ready workers hold: `0:10 by 2, 10:30 by nobody`."""
    return ", ".join(f"{part.blocks} by {part.n_workers or 'nobody'}" for part in coverage)


def model_table(models: tuple[ModelInfo, ...]) -> Group:
    """Models with their state, their coverage, and below it the reasons of those that aren't ready."""
    if not models:
        return Group("No models yet: coord model add NAME SOURCE")
    table = plain_table("model", "state", "blocks", "context", "size", "revision", "replicas", "held")
    for model in models:
        table.add_row(
            cell(model.name),
            _state("refused" if model.refused else model.state),
            str(model.n_blocks) if model.kind == "decoder" else f"{model.n_blocks} {model.kind}",
            str(model.context_length),
            human_bytes(model.size_bytes),
            model.revision[:12],
            str(model.n_replicas),
            cell(coverage_text(model.coverage)),
        )
    return Group(table, *_reasons((model.name, model.reason) for model in models))


def worker_table(workers: tuple[WorkerInfo, ...]) -> Group:
    """Workers with their state, what they hold, and below it the reasons of those that aren't ready."""
    if not workers:
        return Group("No workers yet: run `worker join` on a machine")
    table = plain_table("worker", "host", "state", "holds", "device", "sessions", "seen")
    for worker in workers:
        table.add_row(
            cell(worker.worker_id[:_ID_CHARS]),
            cell(worker.hostname),
            _state(_shown_state(worker)),
            cell(_spans(worker)),
            cell(_device(worker)),
            str(worker.n_sessions),
            f"{worker.last_seen_s_ago:.0f} s ago",
        )
    notes = (
        (worker.worker_id, f"blocks {span.blocks}: {span.note}")
        for worker in workers
        for span in worker.spans
        if span.note
    )
    pins = ((worker.worker_id, worker.pinned) for worker in workers)
    reasons = ((worker.worker_id, worker.reason) for worker in workers)
    return Group(table, *_reasons(reasons), *_reasons(pins), *_reasons(notes))


def _device(worker: WorkerInfo) -> str:
    text = f"{worker.device} {worker.precision}"
    return f"{text}, caches {worker.kv_precision}" if worker.kv_precision is not None else text


def plan_table(plan: PlanInfo) -> Group:
    """Who would hold what, the speeds by the model, then and now, and the reasons of those left out."""
    if not plan.models:
        return Group("No models yet: coord model add NAME SOURCE")
    parts: list[Text | Table] = []
    for model in plan.models:
        table = plain_table("worker", "host", "blocks", "ms a token")
        for span in model.spans:
            table.add_row(
                cell(span.worker_id[:_ID_CHARS]),
                cell(span.hostname),
                _planned(span),
                f"{1000 * span.stage_s:.2f}",
            )
        parts.append(
            Text(f"{printable(model.model)}, placed for {plan.placement}: {tokens_per_s_text(model.planned)}")
        )
        parts.append(Text(f"  as it is now: {tokens_per_s_text(model.now)}", style="dim"))
        if model.note:
            parts.append(Text(f"  {printable(model.note)}", style="dim"))
        parts.append(table)
    if plan.left_out:
        parts.append(Text("Not on the way of one stream:"))
    outlook = [Text(short_ids(printable(plan.outlook)))] if plan.outlook else []
    return Group(*parts, *_reasons((worker.worker_id, worker.reason) for worker in plan.left_out), *outlook)


def _planned(span: PlannedSpan) -> str:
    held_as = f" in {span.quantization}" if span.quantization else ""
    return f"{span.blocks}{held_as}{' (pinned)' if span.is_pinned else ''}"


def tokens_per_s_text(speed: ModelledSpeed | None) -> str:
    """How fast a model would be, in words."""
    if speed is None:
        return "not all blocks are held"
    one, many = speed.one_stream_tokens_per_s, speed.many_streams_tokens_per_s
    return f"about {one:.1f} tokens/s for one stream, {many:.1f} for many one token at a time"


def trust_table(workers: tuple[TrustInfo, ...]) -> Group:
    """Workers with their scores, and below it what speaks against them."""
    if not workers:
        return Group("No workers yet: run `worker join` on a machine")
    table = plain_table("worker", "host", "trust", "level")
    for worker in workers:
        pinned = "" if worker.pinned is None else " (pinned)"
        table.add_row(
            cell(worker.worker_id[:_ID_CHARS]),
            cell(worker.hostname),
            f"{worker.score:.2f}{pinned}",
            _state(worker.level),
        )
    return Group(table, *_reasons((worker.worker_id, worker.reason) for worker in workers))


def trust_history(history: TrustHistory) -> Group:
    """One worker's score, who says what of it now, and the changes, newest first."""
    opinions, events = plain_table("says", "what", "weight"), plain_table("when", "what", "says", "trust", "why")
    for opinion in history.opinions:
        opinions.add_row(cell(short_ids(opinion.reporter)), cell(opinion.kind), f"{opinion.weight:.2f}")
    for event in history.events:
        events.add_row(
            minute(event.at),
            cell(event.kind),
            cell(short_ids(event.reporter)),
            f"{event.score_before:.2f} -> {event.score_after:.2f}",
            cell(short_ids(event.reason)),
        )
    older = [
        Text(f"  before that {part.n_events} of {printable(part.kind)}, until {minute(part.last_at)}", style="dim")
        for part in history.older
    ]
    return Group(trust_table((history.trust,)), opinions, events, *older)


def print_status(status: ClusterStatus) -> None:
    """A whole cluster: a line about the coordinator, then models and workers."""
    out = console()
    out.print(
        Text(f"coordinator {status.coordinator_id} at {printable(status.url)}, version {status.version}, ")
        + Text(status.database)
    )
    if status.database_problem:
        out.print(Text(f"The database can't be used: {printable(status.database_problem)}"), soft_wrap=True)
        out.print("What runs goes on; what would have to be kept is refused until it is back.", soft_wrap=True)
    if status.moving:
        out.print(Text(short_ids(printable(status.moving))), soft_wrap=True)
    out.print(model_table(status.models))
    if status.workers:
        out.print(worker_table(status.workers))
    else:
        out.print(Text(f"No workers yet: worker join {printable(status.url)} --secret-file FILE"), soft_wrap=True)
    if status.joining:
        out.print(Text(printable(status.joining), style="dim"), soft_wrap=True)
    if status.audits:
        out.print(Text(short_ids(printable(status.audits)), style="dim"), soft_wrap=True)


def _shown_state(worker: WorkerInfo) -> str:
    """As the API says, whose older readers know no `failed`: there a worker that can't hold its blocks is idle."""
    has_failed = any(span.state == "failed" for span in worker.spans)
    return "failed" if worker.state == "idle" and has_failed else worker.state


def _spans(worker: WorkerInfo) -> str:
    parts = []
    for span in worker.spans:
        progress = "" if span.state in ("ready", "failed") else f" {100 * span.progress:.0f}%"
        state = "" if span.state == "ready" else f" ({span.state}{progress})"
        held_as = f" in {span.quantization}" if span.quantization else ""
        parts.append(f"{span.model} {span.blocks}{held_as}{state}")
    return ", ".join(parts)


def _reasons(pairs: Iterable[tuple[str, str]]) -> list[Text]:
    return [Text(f"  {short_ids(printable(f'{name}: {reason}'))}", style="dim") for name, reason in pairs if reason]


def minute(time: str | None) -> str:
    """An ISO time in UTC, to the minute."""
    return f"{time[:16].replace('T', ' ')} UTC" if time else ""


def plain_table(*columns: str, unbroken: str | None = None) -> Table:
    """A table without lines, whose long cells go on below, but for the `unbroken` column's.

    That one has what people copy into commands, short enough for any terminal.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == unbroken)
    return table


def cell(text: str) -> Text:
    """Somebody else's words in a table, made harmless."""
    return Text(printable(text))


def _state(state: str) -> Text:
    return Text(state, style=_STATE_STYLES.get(state, ""))
