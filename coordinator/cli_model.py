"""`coord model`: add a model to the coordinator on this machine; list, show and remove models anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from coordinator.admin_client import AdminTarget, all_pages, changed_as_read
from coordinator.cli_output import (
    console,
    model_table,
    notes,
    print_answer,
    print_json,
    printable,
    short_ids,
)
from coordinator.cli_packing import packed
from coordinator.cli_sign import keygen, sign_model, verify_model
from coordinator.cli_target import JsonOption, for_coordinator
from coordinator.file_store import FileStore
from coordinator.served_models import check_is_here, model_path, served_model
from coordinator.signing_files import read_signature, signature_beside
from coordinator.state_folder import StateFolder
from protocol.byte_sizes import human_bytes
from protocol.cluster_rest import MAX_REPLICAS, AddModelRequest, ChangeModelRequest, ClusterStatus
from protocol.errors import ConfigError, ConflictError
from protocol.ids import FileHash, ModelName, Revision, checked_model_name
from protocol.rest import ModelInfo, ModelList

ReplicasOption = Annotated[
    int, typer.Option(min=1, max=MAX_REPLICAS, help="Workers that are to hold each block, as far as there is room.")
]
SignatureOption = Annotated[
    Path | None,
    typer.Option(help="Its author's signature. Else the one in its folder or beside its file, if there is one."),
]
PinnedEndsOption = Annotated[
    bool,
    typer.Option(
        "--pinned-ends",
        help="All its routes begin and end on workers whose trust you pinned (`coord trust pin`): the first "
        "and the last worker see the tokens.",
    ),
]

model_commands = typer.Typer(no_args_is_help=True, help="The models that the cluster serves.")
model_commands.command("keygen")(keygen)
model_commands.command("sign")(sign_model)
model_commands.command("verify")(verify_model)


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ConfigError(f"{text[:40]!r} isn't one of on, off")
    return text == "on"


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
    signature: SignatureOption = None,
    pinned_ends: PinnedEndsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Split a model into files by hash, in the coordinator's store, and have the cluster serve it.

    Runs on the coordinator's machine, while the coordinator runs.
    """
    model_name = checked_model_name(name)
    status = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    check_is_here(target, status, "coord model add")
    _check_is_wanted(model_name, status, FileStore(StateFolder(target.state).files))
    envelope = _signature(signature, source)

    def request(revision: Revision) -> AddModelRequest:
        return AddModelRequest(
            name=model_name,
            revision=revision,
            n_replicas=replicas,
            signature=envelope,
            pinned_ends=pinned_ends,
        )

    info, remarks = _packed_and_added(target, source, request)
    for remark in remarks:
        notes().print(f"note: {printable(remark)}", markup=False, soft_wrap=True)
    if as_json:
        print_json(info)
    else:
        _print_added(info)


def _print_added(info: ModelInfo) -> None:
    console().print(
        f"added {info.name}: {info.architecture} ({info.kind}), {info.n_blocks} blocks, "
        f"{human_bytes(info.size_bytes)}, revision {info.revision[:12]}, {signed_words(info)}",
        markup=False,
        soft_wrap=True,
    )
    _print_reason(info)


@model_commands.command("list")
@for_coordinator
def list_models(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """List the models: state, reason, and how many workers hold which blocks."""
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/models", {}, ModelList))
    models = tuple(model for page in pages for model in page.models)
    print_answer(ModelList(models=models), model_table(models), as_json=as_json)


@model_commands.command("show")
@for_coordinator
def show_model(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show one model."""
    model = served_model(target, checked_model_name(name))
    if as_json:
        print_json(model)
    else:
        console().print(model_table((model,)))
        ends = "; its routes begin and end on pinned workers" if model.pinned_ends else ""
        console().print(signed_words(model) + ends, markup=False, soft_wrap=True)


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
    path, request = model_path(checked_model_name(name)), ChangeModelRequest(n_replicas=replicas)
    info = target.ask(lambda session: changed_as_read(session, path, ModelInfo, request, ModelInfo))
    if as_json:
        print_json(info)
        return
    console().print(f"{info.name}: {info.n_replicas} wanted of each block", markup=False)
    _print_reason(info)


@model_commands.command("pinned-ends")
@for_coordinator
def set_pinned_ends(
    target: AdminTarget,
    name: Annotated[str, typer.Argument(help="The model's name.")],
    is_wanted: Annotated[bool, typer.Argument(metavar="on|off", parser=_on_or_off, help="Whether they must.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whether all routes of a model begin and end on workers whose trust you pinned (`coord trust pin`).

    The first worker is sent the prompt and the last one makes the answer; those between see hidden states only.
    """
    path, request = model_path(checked_model_name(name)), ChangeModelRequest(pinned_ends=is_wanted)
    info = target.ask(lambda session: changed_as_read(session, path, ModelInfo, request, ModelInfo))
    if as_json:
        print_json(info)
        return
    console().print(f"{info.name}: pinned ends {'on' if info.pinned_ends else 'off'}", markup=False)
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
    path = model_path(checked_model_name(name))
    model = target.ask(lambda session: session.delete(path, ModelInfo))
    print_answer(model, f"removed {model.name}, revision {model.revision[:12]}", as_json=as_json)


def _print_reason(info: ModelInfo) -> None:
    if info.reason:
        console().print(short_ids(printable(info.reason)), markup=False, soft_wrap=True)


def _check_is_wanted(name: ModelName, status: ClusterStatus, store: FileStore) -> None:
    """A model that is served is added again only after a restore: backups hold no model files."""
    for model in status.models:
        if model.name == name and store.has(FileHash(model.revision)):
            raise ConflictError(
                f"there is a model {name} already (revision {model.revision[:12]}): choose another name, or "
                f"`coord model remove {name}` first"
            )


def _packed_and_added(
    target: AdminTarget, source: str, request: Callable[[Revision], AddModelRequest]
) -> tuple[ModelInfo, tuple[str, ...]]:
    """The added model, and what the operator should know about it."""
    store = FileStore(StateFolder(target.state).files)
    with store.lock():  # until the model is recorded, nothing else says that its files are needed
        model = packed(source, store)
        wanted = request(model.revision)
        needed = [name for name in ("signature", "pinned_ends") if getattr(wanted, name)]
        info = target.ask(lambda session: session.post("/admin/v1/models", wanted, ModelInfo, needed=needed))
    return info, model.notes


def _signature(given: Path | None, source: str) -> str | None:
    """The signature that is given, else the one that lies in the model's folder or beside its file."""
    found = signature_beside(source) if given is None else read_signature(given)
    return None if found is None else found.decode("utf-8", errors="replace")


def signed_words(info: ModelInfo) -> str:
    """Who signed a model, in words; what signers call themselves is quoted."""
    if info.signed is None:
        return "not signed"
    signed = info.signed
    who = (
        f"{signed.author}, {signed.key}" if signed.author else f"nobody whom this coordinator trusts, {signed.key}"
    )
    what = f"{signed.model!r} version {signed.version!r}, by {signed.signer!r}"
    return printable(f"signed by {who}, on {signed.signed_at} (as it says: {what})")
