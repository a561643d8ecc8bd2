"""A defence taken out: a piece of code, what is there instead, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ATTACKS = "tests/attacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One change to one file. `before` stands in it exactly once."""

    attack: int
    """Number of the attack's class."""
    what: str
    """The defence that is gone."""
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    """Each must fail, in at least one of its cases: `file::test`, the file without the folder of the attacks."""

    @property
    def test_ids(self) -> tuple[str, ...]:
        """As pytest takes them."""
        return tuple(test if test.startswith("tests/") else f"{ATTACKS}/{test}" for test in self.tests)


class MutationError(Exception):
    """The text isn't in its file exactly once, so the table is out of date."""


def mutated(source: str, mutation: Mutation) -> str:
    """The file's text without the defence.

    Raises:
        MutationError: the table has to follow a change of the code.
    """
    n_found = source.count(mutation.before)
    if n_found != 1:
        raise MutationError(
            f"class {mutation.attack}, {mutation.what}: the text is in {mutation.file} {n_found} times, not once: "
            f"{mutation.before!r}"
        )
    return source.replace(mutation.before, mutation.after)


def checked(root: Path, mutation: Mutation) -> str:
    """The mutated text of the file below `root`. Raises as `mutated`."""
    return mutated((root / mutation.file).read_text(), mutation)
