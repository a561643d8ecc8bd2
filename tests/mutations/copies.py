"""Copies of the tree, in which defences are taken out and tests run. The tree itself is never touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.mutation import Mutation, checked

_FAILED = re.compile(r"^FAILED (\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)
_OPTIONS = ("-q", "-n0", "-p", "no:randomly", "-p", "no:cacheprovider")
_WARM = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""Libraries that are imported before pytest are none of those whose asserts it rewrites."""


@dataclass(frozen=True, slots=True)
class TestRun:
    """What pytest made of some tests."""

    exit_code: int
    failed: frozenset[str]
    """Tests of which at least one case failed, without their parameters."""
    output: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the tree, and the process that runs tests in it."""

    root: Path
    runner: subprocess.Popen[str]

    def run_tests(self, tests: Sequence[str]) -> TestRun:
        """Run these tests on the code as it is in the copy."""
        assert self.runner.stdin is not None
        assert self.runner.stdout is not None
        self.runner.stdin.write(json.dumps([*_OPTIONS, *_WARM, *tests]) + "\n")
        self.runner.stdin.flush()
        code, output = json.loads(self.runner.stdout.readline())
        return TestRun(code, frozenset(_FAILED.findall(output)), output)

    def run_mutated(self, mutation: Mutation) -> TestRun:
        """Run the mutation's tests without its defence; the copy is as before afterwards.

        Raises:
            MutationError: the text isn't in its file exactly once.
        """
        path = self.root / mutation.file
        text = path.read_text()
        path.write_text(checked(self.root, mutation))
        try:
            return self.run_tests(mutation.test_ids)
        finally:
            path.write_text(text)


@contextmanager
def copied(root: Path, to: Path) -> Iterator[Copy]:
    """A copy of all files that git tracks or would track, as they are in the working tree, and its process."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    runner = subprocess.Popen(
        [sys.executable, "-m", "tests.mutations.warm"],
        cwd=to,
        env=os.environ | {"PYTHONPATH": str(to), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Copy(to, runner)
    finally:
        runner.terminate()
        runner.communicate()
