from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.option_values import PlainGroup


def program() -> typer.Typer:
    app = typer.Typer(cls=PlainGroup)

    @app.callback()
    def run(
        count: Annotated[int, typer.Option(min=1, max=9)] = 2,
        share: Annotated[float | None, typer.Option(min=0.0)] = None,
        below: Annotated[float, typer.Option(max=1.5)] = 1.0,
        hours: Annotated[float, typer.Option(max=1_000_000)] = 1.0,
        file: Annotated[Path | None, typer.Option()] = None,
        names: Annotated[list[str] | None, typer.Option("--name")] = None,
        doubled: Annotated[int, typer.Option(parser=lambda text: 2 * int(text))] = 4,
        loud: Annotated[bool, typer.Option(envvar="TEST_LOUD")] = False,
    ) -> None:
        shown = {"count": count, "share": share, "file": file, "names": names, "doubled": doubled, "loud": loud}
        typer.echo(json.dumps(shown | {"below": below}, default=repr))

    @app.command()
    def go() -> None:
        pass

    return app


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    program()([*arguments, "go"], standalone_mode=False)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_without_options_the_defaults_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = {"count": 2, "share": None, "file": None, "names": None, "doubled": 8, "loud": False, "below": 1.0}
    assert told([], capsys) == defaults


def test_each_kind_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--count", "7", "--share", "0.25", "--file", str(tmp_path), "--name", "a", "--name", "b"]
    found = told([*options, "--doubled", "3", "--loud", "--below", "-1e3"], capsys)
    assert found == {
        "count": 7,
        "share": 0.25,
        "file": repr(tmp_path),
        "names": ["a", "b"],
        "doubled": 6,
        "loud": True,
        "below": -1000.0,
    }


@pytest.mark.parametrize(
    ("text", "is_loud"), [("yes", True), ("1", True), (" On ", True), ("no", False), ("", False)]
)
def test_a_switch_is_read_from_the_environment(
    text: str, is_loud: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_LOUD", text)
    assert told([], capsys)["loud"] is is_loud


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--count", "two"], "'two' is not a whole number"),
        (["--count", "1.5"], "'1.5' is not a whole number"),
        (["--count", "0"], "'0' isn't between 1 and 9"),
        (["--count", "10"], "'10' isn't between 1 and 9"),
        (["--share", "much"], "'much' is not a number"),
        (["--share", "-0.5"], "'-0.5' isn't at least 0"),
        (["--share", "nan"], "'nan' isn't at least 0"),
        (["--count", " 0\n"], "'0' isn't between 1 and 9"),
        (["--count", "9" * 5000], "^a text of 5000 characters is not a whole number"),
        (["--below", "1.6"], "'1.6' isn't at most 1.5"),
        (["--hours", "2e6"], "'2e6' isn't at most 1000000"),
        (["--file", "a\0b"], r"'a\\x00b' can't be a path: it has a zero byte"),
        (["--doubled", "x"], "invalid literal for int"),
    ],
)
def test_what_is_of_another_kind_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(typer.BadParameter, match=says) as caught:
        program()([*arguments, "go"], standalone_mode=False)
    assert caught.value.param is not None
    assert f"--{caught.value.param.name}" == arguments[0]


def test_a_switch_that_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LOUD", "perhaps")
    with pytest.raises(typer.BadParameter, match="'perhaps' is neither yes nor no"):
        program()(["go"], standalone_mode=False)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="who may read everything is refused nothing")
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0)
    with pytest.raises(typer.BadParameter, match=f"^'{file}' can't be read"):
        program()(["--file", str(file), "go"], standalone_mode=False)


@given(st.integers())
@example(2**63 + 1)
def test_whole_numbers_of_any_size_stay_what_they_are(number: int) -> None:
    seen: list[int] = []
    app = typer.Typer(cls=PlainGroup)

    @app.callback(invoke_without_command=True)
    def run(count: Annotated[int, typer.Option()] = 0) -> None:
        seen.append(count)

    app([f"--count={number}"], standalone_mode=False)
    assert seen == [number]


@pytest.mark.parametrize("program_name", ["client", "coordinator", "worker"])
def test_no_program_imports_pydantic_to_read_its_options(program_name: str, tmp_path: Path) -> None:
    command = {
        "client": ["models", "--url", "http://127.0.0.1:1"],
        "coordinator": ["status", "--url", "http://127.0.0.1:1"],
        "worker": ["join", "http://127.0.0.1:1"],
    }[program_name]
    source = (
        f"import sys\nfrom {program_name}.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as done:\n    assert done.code\n"
        "print('heavy:', sorted({'pydantic', 'pydantic_core'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=True, text=True, timeout=60, cwd=Path.cwd()
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
