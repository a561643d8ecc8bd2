"""`coord serve`: the options of a coordinator's start. What it does then: `serving`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.configured_commands import taken_from_file

if TYPE_CHECKING:
    from coordinator.config import CoordinatorConfig

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
    # these take long to import, and are not for --help
    from coordinator.config import CoordinatorConfig
    from protocol.logs import configure_logs

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
    _run(config)


def _run(config: CoordinatorConfig) -> None:
    from coordinator.serving import serve_until_stopped
    from protocol.event_loops import event_loop

    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(serve_until_stopped(config))
