"""Options that several commands have in common: declared once, and together one value that a command takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

R = TypeVar("R")


def in_place_of(
    parameter: str, options: Mapping[str, tuple[Any, Any]], make: Callable[..., Any]
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command `options` (annotation and default by name) instead of `parameter`, which is made of them.

    They stand where a keyword `parameter` stands, else at the end. `make` gets what they say by their names.
    """

    def decorated(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def with_options(*arguments: Any, **given: Any) -> R:
            said = {name: given.pop(name) for name in options}
            return command(*arguments, **{parameter: make(**said)}, **given)

        signature = inspect.signature(command, eval_str=True)
        with_options.__signature__ = _with_options(signature, parameter, options)  # type: ignore[attr-defined]
        return with_options

    return decorated


def _with_options(
    signature: inspect.Signature, parameter: str, options: Mapping[str, tuple[Any, Any]]
) -> inspect.Signature:
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    own = list(signature.parameters.values())
    at = next(i for i, each in enumerate(own) if each.name == parameter)
    if own.pop(at).kind is not inspect.Parameter.KEYWORD_ONLY:
        at = len(own)
    return signature.replace(parameters=[*own[:at], *keywords, *own[at:]])
