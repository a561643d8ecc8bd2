"""`coord assignment`: who holds which blocks; pinning and moving them by hand. Thin over the admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from rich.console import Group
from rich.text import Text

from coordinator.admin_client import AdminTarget, all_pages
from coordinator.cli_output import (
    cell,
    notes,
    plain_table,
    print_answer,
    print_json,
    printable,
    short_ids,
    tokens_per_s_text,
)
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.assignment_rest import (
    MAX_PIN_REASON,
    AssignmentInfo,
    AssignmentList,
    AssignmentPreview,
    MoveRequest,
    PinInfo,
    PinRequest,
    PreviewRequest,
)
from protocol.byte_sizes import human_bytes
from protocol.control_messages import SpanAssignment
from protocol.errors import ConfigError
from protocol.ids import block_range_from_text, checked_model_name

if TYPE_CHECKING:
    from protocol.pinned_http import CoordinatorSession

assignment_commands = typer.Typer(
    no_args_is_help=True,
    help="Who holds which blocks. What is pinned here goes before `worker join --blocks`, and before the planner.",
)
WorkerArgument = Annotated[
    str, typer.Argument(help="The worker's id, or its beginning as `coord status` shows it.", metavar="WORKER")
]
ModelArgument = Annotated[str, typer.Argument(help="The model's name.", metavar="MODEL")]
BlocksArgument = Annotated[str, typer.Argument(help="start:end, half-open, such as 0:10.", metavar="BLOCKS")]
ReasonOption = Annotated[str, typer.Option(help="Why, for those who look later, and for the audit log.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Also if blocks will be served by nobody, for a while at least.")
]


@assignment_commands.command("show")
@for_coordinator
def show_assignments(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """Show who holds which blocks, and why."""
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/assignments", {}, AssignmentList))
    found = AssignmentList(assignments=tuple(info for page in pages for info in page.assignments))
    print_answer(found, _table(found), as_json=as_json)


@assignment_commands.command("preview")
@for_coordinator
def preview(
    target: AdminTarget,
    worker: WorkerArgument,
    model: ModelArgument,
    blocks: BlocksArgument,
    *,
    takes_from: Annotated[
        str | None, typer.Option("--from", help="If they were moved from this worker.", metavar="WORKER")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would follow from a pin or a move: speed, memory, who else holds what, why not. Changes nothing."""
    name, wanted = _checked(model, blocks)
    request = PreviewRequest(worker=worker, model=name, blocks=wanted, takes_from=takes_from)
    found = target.ask(lambda session: session.post("/admin/v1/assignments/preview", request, AssignmentPreview))
    print_answer(found, _preview(found), as_json=as_json)


