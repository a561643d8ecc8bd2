"""Options that make one value stand where a command declares that value."""

from __future__ import annotations

import inspect

from protocol.option_groups import in_place_of

SIDES = {"width": (int, 2), "height": (int, None)}


def area(width: int, height: int | None) -> int:
    return width * (width if height is None else height)


@in_place_of("size", SIDES, area)
def keyword(name: str, *, size: int, is_loud: bool = False) -> str:
    """Say a size."""
    return f"{name} {size}{'!' if is_loud else ''}"


@in_place_of("size", SIDES, area)
def positional(size: int, name: str = "it") -> str:
    return f"{name} {size}"


def test_options_stand_where_the_keyword_stood_and_at_the_end_for_a_positional_one() -> None:
    assert list(inspect.signature(keyword).parameters) == ["name", "width", "height", "is_loud"]
    assert list(inspect.signature(positional).parameters) == ["name", "width", "height"]
    width = inspect.signature(keyword).parameters["width"]
    assert (width.annotation, width.default, width.kind) == (int, 2, inspect.Parameter.KEYWORD_ONLY)


def test_the_command_gets_what_the_options_make_and_all_else_as_it_is() -> None:
    assert keyword("a", width=3, height=4, is_loud=True) == "a 12!"
    assert keyword(name="a", width=3, height=None) == "a 9"
    assert positional(name="b", width=2, height=1) == "b 2"


def test_the_command_keeps_its_name_and_what_it_says_of_itself() -> None:
    assert (keyword.__name__, keyword.__doc__) == ("keyword", "Say a size.")
