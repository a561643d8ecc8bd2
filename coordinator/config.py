"""The coordinator's settings: options first, then the environment, then the defaults. The only reader of either."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from coordinator.given_secret import secret_source, settled_secret
from coordinator.policy.settings import MAX_AUDIT_SHARE
from coordinator.policy.state import Placement, PolicySettings, Replan, checked_placement, checked_replan
from coordinator.state_folder import default_state
from protocol.coordinator_urls import checked_coordinator_url
from protocol.errors import ConfigError
from protocol.listening import listen_address_from_text
from protocol.metrics_address import MetricsAddress, metrics_address

DEFAULT_PORT = 7400
DEFAULT_AUDIT_SHARE = 0.01
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
"""Databases that can be named without their driver, and the driver that is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """What a coordinator is told at its start. Its repr shows neither secret nor database password."""

    state: Path
    listen_host: str = "127.0.0.1"
    listen_port: int = DEFAULT_PORT
    """0: any free port."""
    database_url: str | None = field(default=None, repr=False)
    """SQLAlchemy's form, with an async driver; None: SQLite in the state folder."""
    secret: str | None = field(default=None, repr=False)
    """The join secret, already found strong enough; None: the file in the state folder."""
    public_url: str | None = None
    """Where others reach the coordinator, if not where it listens."""
    take_over: bool = False
    """Whether to wait until another coordinator on the same database is gone, instead of refusing to start."""
    suspect_after_s: float = 3.0
    failover_after_s: float = 2.0
    """Others with room are given the blocks of a worker that has been away for this long as well."""
    lost_after_s: float = 15.0
    settle_s: float = 1.0
    """Placement waits until no worker has joined or left for this long."""
    placement: Placement = "balance"
    """What blocks are given out for."""
    replan: Replan = "auto"
    """Whether what is served is moved to something much better by itself."""
    replan_every_s: float = 60.0
    """How long nothing else must have changed before."""
    replan_margin: float = 1.2
    """How many times as fast it must be."""
    auto_quantize: bool = True
    """Whether workers with `--precision auto` hold blocks in int8 or int4 where a model doesn't fit otherwise."""
    require_signed_models: bool = False
    """Whether models are served only if a trusted author signed them."""
    audit_share: float = 0.0
    """Most of a worker's time that audits may take; 0: there are none but by hand."""
    has_dashboard: bool = True
    """Whether operators can sign in with a browser."""
    announces: bool = False
    """Whether it says on the local network where it is, if others reach it there."""

    metrics_listen: MetricsAddress | None = None
    """Where Prometheus reads metrics without a key; None: nowhere."""

    given: Mapping[str, str] = field(default_factory=dict)
    """Settings that were given at the start and where, `--placement` or `BRIGADE_PLACEMENT`: these go before what
    is changed while the coordinator runs (`coord settings`)."""
    secret_from: str = ""
    """Where the join secret was given; empty: the state folder's own."""

    def policy_settings(self) -> PolicySettings:
        """What decisions depend on, unless operators changed it while the coordinator ran."""
        return PolicySettings(
            suspect_after_s=self.suspect_after_s,
            failover_after_s=self.failover_after_s,
            lost_after_s=self.lost_after_s,
            settle_s=self.settle_s,
            placement=self.placement,
            replan=self.replan,
            replan_every_s=self.replan_every_s,
            replan_margin=self.replan_margin,
            auto_quantize=self.auto_quantize,
            require_signed_models=self.require_signed_models,
            audit_share=self.audit_share,
        )

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        state: Path | None = None,
        listen: str | None = None,
        database_url: str | None = None,
        secret: str | None = None,
        secret_file: Path | None = None,
        public_url: str | None = None,
        take_over: bool = False,
        placement: str | None = None,
        replan: str | None = None,
        auto_quantize: str | None = None,
        require_signed_models: str | None = None,
        audit_share: float | None = None,
        dashboard: bool | None = None,
        mdns: bool | None = None,
        metrics_listen: str | None = None,
        where: Mapping[str, str] | None = None,
    ) -> CoordinatorConfig:
        """Settle every setting: the argument, else `BRIGADE_STATE`, `_LISTEN`, `_DATABASE_URL`, `_SECRET`, ...

        `where` says of arguments that no option gave where they come from.

        Raises:
            ConfigError: a setting can't be used, the join secret is too weak among them.
        """
        environ = os.environ if environ is None else environ
        where = where or {}
        host, port = listen_address_from_text(
            listen or environ.get("BRIGADE_LISTEN") or "127.0.0.1", default_port=DEFAULT_PORT
        )
        changeable = {
            "placement": placement,
            "replan": replan,
            "auto_quantize": auto_quantize,
            "require_signed_models": require_signed_models,
            "audit_share": audit_share,
        }
        return cls(
            state=state or default_state(environ),
            listen_host=host,
            listen_port=port,
            database_url=_url(database_url, environ, "BRIGADE_DATABASE_URL", checked_database_url),
            secret=settled_secret(environ, secret, secret_file),
            public_url=_url(public_url, environ, "BRIGADE_PUBLIC_URL", checked_coordinator_url),
            take_over=take_over,
            has_dashboard=_switch(environ, "BRIGADE_DASHBOARD", given=dashboard),
            announces=_switch(environ, "BRIGADE_MDNS", given=mdns),
            metrics_listen=metrics_address(metrics_listen or environ.get("BRIGADE_METRICS_LISTEN")),
            given=_given(environ, changeable, where),
            secret_from=secret_source(environ, secret, secret_file, where),
            **_checked_settings(environ, changeable),
        )


