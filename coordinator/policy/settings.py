"""Settings that can be changed while a coordinator runs: what there is, what is refused, and which value counts.

What was given at the start (option or environment) comes first, then what was stored, then the default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import msgspec

from coordinator.policy.state import Placement, PolicySettings, Replan
from protocol.control_messages import HEARTBEAT_S
from protocol.error_forms import repeated
from protocol.errors import InvalidRequestError
from protocol.key_limits import MAX_CONCURRENT, MAX_RATE, RATE_LIMITS, KeyLimits

SettingValue = str | float | bool
MAX_AUDIT_SHARE = 0.5
"""Of a worker's time: audits mustn't keep it from its work."""
DEFAULT_PREFIX = "default_"
DEFAULT_LIMITS = {**dict.fromkeys(RATE_LIMITS, MAX_RATE), "max_concurrent": MAX_CONCURRENT}
"""Limits that new keys can have by themselves, and the most of each."""
_ORDERED = {"suspect_after_s", "lost_after_s"}
"""The second mustn't be less than the first."""
Range = tuple[float, float]
GATEWAY = re.compile(
    r"(https://(\[[0-9a-f:]{2,39}\]|[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?)"
    r"|http://(localhost|127\.0\.0\.1|\[::1\]))(:[0-9]{1,5})?"
)
"""Nothing but an origin: it goes into the page's Content-Security-Policy as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: a field of `PolicySettings`, and which values it may have."""

    name: str
    meaning: str
    allowed: tuple[str, ...] | Range | type[bool] | re.Pattern[str]
    """Words to choose from, the least and the most of a number, on and off, or how a text must look (or empty)."""
    form: str = ""
    """How such a text must look, in words."""
    is_whole: bool = False
    """Whether a number must be a whole one."""

    def checked(self, value: SettingValue) -> SettingValue:
        """The value, if the setting may have it.

        Raises:
            InvalidRequestError: it may not; says what it may.
        """
        if self.allowed is bool:
            is_allowed = isinstance(value, bool)
        elif isinstance(self.allowed, re.Pattern):
            is_allowed = isinstance(value, str) and (not value or self.allowed.fullmatch(value) is not None)
        elif isinstance(value, bool):
            is_allowed = False
        elif isinstance(value, str):
            is_allowed = value in self.words
        else:
            # written so that NaN is refused too
            is_allowed = self.range is not None and self.range[0] <= value <= self.range[1]
            is_allowed = is_allowed and (not self.is_whole or value == int(value))
        if not is_allowed:
            given = repeated(value) if isinstance(value, str) else shown(value)
            raise InvalidRequestError(f"{self.name} is {given}; it can be {self.allowed_words()}")
        return value if isinstance(value, str | bool) else float(value)

    def read(self, text: str) -> SettingValue:
        """A value as people write it.

        Raises:
            InvalidRequestError: it is none that the setting may have.
        """
        if self.allowed is bool and text in ("on", "off"):
            return self.checked(text == "on")
        if self.range is not None:
            try:
                return self.checked(float(text))
            except ValueError:
                pass
        return self.checked(text)

    def allowed_words(self) -> str:
        """What it may be, in words."""
        if self.form:
            return f"{self.form}, or empty"
        if self.range is not None:
            least, most = map(shown, self.range)
            return f"a {'whole ' if self.is_whole else ''}number from {least} to {most}"
        return " or ".join(self.words or ("on", "off"))

    @property
    def words(self) -> tuple[str, ...]:
        """The words to choose from; none if it is no choice among words."""
        if isinstance(self.allowed, tuple):
            return tuple(each for each in self.allowed if isinstance(each, str))
        return ()

    @property
    def range(self) -> Range | None:
        """The least and the most; None if it is no number."""
        if isinstance(self.allowed, type | re.Pattern) or self.words:
            return None
        least, most = self.allowed
        assert not isinstance(least, str)
        assert not isinstance(most, str)
        return least, most


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(name="placement", meaning="what blocks are given out for from now on", allowed=get_args(Placement)),
        Setting(
            name="replan",
            meaning="whether blocks that are served are moved to something much better by themselves; a move under "
            "way is finished",
            allowed=get_args(Replan),
        ),
        Setting(
            name="replan_every_s",
            meaning="seconds without any other change before something better is looked for",
            allowed=(1.0, 7 * 24 * 3600.0),
        ),
        Setting(
            name="replan_margin", meaning="how many times as fast it must be modelled to be", allowed=(1.01, 100.0)
        ),
        Setting(
            name="auto_quantize",
            meaning="whether workers with --precision auto hold blocks in fewer bits where nothing else fits",
            allowed=bool,
        ),
        Setting(
            name="require_signed_models",
            meaning="whether generations begin only with models that a trusted author signed (`coord author`)",
            allowed=bool,
        ),
        Setting(
            name="gateway_url",
            meaning="where the dashboard's chat page finds `client serve`; empty: there is no chat page",
            allowed=GATEWAY,
            form="https://host:port without a path (http:// on loopback only)",
        ),
        Setting(
            name="earned_priority",
            meaning="whether keys of owners whose workers gave much are served as one class higher",
            allowed=bool,
        ),
        *(
            Setting(
                name=f"{DEFAULT_PREFIX}{name}",
                meaning=f"{name} of new client keys for which nothing else is said; 0: no limit",
                allowed=(0.0, float(most)),
                is_whole=True,
            )
            for name, most in DEFAULT_LIMITS.items()
        ),
        Setting(
            name="audit_share",
            meaning="most of a worker's time that audits may take; 0: there are none but by hand",
            allowed=(0.0, MAX_AUDIT_SHARE),
        ),
        Setting(
            name="suspect_after_s",
            meaning="seconds of silence after which nothing new is routed over a worker",
            allowed=(2 * HEARTBEAT_S, 3600.0),
        ),
        Setting(
            name="failover_after_s",
            meaning="seconds of silence after which others with room are given a worker's blocks as well",
            allowed=(0.5, 3600.0),
        ),
        Setting(
            name="lost_after_s",
            meaning="seconds of silence after which a worker's blocks are taken from it",
            allowed=(2 * HEARTBEAT_S, 24 * 3600.0),
        ),
        Setting(
            name="settle_s",
            meaning="seconds without anybody coming or going before blocks are given out",
            allowed=(0.0, 3600.0),
        ),
        Setting(
            name="longest_departure_s",
            meaning="seconds that a drained worker serves on at most, until others hold its blocks",
            allowed=(0.0, 24 * 3600.0),
        ),
    )
}


