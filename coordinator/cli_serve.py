"""`coord serve`: run a coordinator until it is told to stop, and say at its first start what to do next."""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from coordinator import state_folder as names
from coordinator.background import freeze_heap
from coordinator.cli_output import console, notes
from coordinator.config import DEFAULT_PORT, CoordinatorConfig, default_state
from protocol.configured_commands import taken_from_file
from protocol.event_loops import event_loop
from protocol.listening import is_loopback, stop_signals
from protocol.logs import configure_logs
from protocol.metrics_address import metrics_notice
from protocol.service_manager import tell_service_manager

ListenOption = Annotated[
    str | None,
    typer.Option(help="Where to listen, host:port. Else BRIGADE_LISTEN, else 127.0.0.1:7400. Port 0: any free."),
]
StateOption = Annotated[
    Path | None,
    typer.Option(help="Folder for everything that must be kept. Else BRIGADE_STATE, else the user's own."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        help="postgresql+asyncpg://user@host/database, or sqlite+aiosqlite:///FILE. Else BRIGADE_DATABASE_URL, "
        "else SQLite in the state folder."
    ),
]
SecretFileOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the join secret. Else BRIGADE_SECRET, else one made at the first start. One that `coord "
        "secret rotate` replaced doesn't count any more, and the state folder's does."
    ),
]
SecretOption = Annotated[str | None, typer.Option(help="The join secret itself; anybody can see it in `ps`.")]
PublicUrlOption = Annotated[
    str | None,
    typer.Option(help="Where others reach this coordinator, https://host:port, if not where it listens."),
]
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="If another coordinator serves the database, stand by until it is gone, and then serve. It needs "
        "a copy of that one's state folder.",
    ),
]
PlacementOption = Annotated[
    str | None,
    typer.Option(
        help="What blocks are given out for: one-stream, many-streams, balance (both alike), or spread over "
        "all workers. Else BRIGADE_PLACEMENT, else balance."
    ),
]
AutoQuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="on|off",
        help="on: where a model doesn't fit otherwise, workers with --precision auto hold blocks in int8, then in "
        "int4, as few of them as that takes; `coord status` says which and why. off: the model waits for more "
        "memory. Else BRIGADE_AUTO_QUANTIZE, else on.",
    ),
]

RequireSignedOption = Annotated[
    str | None,
    typer.Option(
        metavar="on|off",
        help="on: models are added, and generations begin, only if an author whom you trust signed the model "
        "(`coord author add`, `coord model sign`). Else BRIGADE_REQUIRE_SIGNED_MODELS, else off.",
    ),
]

AuditShareOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Most of a worker's time, 0 to 0.5, that audits may take: now and then two workers that hold the same "
        "blocks are given the same numbers, and who computes something else is quarantined (`coord trust audits`). "
        "0: only by `coord trust audit`. Else BRIGADE_AUDIT_SHARE, else 0.01.",
    ),
]

DashboardOption = Annotated[
    bool | None,
    typer.Option(
        "--dashboard/--no-dashboard",
        help="Whether operators can sign in with a browser (`coord dashboard`). Else BRIGADE_DASHBOARD, on or off, "
        "else on.",
    ),
]

MdnsOption = Annotated[
    bool | None,
    typer.Option(
        "--mdns/--no-mdns",
        help="Whether it says on the local network where it is, so that `worker join` needs no address (mDNS; not "
        "while it listens on loopback only). Else BRIGADE_MDNS, on or off, else on.",
    ),
]

MetricsListenOption = Annotated[
    str | None,
    typer.Option(
        help="Where Prometheus reads metrics over plain HTTP without a key, host:port (9464 if no port is given). "
        "Else BRIGADE_METRICS_LISTEN, else only at /metrics of the coordinator's own port, with an admin key."
    ),
]

ReplanOption = Annotated[
    str | None,
    typer.Option(
        help="Whether blocks that are served are moved, step by step, for what is modelled to be 20 % faster: "
        "auto, or off (only by `coord plan --apply`). Else BRIGADE_REPLAN, else auto."
    ),
]