@assignment_commands.command("pin")
@for_coordinator
def pin(
    target: AdminTarget,
    worker: WorkerArgument,
    model: ModelArgument,
    blocks: BlocksArgument,
    *,
    reason: ReasonOption = "",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have a worker hold exactly these blocks and nothing else, whatever is better, until it is unpinned."""
    name, wanted = _checked(model, blocks, reason)
    request = PinRequest(model=name, blocks=wanted, reason=reason, force=force)

    async def pinned(session: CoordinatorSession) -> AssignmentInfo:
        _, etag = await session.get_tagged(_path(worker), AssignmentInfo)
        return await session.put(_path(worker), request, AssignmentInfo, if_match=etag)

    _say(target.ask(pinned), as_json=as_json)


@assignment_commands.command("unpin")
@for_coordinator
def unpin(target: AdminTarget, worker: WorkerArgument, *, as_json: JsonOption = False) -> None:
    """Have the planner decide again what a worker holds. It keeps what it has until something else is better."""

    async def unpinned(session: CoordinatorSession) -> AssignmentInfo:
        _, etag = await session.get_tagged(_path(worker), AssignmentInfo)
        return await session.delete(_path(worker), AssignmentInfo, if_match=etag)

    _say(target.ask(unpinned), as_json=as_json)


@assignment_commands.command("move")
@for_coordinator
def move(
    target: AdminTarget,
    model: ModelArgument,
    blocks: BlocksArgument,
    *,
    takes_from: Annotated[str, typer.Option("--from", help="The worker that holds them.", metavar="WORKER")],
    worker: Annotated[str, typer.Option("--to", help="The worker that is to.", metavar="WORKER")],
    reason: ReasonOption = "",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have one worker take blocks over from another, which serves them until they are ready there.

    The one that takes them is pinned to them, beside what it holds of the model. What the other one holds then is
    the planner's to decide again, unless it is pinned: then to what is left. A restart of the coordinator ends no
    move.
    """
    name, wanted = _checked(model, blocks, reason)
    request = MoveRequest(
        model=name, blocks=wanted, takes_from=takes_from, worker=worker, reason=reason, force=force
    )
    _say(
        target.ask(lambda session: session.post("/admin/v1/assignments/move", request, AssignmentInfo)),
        as_json=as_json,
    )


def _checked(model: str, blocks: str, reason: str = "") -> tuple[str, str]:
    if len(reason) > MAX_PIN_REASON:
        raise ConfigError(f"--reason has {len(reason)} characters; at most {MAX_PIN_REASON}")
    return checked_model_name(model), str(block_range_from_text(blocks))


def _path(worker: str) -> str:
    return f"/admin/v1/workers/{quote(worker, safe='')}/assignment"


def _say(info: AssignmentInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    what = "isn't pinned by hand" if info.pin is None else pin_text(info.pin)
    notes().print(f"worker {info.worker_id} {short_ids(printable(what))}", markup=False, soft_wrap=True)


def pin_text(pin: PinInfo) -> str:
    """A pin in words."""
    by = f"by {pin.by}" if pin.by else "by its own --blocks"
    why = f": {pin.reason}" if pin.reason else ""
    move_words = f" ({pin.taken} come from {pin.takes_from}, not yet over)" if pin.takes_from is not None else ""
    return f"is pinned to blocks {pin.blocks} of {pin.model or 'the first model'} {by}{move_words}{why}"


def _table(found: AssignmentList) -> Group:
    if not found.assignments:
        return Group("No workers yet: run `worker join` on a machine")
    table = plain_table("worker", "host", "state", "holds", "pinned")
    for info in found.assignments:
        holds = ", ".join(f"{span.model} {span.blocks} ({span.state})" for span in info.spans)
        pinned = (
            "" if info.pin is None else f"{info.pin.blocks} {'by ' + info.pin.by if info.pin.by else '--blocks'}"
        )
        table.add_row(info.worker_id[:12], cell(info.hostname), info.state, cell(holds), cell(pinned))
    reasons = [
        Text(f"  {short_ids(printable(f'{info.worker_id}: {info.reason}'))}", style="dim")
        for info in found.assignments
        if info.reason
    ]
    return Group(table, *reasons)


def _preview(found: AssignmentPreview) -> Group:
    parts: list[object] = [
        Text(f"memory: {human_bytes(found.needed_bytes)} needed, {human_bytes(found.capacity_bytes)} for blocks")
    ]
    for model in found.models:
        now, then = tokens_per_s_text(model.now), tokens_per_s_text(model.then)
        parts.append(Text(f"{printable(model.model)} now: {now}\n{printable(model.model)} then: {then}"))
    table = plain_table("worker", "host", "holds now", "would hold")
    for change in found.changes:
        table.add_row(
            change.worker_id[:12], cell(change.hostname), cell(_spans(change.now)), cell(_spans(change.then))
        )
    parts.append(table if found.changes else Text("nobody would hold anything else"))
    if found.refusal:
        parts.append(Text(f"It can't be done: {short_ids(printable(found.refusal))}", style="red"))
    if found.loses:
        parts.append(Text(f"It takes --force: {short_ids(printable(found.loses))}", style="yellow"))
    return Group(*parts)  # type: ignore[arg-type]


def _spans(spans: tuple[SpanAssignment, ...]) -> str:
    return ", ".join(f"{span.model} {span.blocks}" for span in spans) or "nothing"