def setting_named(name: str) -> Setting:
    """The setting of this name.

    Raises:
        InvalidRequestError: there is none, or it can't be changed while a coordinator runs.
    """
    found = SETTINGS.get(name)
    if found is None:
        raise InvalidRequestError(
            f"there is no setting {repeated(name)} that can be changed here; there are {', '.join(SETTINGS)}"
        )
    return found


def with_values(settings: PolicySettings, values: Mapping[str, SettingValue]) -> PolicySettings:
    """The settings with other values in some.

    Raises:
        InvalidRequestError: one can't have its value, or they contradict each other.
    """
    checked = {name: setting_named(name).checked(value) for name, value in values.items()}
    changed = replace(settings, **checked)  # type: ignore[arg-type]
    if _ORDERED & checked.keys() and changed.suspect_after_s > changed.lost_after_s:
        raise InvalidRequestError(
            f"suspect_after_s is {changed.suspect_after_s:g} and lost_after_s {changed.lost_after_s:g}: a worker "
            "can't be lost before it is suspect; first raise lost_after_s to "
            f"{changed.suspect_after_s:g} at least, or lower suspect_after_s to {changed.lost_after_s:g} at most"
        )
    return changed


def with_stored(
    settings: PolicySettings, stored: Mapping[str, SettingValue], given: Collection[str]
) -> tuple[PolicySettings, tuple[str, ...]]:
    """The settings with what was stored of those that weren't given at the start, and what of it can't be used."""
    usable, unusable = {}, []
    for name, value in stored.items():
        if name in given:
            continue
        try:
            usable[name] = setting_named(name).checked(value)
        except InvalidRequestError as error:
            unusable.append(error.message)
    try:
        return with_values(settings, usable), tuple(unusable)
    except InvalidRequestError as error:
        # only these can contradict each other: what else was stored counts
        rest = {name: value for name, value in usable.items() if name not in _ORDERED}
        return with_values(settings, rest), (*unusable, error.message)


def with_default_limits(limits: KeyLimits, settings: PolicySettings) -> KeyLimits:
    """Limits of a new client key, with the settings' where it has none of a kind."""
    missing = (name for name in DEFAULT_LIMITS if getattr(limits, name) is None)
    defaults = {name: int(getattr(settings, f"{DEFAULT_PREFIX}{name}")) for name in missing}
    return msgspec.structs.replace(limits, **{name: value for name, value in defaults.items() if value > 0})


def shown(value: SettingValue) -> str:
    """A value as people write it, and as `Setting.read` takes it: with all its digits."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:.15g}"
