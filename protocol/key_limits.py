"""What an API key may use: the limits that an operator gives it, what is refused as a limit, and changing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from protocol.ids import ModelName, checked_model_name

LimitName: TypeAlias = Literal["requests/min", "tokens/min", "tokens/day"]
"""A rate, as it is named to people."""

Priority = Literal["high", "normal", "low"]
"""Whose turn it is where several wait."""
PRIORITY_WEIGHTS: Mapping[Priority, float] = {"high": 4.0, "normal": 1.0, "low": 0.25}
"""So many times as much as a key of class `normal` a key gets of a worker's time where both have something to run,
and it is asked so many times as often where requests wait."""

MAX_RATE = 10**12
"""A limit above it limits nobody: it is a slip of the hand."""
MAX_CONCURRENT = 100_000
MAX_CONTEXT = 2**31
MAX_MODELS = 100
RATE_LIMITS = ("requests_per_min", "tokens_per_min", "tokens_per_day")
"""Fields of `KeyLimits` that are rates."""

_RANGES = {
    **dict.fromkeys(RATE_LIMITS, (1, MAX_RATE)),
    "max_concurrent": (1, MAX_CONCURRENT),
    "max_context": (2, MAX_CONTEXT),
    "min_trust": (0, 1),
}


def check_values(given: dict[str, object], *, unlimited: str = "left out") -> None:
    """ValueError, which names the limit and what it may be, if one can't be so; `unlimited`: what means none."""
    for name, (least, most) in _RANGES.items():
        value = given.get(name)
        if isinstance(value, int | float) and not least <= value <= most:
            raise ValueError(f"{name} is {value}; it can be {least:,} to {most:,}, or {unlimited} for no limit")
    models = given.get("models")
    if isinstance(models, tuple):
        if not 1 <= len(models) <= MAX_MODELS:
            raise ValueError(
                f"models has {len(models)} names; it can have 1 to {MAX_MODELS}, or be {unlimited} for all"
            )
        for model in models:
            checked_model_name(model)


class KeyLimits(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """Limits of one key; None: none of this kind. Since 1.2.

    Over any stretch of time a rate lets through what it says for that time, and at most one minute's (one day's)
    more: what wasn't used of the last one.
    """

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    """Of prompts and answers together."""
    tokens_per_day: int | None = None
    max_concurrent: int | None = None
    """Generations at once."""
    max_context: int | None = None
    """Tokens of one prompt and its answer together."""
    priority: Priority = "normal"
    models: tuple[ModelName, ...] | None = None
    """The only models that may be used."""
    min_trust: float | None = None
    """Workers that are trusted less are not on its routes."""
    pinned_ends: bool = False
    """Whether all its routes begin and end on workers whose trust an operator pinned."""

    def __post_init__(self) -> None:
        """Refuse what limits nothing or everything. ValueError: msgspec reports it as invalid."""
        check_values({name: getattr(self, name) for name in self.__struct_fields__})


Change: TypeAlias = int | UnsetType | None


class LimitsChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`PATCH /admin/v1/keys/{key_id}/limits`: what is left out stays, null takes a limit away. Since 1.2."""

    requests_per_min: Change = UNSET
    tokens_per_min: Change = UNSET
    tokens_per_day: Change = UNSET
    max_concurrent: Change = UNSET
    max_context: Change = UNSET
    priority: Priority | UnsetType | None = UNSET
    models: tuple[ModelName, ...] | UnsetType | None = UNSET
    min_trust: float | UnsetType | None = UNSET
    pinned_ends: bool | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        """As `KeyLimits`. ValueError: msgspec reports it as invalid."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        check_values({name: value for name, value in given.items() if value is not UNSET}, unlimited="null")

    def applied_to(self, limits: KeyLimits) -> KeyLimits:
        """The limits afterwards."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        changed = {name: value for name, value in given.items() if value is not UNSET}
        for name in ("priority", "pinned_ends"):
            if changed.get(name, "") is None:
                changed[name] = getattr(UNLIMITED, name)
        return msgspec.structs.replace(limits, **changed)


UNLIMITED = KeyLimits()


class RateLeft(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a rate of the key's, once what the generation may use is taken off. Since 1.2."""

    limit_name: LimitName
    limit: int
    n_left: int
    """Rounded down."""
    full_in_s: float
    """Until all of it is there again, if nothing more is asked."""
