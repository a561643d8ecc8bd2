"""The table of mutations fits the code, and no attack's test is without one. `make mutate` runs them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutations.mutation import Mutation, MutationError, checked, mutated
from tests.mutations.table import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_mutation_applies_exactly_once_and_leaves_python() -> None:
    for mutation in MUTATIONS:
        text = checked(ROOT, mutation)
        if mutation.file.endswith(".py"):
            ast.parse(text)


def test_every_test_that_must_fail_is_there() -> None:
    for test in {test for mutation in MUTATIONS for test in mutation.test_ids}:
        file, _, name = test.partition("::")
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, functions)}, test


def test_every_file_of_attacks_has_a_mutation() -> None:
    files = {f"tests/attacks/{path.name}" for path in (ROOT / "tests/attacks").glob("test_*.py")}
    assert files - {test.partition("::")[0] for mutation in MUTATIONS for test in mutation.test_ids} == set()


@pytest.mark.parametrize("source", ["", "a = 1\na = 1\n"])
def test_a_text_that_is_not_there_once_is_an_error(source: str) -> None:
    mutation = Mutation(attack=1, what="w", file="f.py", before="a = 1\n", after="", tests=("t.py::t",))
    with pytest.raises(MutationError, match="not once"):
        mutated(source, mutation)
