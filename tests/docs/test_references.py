"""References that people write name what the programs have: reasons, variables of the environment."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("coordinator", "worker", "client", "protocol")
TROUBLES = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/how-to/troubleshooting.md").read_text(), re.MULTILINE)


@cache
def texts() -> str:
    """All texts that the programs can print; where they put something in, there is an ellipsis."""
    found = []
    for program in PROGRAMS:
        for path in (ROOT / program).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_troubles_print_is_what_programs_print(trouble: str) -> None:
    assert trouble in texts()


def test_every_variable_of_the_environment_is_named_and_no_other() -> None:
    named = set(
        re.findall(r"^\| `(BRIGADE_\w+)`", (ROOT / "docs/reference/environment.md").read_text(), re.MULTILINE)
    )
    assert named == set(re.findall(r"\bBRIGADE_[A-Z_]*[A-Z]\b", texts()))
