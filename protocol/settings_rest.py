"""Bodies of the requests by which operators see and change a running coordinator's settings, and of the answers."""

from __future__ import annotations

from typing import Literal

from protocol.rest import Body

SettingValue = str | float | bool
MAX_SETTING_TEXT = 100


class SettingInfo(Body, frozen=True, kw_only=True):
    """One setting."""

    name: str
    meaning: str
    value: SettingValue
    """In force now."""
    source: Literal["given", "stored", "default"]
    """given: at the start, which goes before stored; stored: changed here."""
    where: str
    """The source in words, and what to do to change it."""
    default: SettingValue
    """What it is if it is neither given nor stored."""
    allowed: str
    """What it may be, in words."""
    stored: SettingValue | None = None
    """What was changed here, also where it doesn't count because something else was given at the start."""


class SettingList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/settings`: all that can be changed while the coordinator runs."""

    settings: tuple[SettingInfo, ...]


class ChangeSettingsRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`PATCH /admin/v1/settings`: all of these or none; null: what was changed here counts no longer."""

    settings: dict[str, SettingValue | None]

    def __post_init__(self) -> None:
        """Refuse what can't be meant. ValueError: msgspec reports it as invalid."""
        if not self.settings:
            raise ValueError("no setting is named; send at least one")
        for value in self.settings.values():
            if isinstance(value, str) and len(value) > MAX_SETTING_TEXT:
                raise ValueError(f"a value has {len(value)} characters; at most {MAX_SETTING_TEXT}")