def serve(
    context: typer.Context,
    *,
    listen: ListenOption = None,
    state: StateOption = None,
    database_url: DatabaseOption = None,
    secret_file: SecretFileOption = None,
    secret: SecretOption = None,
    public_url: PublicUrlOption = None,
    take_over: TakeOverOption = False,
    placement: PlacementOption = None,
    replan: ReplanOption = None,
    auto_quantize: AutoQuantizeOption = None,
    require_signed_models: RequireSignedOption = None,
    audit_share: AuditShareOption = None,
    dashboard: DashboardOption = None,
    mdns: MdnsOption = None,
    metrics_listen: MetricsListenOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Run the coordinator until it is told to stop (Ctrl-C or SIGTERM; a second time: at once)."""
    configure_logs("coordinator", is_verbose=verbose)
    config = CoordinatorConfig.from_env(
        state=state,
        listen=listen,
        database_url=database_url,
        secret=secret,
        secret_file=secret_file,
        public_url=public_url,
        take_over=take_over,
        placement=placement,
        replan=replan,
        auto_quantize=auto_quantize,
        require_signed_models=require_signed_models,
        audit_share=audit_share,
        dashboard=dashboard,
        mdns=mdns,
        metrics_listen=metrics_listen,
        where=taken_from_file(context),
    )
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(config))


async def _serve(config: CoordinatorConfig) -> None:
    from coordinator.app import RunningCoordinator, running  # noqa: PLC0415 - takes long, and is not for --help

    def announce(coordinator: RunningCoordinator) -> None:
        if coordinator.is_first_start:
            console().print(Text(_welcome(config, coordinator.url)), soft_wrap=True)
        else:
            console().print(Text(f"Brigade coordinator at {coordinator.url}"), soft_wrap=True)
            if coordinator.authority.secrets.has_new_secret:
                path = coordinator.state_folder.path(names.JOIN_SECRET)
                console().print(
                    Text(f"No join secret was given or kept: a new one was made, {path}"), soft_wrap=True
                )
        if retired_at := coordinator.authority.secrets.given_was_retired_at:
            warning = (
                f"warning: the join secret that {config.secret_from} gives was rotated away on "
                f"{retired_at:%Y-%m-%d} and doesn't count; the state folder's does. Leave it out, or give the new "
                "one"
            )
            notes().print(Text(warning, style="yellow"), soft_wrap=True)

    stop = asyncio.Event()
    with stop_signals(asyncio.get_running_loop(), stop):
        async with running(config) as coordinator:
            announce(coordinator)
            if config.has_dashboard:
                where = (
                    f"Dashboard at {coordinator.url}/dashboard/ (`coord dashboard` says how a browser trusts it)"
                )
                notes().print(Text(where), soft_wrap=True)
            if line := metrics_notice(coordinator.metrics_url, config.metrics_listen):
                notes().print(Text(line), soft_wrap=True)
            if warning := exposure(config.listen_host):
                notes().print(Text(warning, style="yellow"), soft_wrap=True)
            sys.stdout.flush()
            freeze_heap()
            tell_service_manager("READY=1")
            await stop.wait()
            tell_service_manager("STOPPING=1")


def _welcome(config: CoordinatorConfig, url: str) -> str:
    folder = config.state.expanduser().absolute()
    secret_file = "FILE_WITH_THE_SECRET" if config.secret else shlex.quote(str(folder / names.JOIN_SECRET))
    is_default = folder == default_state({}).absolute()  # another terminal may lack BRIGADE_STATE
    option = "" if is_default else f" --state {shlex.quote(str(folder))}"
    prefix = "" if is_default else f"BRIGADE_STATE={shlex.quote(str(folder))} "
    own = "the one that you gave" if config.secret else f"{folder / names.JOIN_SECRET} (keep it secret)"
    text = f"""\
Brigade coordinator at {url}

This is its first start. What it must keep is in {folder}, readable by this user only.
  join secret  {own}
  admin key    {folder / names.ADMIN_KEY}
  client key   {folder / names.CLIENT_KEY}

What to do next:
  1. Add a model: a folder of safetensors, a GGUF file, or a Hugging Face id
       coord model add NAME SOURCE{option}
  2. Start a worker, on this machine or (copy the secret's file there) on others
       worker join {url} --secret-file {secret_file}
     or, where the secret isn't to go, by one line that is good for a day
       coord invite{option}
  3. See how it goes (in a browser: coord dashboard{option}), and generate
       coord status{option}
       {prefix}client generate "The capital of France is" --model NAME
"""
    if is_loopback(config.listen_host):
        port = config.listen_port or DEFAULT_PORT
        text += f"""
It listens on loopback only: other machines can't reach it. To let them:
       coord serve --listen 0.0.0.0:{port} --public-url https://THIS-HOST:{port}{option}
"""
    return text


def exposure(host: str) -> str | None:
    """What to say of listening where other machines reach it; None on loopback."""
    if is_loopback(host):
        return None
    where = "every address of this machine" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared with
    return (
        f"warning: it listens on {where}: whoever reaches that can try to join, and to guess keys. Everything is "
        "encrypted and asks for the join secret or a key; let only the cluster's networks through the firewall."
    )
