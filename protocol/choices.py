"""What the place in a type that msgspec's errors name may hold, where that is one of a few words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


def choices_at(kind: Any, place: str) -> tuple[str, ...]:
    """The words that a value of type `kind` may have at `place` (`$.limits.priority`); empty if any will do."""
    found = [_described(kind)]
    for name, index in _STEP.findall(place):
        found = [inner for outer in found for part in _alternatives(outer) for inner in _inside(part, name, index)]
    parts = (part for one in found for part in _alternatives(one))
    values = (value for part in parts if isinstance(part, inspect.LiteralType) for value in part.values)
    return tuple(value for value in values if isinstance(value, str))


@cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _alternatives(outer: inspect.Type) -> Iterator[inspect.Type]:
    match outer:
        case inspect.Metadata(type=inner):
            yield from _alternatives(inner)
        case inspect.UnionType(types=types):
            for one in types:
                yield from _alternatives(one)
        case _:
            yield outer


def _inside(outer: inspect.Type, name: str, index: str) -> Iterator[inspect.Type]:
    """What is one step further in: by a field's name, or by an index, which is `...` for that of a mapping."""
    match outer:
        case inspect.StructType(fields=fields):
            yield from (field.type for field in fields if field.encode_name == name)
        case inspect.DictType(value_type=inner) if index:
            yield inner
        case inspect.TupleType(item_types=types) if index.isdecimal():
            yield from types[int(index) : int(index) + 1]
        case inspect.ListType(item_type=inner) | inspect.VarTupleType(item_type=inner) if index:
            yield inner
