"""`client serve`: a cluster behind OpenAI's interfaces, until it is told to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from client.command import for_cluster, tell
from client.config import ClientConfig
from client.gateway.config import (
    DEFAULT_MAX_CONNECTIONS,
    DEFAULT_STOP_S,
    DEFAULT_TIMEOUT_S,
    GatewayConfig,
    gateway_address,
)
from protocol.listening import is_loopback, raise_open_files_limit, stop_signals
from protocol.metrics_address import metrics_address, metrics_notice

Listen = Annotated[
    str | None, typer.Option(help="Where to listen, host:port. Port 0: any free one. \\[default: 127.0.0.1:8000]")
]
ShareKey = Annotated[
    bool,
    typer.Option(
        "--share-key",
        help="Answer whoever brings no key of the cluster, or one of another sort such as an SDK's placeholder, "
        "with the gateway's own key. Without it only requests without any key are, and only on loopback.",
    ),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        help="Let pages of this origin (https://chat.example.com) use the gateway from a browser; may be repeated; "
        "* is any. \\[default: none]"
    ),
]
Name = Annotated[
    list[str] | None,
    typer.Option(help="A host name by which others reach the gateway; may be repeated. Addresses always do."),
]
TlsCert = Annotated[
    Path | None, typer.Option(help="Certificate (PEM, with its chain), to answer https; needs --tls-key.")
]
TlsKey = Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")]
Timeout = Annotated[float, typer.Option(help="Seconds that a whole answer may take.")]
StopWithin = Annotated[
    float, typer.Option(help="Seconds that answers under way may take once the gateway is told to stop.")
]
MetricsListen = Annotated[
    str | None,
    typer.Option(
        help="Where Prometheus reads metrics over plain HTTP without a key, host:port (9464 if no port is given). "
        "Else only at /metrics of the gateway's own port, with an admin key of the cluster."
    ),
]
MaxConnections = Annotated[
    int, typer.Option(help="Connections of one address at once; a proxy brings everybody's.", min=1)
]


@for_cluster
def serve(
    *,
    listen: Listen = None,
    share_key: ShareKey = False,
    allow_origin: AllowOrigin = None,
    name: Name = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    stop_within: StopWithin = DEFAULT_STOP_S,
    max_connections: MaxConnections = DEFAULT_MAX_CONNECTIONS,
    metrics_listen: MetricsListen = None,
    config: ClientConfig,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Serve the cluster's models by OpenAI's, Anthropic's and Ollama's APIs until told to stop.

    Ctrl-C or SIGTERM: answers under way end (--stop-within). A second time: at once.
    """
    # these take long to import, and are not for --help
    from protocol.event_loops import event_loop
    from protocol.logs import configure_logs

    configure_logs("gateway", is_verbose=verbose)
    host, port = gateway_address(listen)
    gateway = GatewayConfig(
        cluster=config,
        listen_host=host,
        listen_port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        allow_origins=tuple(allow_origin or ()),
        names=tuple(name or ()),
        share_key=share_key,
        timeout_s=timeout,
        stop_s=stop_within,
        max_connections=max_connections,
        metrics_listen=metrics_address(metrics_listen),
    )
    gateway.check()
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(gateway))


async def _serve(config: GatewayConfig) -> None:
    # these take long to import, and are not for --help
    from client.gateway.app import running
    from protocol.service_manager import tell_service_manager

    raise_open_files_limit()
    with stop_signals() as stop:
        async with running(config) as gateway:
            print(f"Brigade gateway at {gateway.url}/v1, for the cluster at {config.cluster.url}", flush=True)
            if line := metrics_notice(gateway.metrics_url, config.metrics_listen):
                tell(line)
            for line in notices(config):
                tell(line)
            tell_service_manager("READY=1")
            await stop.wait()
            tell_service_manager("STOPPING=1")


def notices(config: GatewayConfig) -> list[str]:
    """What an operator should know of how the gateway listens, and of whose quotas it uses."""
    key_id = config.cluster.api_key.key_id
    found = []
    if config.own_key_for_strange is not None:
        found.append(f"requests without a key of the cluster count as key {key_id} (--share-key)")
    elif config.own_key_for_none is not None:
        found.append(f"requests without a key count as key {key_id}, as only this machine reaches the gateway")
    else:
        found.append("every request needs a key of the cluster: Authorization: Bearer brigade-client...")
    if "*" in config.allow_origins and config.own_key_for_none is not None:
        found.append(
            f"warning: any page that a browser here opens uses the cluster at key {key_id}'s expense "
            "(--allow-origin *); name the origins instead"
        )
    if not is_loopback(config.listen_host):
        place = "every address of this machine" if config.listen_host in ("0.0.0.0", "::") else config.listen_host  # noqa: S104 - compared with
        what = f"warning: it listens on {place}"
        if config.tls_cert is None:
            what += "; keys and texts travel unencrypted: give --tls-cert and --tls-key, or put a proxy before it"
        if config.share_key:
            what += "; whoever reaches it uses the cluster at this key's expense (--share-key)"
        found.append(what)
    return found
