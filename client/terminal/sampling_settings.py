"""What `/set` sets: options of the answers that follow, by name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from client.options import GenerationOptions, SamplingDefaults
from protocol.errors import InvalidRequestError

DEFAULT_CHAT_TOKENS = 2048
"""Most tokens of an answer where nothing is said: a chat's answer ends by itself. As in the gateway."""

SETTINGS: Mapping[str, Callable[[str], int | float]] = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
"""By their names in `GenerationOptions`, and what their values are."""

DEFAULT_WORD = "default"
"""As a value: whatever the model recommends."""


def with_setting(options: GenerationOptions, name: str, text: str) -> GenerationOptions:
    """The options with one of them as `/set NAME VALUE` says.

    Raises:
        InvalidRequestError: there is no such setting, or it can't have this value; the message names it.
    """
    name = name.replace("-", "_")
    if name not in SETTINGS:
        raise InvalidRequestError(f"there is no setting {name}; there are {', '.join(SETTINGS)}")
    return _checked(options, {name: None if text == DEFAULT_WORD else _number(name, text)})


def settings_of(options: GenerationOptions) -> dict[str, int | float]:
    """The settings that aren't left to the model."""
    values = {name: getattr(options, name) for name in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}


def with_settings(options: GenerationOptions, values: Mapping[str, int | float]) -> GenerationOptions:
    """The options with these settings, all others left to the model.

    Raises:
        InvalidRequestError: one can't have its value; the message names it.
    """
    return _checked(options, {name: values.get(name) for name in SETTINGS})


def check_kinds(values: Mapping[str, int | float]) -> None:
    """Refuse what somebody else wrote as settings and can't be. ValueError."""
    for name, value in values.items():
        if name not in SETTINGS:
            raise ValueError(f"there is no setting {name}; there are {', '.join(SETTINGS)}")
        if SETTINGS[name] is int and not isinstance(value, int):
            raise ValueError(f"{name} is {value}; it must be a whole number")


def setting_rows(options: GenerationOptions, defaults: SamplingDefaults) -> list[tuple[str, str]]:
    """Each setting and its value, for people."""
    left_to = {
        "max_tokens": f"{options.default_max_tokens}, or what the context has room for",
        "presence_penalty": "0.0",
        "frequency_penalty": "0.0",
        "seed": "random",
    } | {name: f"{getattr(defaults, name)} (the model's)" for name in SamplingDefaults.__dataclass_fields__}
    given = settings_of(options)
    return [(name, str(given[name]) if name in given else left_to[name]) for name in SETTINGS]


def _checked(options: GenerationOptions, changes: dict[str, Any]) -> GenerationOptions:
    changed = replace(options, **changes)
    changed.check()
    return changed


def _number(name: str, text: str) -> int | float:
    kind = SETTINGS[name]
    try:
        return kind(text)
    except ValueError as exc:
        what = "a whole number" if kind is int else "a number"
        raise InvalidRequestError(f"{name} is {text!r}; it must be {what}, or `{DEFAULT_WORD}`") from exc