def _url(given: str | None, environ: Mapping[str, str], variable: str, checked: Callable[[str], str]) -> str | None:
    text = given or environ.get(variable)
    return checked(text) if text else None


def _checked_settings(environ: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What `coord settings` can change too, as it is given at the start."""

    def said(name: str, default: str) -> str:
        return options[name] or environ.get(f"BRIGADE_{name.upper()}") or default

    return {
        "placement": checked_placement(said("placement", "balance"), "--placement"),
        "replan": checked_replan(said("replan", "auto"), "--replan"),
        "auto_quantize": _is_on(said("auto_quantize", "on"), "--auto-quantize"),
        "require_signed_models": _is_on(said("require_signed_models", "off"), "--require-signed-models"),
        "audit_share": _checked_share(options["audit_share"], environ.get("BRIGADE_AUDIT_SHARE")),
    }


def _given(environ: Mapping[str, str], options: Mapping[str, object], where: Mapping[str, str]) -> dict[str, str]:
    """Where each setting was given, of those that were."""
    found: dict[str, str] = {}
    for name, value in options.items():
        variable = f"BRIGADE_{name.upper()}"
        if value is not None:
            found[name] = where.get(name) or f"--{name.replace('_', '-')}"
        elif environ.get(variable):
            found[name] = variable
    return found


def _switch(environ: Mapping[str, str], variable: str, *, given: bool | None) -> bool:
    return _is_on(environ.get(variable) or "on", variable) if given is None else given


def _is_on(text: str, option: str) -> bool:
    if text not in ("on", "off"):
        raise ConfigError(f"{option} {text[:40]!r} isn't one of on, off")
    return text == "on"


def _checked_share(option: float | None, text: str | None) -> float:
    """What `--audit-share`, else `BRIGADE_AUDIT_SHARE` says."""
    named = "--audit-share" if option is not None or not text else "BRIGADE_AUDIT_SHARE"
    try:
        share = option if option is not None else float(text) if text else DEFAULT_AUDIT_SHARE
    except ValueError:
        share = math.nan
    if not 0.0 <= share <= MAX_AUDIT_SHARE:
        said = (text or "")[:40] if option is None else f"{option:g}"
        raise ConfigError(
            f"{named} is {said}; it must be between 0 (no audits) and {MAX_AUDIT_SHARE:g} of a worker's time"
        )
    return share


def checked_database_url(text: str) -> str:
    """The URL with its async driver, password kept.

    Raises:
        ConfigError: not a database URL, or of a database that isn't supported. The message never repeats the
            text, which may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as exc:
        raise ConfigError(
            "the database URL can't be read; write sqlite+aiosqlite:////folder/file.db or "
            "postgresql+asyncpg://user:password@host/database"
        ) from exc
    driver = DRIVERS.get(url.drivername, url.drivername)
    if driver not in DRIVERS.values():
        raise ConfigError(
            f"a database of kind {url.drivername[:40]!r} isn't supported; use sqlite+aiosqlite or "
            "postgresql+asyncpg"
        )
    if driver == DRIVERS["sqlite"] and url.database in (None, "", ":memory:"):
        raise ConfigError("an SQLite database needs a file: sqlite+aiosqlite:////folder/file.db")
    return url.set(drivername=driver).render_as_string(hide_password=False)
