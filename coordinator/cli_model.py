"""`coord model`: add a model to the coordinator on this machine; list, show and remove models anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated
from urllib.parse import quote

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from coordinator import state_folder as names
from coordinator.admin_client import AdminTarget
from coordinator.cli_output import console, human_bytes, model_table, notes, print_json, printable, short_ids
from coordinator.cli_target import JsonOption, for_coordinator
from coordinator.file_store import FileStore
from coordinator.state_folder import StateFolder, read_state_file
from protocol.errors import ConfigError, ConflictError
from protocol.ids import ModelName, checked_model_name
from protocol.rest import MAX_REPLICAS, AddModelRequest, ChangeModelRequest, ClusterStatus, ModelInfo, ModelList

STEPS = {"download": "downloading", "read": "reading", "pack": "packing"}

ReplicasOption = Annotated[
    int, typer.Option(min=1, max=MAX_REPLICAS, help="Workers that are to hold each block, as far as there is room.")
]

model_commands = typer.Typer(no_args_is_help=True, help="The models that the cluster serves.")


@model_commands.command("add")
@for_coordinator
def add_model(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="What the model will be called: letters, digits, '.', '_', '-'.")],
    source: Annotated[
        str, typer.Argument(help="A folder of safetensors, a GGUF file, or a Hugging Face id (owner/name).")
    ],
    *,
    replicas: ReplicasOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Split a model into files by hash, in the coordinator's store, and have the cluster serve it.

    Runs on the coordinator's machine, while the coordinator runs.
    """
    model_name = checked_model_name(name)
    status = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    _check_is_here(target, status)
    _check_is_free(model_name, status)
    info, remarks = _packed_and_added(target, model_name, source, replicas)
    for remark in remarks:
        notes().print(f"note: {printable(remark)}", markup=False, soft_wrap=True)
    if as_json:
        print_json(info)
        return
    console().print(
        f"added {info.name}: {info.architecture}, {info.n_blocks} blocks, {human_bytes(info.size_bytes)}, "
        f"revision {info.revision[:12]}",
        markup=False,
        soft_wrap=True,
    )
    _print_reason(info)


@model_commands.command("list")
@for_coordinator
def list_models(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """List the models: state, reason, and how many workers hold which blocks."""
    models = target.ask(lambda session: session.get("/admin/v1/models", ModelList))
    if as_json:
        print_json(models)
    else:
        console().print(model_table(models.models))


@model_commands.command("show")
@for_coordinator
def show_model(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show one model."""
    path = _model_path(checked_model_name(name))
    model = target.ask(lambda session: session.get(path, ModelInfo))
    if as_json:
        print_json(model)
    else:
        console().print(model_table((model,)))


@model_commands.command("replicas")
@for_coordinator
def set_replicas(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="The model's name.")],
    replicas: Annotated[int, typer.Argument(min=1, max=MAX_REPLICAS, help="Workers that hold each block.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say how many workers are to hold each block of a model, as far as there is room.

    With two or more, a worker that dies is replaced by one that has its blocks loaded.
    """
    path, request = _model_path(checked_model_name(name)), ChangeModelRequest(n_replicas=replicas)
    info = target.ask(lambda session: session.patch(path, request, ModelInfo))
    if as_json:
        print_json(info)
        return
    console().print(f"{info.name}: {info.n_replicas} wanted of each block", markup=False)
    _print_reason(info)


@model_commands.command("remove")
@for_coordinator
def remove_model(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Stop serving a model, at once.

    Workers drop its blocks; files that no other model has are removed from the coordinator.
    """
    path = _model_path(checked_model_name(name))
    model = target.ask(lambda session: session.delete(path, ModelInfo))
    if as_json:
        print_json(model)
    else:
        console().print(f"removed {model.name}, revision {model.revision[:12]}", markup=False)


def _print_reason(info: ModelInfo) -> None:
    if info.reason:
        console().print(short_ids(printable(info.reason)), markup=False, soft_wrap=True)


def _model_path(name: ModelName) -> str:
    return f"/admin/v1/models/{quote(name, safe='')}"


def _check_is_here(target: AdminTarget, status: ClusterStatus) -> None:
    """The files are written beside the coordinator, so it has to be the one of this state folder."""
    if read_state_file(target.state / names.COORDINATOR_ID) != status.coordinator_id:
        raise ConfigError(
            f"`coord model add` writes into the coordinator's own folder, and {target.state} isn't the one of the "
            f"coordinator at {target.url}: run it on the coordinator's machine and name its folder with --state"
        )


def _check_is_free(name: ModelName, status: ClusterStatus) -> None:
    for model in status.models:
        if model.name == name:
            raise ConflictError(
                f"there is a model {name} already (revision {model.revision[:12]}): choose another name, or "
                f"`coord model remove {name}` first"
            )


def _packed_and_added(
    target: AdminTarget, name: ModelName, source: str, n_replicas: int
) -> tuple[ModelInfo, tuple[str, ...]]:
    """The added model, and what the operator should know about it."""
    try:
        from coordinator.packing import pack_model  # noqa: PLC0415 - torch, which only this command needs
    except ImportError as exc:
        raise ConfigError(
            f"adding a model needs packages that aren't installed ({exc.name}): pip install 'brigade[packing]'"
        ) from exc
    store = FileStore(StateFolder(target.state).files)
    with store.lock():  # until the model is recorded, nothing else says that its files are needed
        with _progress_bar() as progress:
            packed = pack_model(source, store, progress)
        request = AddModelRequest(name=name, revision=packed.revision, n_replicas=n_replicas)
        info = target.ask(lambda session: session.post("/admin/v1/models", request, ModelInfo))
    return info, packed.notes


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; gives the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    out = notes()
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def move(step: str, n_done: int, n_total: int) -> None:
            progress.update(task, description=STEPS.get(step, step), completed=n_done, total=n_total or None)

        yield move
