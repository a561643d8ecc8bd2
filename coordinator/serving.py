"""A coordinator that runs until it is told to stop, and says at its first start what to do next."""

from __future__ import annotations

import shlex
import sys

from rich.text import Text

from coordinator import state_folder as names
from coordinator.app import RunningCoordinator, running
from coordinator.cli_output import console, notes
from coordinator.config import DEFAULT_PORT, CoordinatorConfig
from coordinator.state_folder import default_state
from protocol.background import freeze_heap
from protocol.listening import is_loopback, raise_open_files_limit, stop_signals
from protocol.metrics_address import metrics_notice
from protocol.service_manager import tell_service_manager


async def serve_until_stopped(config: CoordinatorConfig) -> None:
    """Run a coordinator until SIGINT or SIGTERM, and tell people and the service manager how it goes."""

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

    raise_open_files_limit()
    freeze_heap()  # of all that was imported, before there is anybody to keep waiting
    with stop_signals() as stop:
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
