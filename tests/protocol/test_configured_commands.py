from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import pytest
import typer

import client.cli
import client.cli_config
import coordinator.cli
import coordinator.cli_config
import worker.cli
import worker.cli_config
from protocol.config_values import Section, keys_for
from protocol.configured_commands import ConfiguredCommand, options_of, take_config, taken_from_file
from protocol.errors import ConfigError, NotFoundError

PROGRAMS: dict[str, tuple[typer.Typer, tuple[Section, ...]]] = {
    "coord": (coordinator.cli.app, (coordinator.cli_config.SECTION,)),
    "worker": (worker.cli.app, (worker.cli_config.SECTION,)),
    "client": (client.cli.app, (client.cli_config.CLIENT, client.cli_config.GATEWAY)),
}
Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Got:
    """What the command of the small program below was called with."""

    place: str | None
    n: int
    loud: bool
    taken: dict[str, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`tool go` and `tool look`, of which the latter takes only what is shared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("BRIGADE_CONFIG", "TOOL_PLACE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    app = typer.Typer()

    @app.command()
    def go(
        context: typer.Context,
        place: Annotated[str | None, typer.Option()] = None,
        n: Annotated[int, typer.Option("--count", max=9)] = 1,
        loud: Annotated[bool, typer.Option()] = False,
    ) -> Got:
        if place == "nowhere":
            raise NotFoundError("--place 'nowhere' isn't there")
        return Got(place, n, loud, taken_from_file(context))

    @app.command()
    def look(
        place: Annotated[str | None, typer.Option()] = None, n: Annotated[int, typer.Option("--count")] = 1
    ) -> Any:
        return place, n

    @app.command()
    def rest() -> str:
        return "rested"

    section = Section(name="worker", commands=("go",), shared=("place",), variables={"place": "TOOL_PLACE"})
    take_config(app, section)
    return lambda *arguments: app(arguments, prog_name="tool", standalone_mode=False)


@pytest.fixture
def own_file(run: Run) -> Path:
    """Where `run` finds the user's own file; there is none yet."""
    path = platformdirs.user_config_path("brigade") / "brigade.toml"
    path.parent.mkdir(parents=True)
    return path


def test_the_file_fills_in_what_the_command_line_leaves_open(run: Run, own_file: Path) -> None:
    own_file.write_text('[worker]\nplace = "here"\ncount = 3\nloud = true\n')
    where = {name: f"{name} in {own_file}, line" for name in ("place", "count", "loud")}
    got = run("go", "--no-loud")
    assert got == Got("here", 3, loud=False, taken={"place": f"{where['place']} 2", "count": f"{where['count']} 3"})
    assert run("go", "--place", "there", "--count", "5", "--loud") == Got("there", 5, loud=True, taken={})
    assert run("look") == ("here", 1)


def test_without_a_file_and_without_options_nothing_changes(run: Run, own_file: Path) -> None:
    assert run("go") == Got(None, 1, loud=False, taken={})
    own_file.write_text("[worker]\nwrong = 1\n")
    assert run("rest") == "rested"  # it takes nothing from any file


def test_an_error_about_a_value_says_where_the_value_stands(run: Run, own_file: Path) -> None:
    path = own_file
    path.write_text("[worker]\ncount = 12\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}, line 2: [worker] count: ")):
        run("go")
    with pytest.raises(typer.BadParameter):  # which the command line gave
        run("go", "--count", "13")
    path.write_text("[worker]\nplace = 'nowhere'\n")
    with pytest.raises(NotFoundError) as caught:
        run("go")
    assert caught.value.message == f"--place 'nowhere' isn't there (--place comes from {path}, line 2)"
    path.write_text("[worker]\nplaze = 'x'\n")
    with pytest.raises(ConfigError, match=r"line 2: \[worker\] has no key 'plaze'; did you mean 'place'\?"):
        run("look")
    assert run("rest") == "rested"


def test_what_is_in_force_is_shown_and_nothing_is_done(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.toml").write_text('[worker]\nplace = "nowhere"\ncount = 3\n')
    monkeypatch.setenv("TOOL_PLACE", "nowhere")
    assert run("go", "--show-config", "--config", "x.toml", "--loud") is None
    assert capsys.readouterr().out.splitlines() == [
        f"# tool go: what is in force, and where it comes from ({tmp_path}/x.toml)",
        "[worker]",
        'place = "nowhere"  # TOOL_PLACE',
        f"count = 3  # {tmp_path}/x.toml, line 3",
        "loud = true  # --loud",
    ]


def commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield from commands(command) if hasattr(command, "commands") else (command,)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_takes_the_file_and_equal_keys_are_of_one_kind(program: str) -> None:
    app, sections = PROGRAMS[program]
    all_commands = list(commands(typer.main.get_command(app)))
    assert all(isinstance(command, ConfiguredCommand) for command in all_commands)
    for section in sections:
        assert set(section.commands) <= {command.name for command in all_commands}
        kinds = defaultdict(set)
        for command in all_commands:
            options = options_of(command)
            for key in keys_for(section, command.name, options):
                kinds[key].add((options[key].kind, options[key].takes_several))
        assert {key: found for key, found in kinds.items() if len(found) > 1} == {}
        assert set(section.variables) | set(section.yields_to) | set(section.shared) <= set(kinds)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_variable_that_an_options_help_names_goes_before_the_file(program: str) -> None:
    app, sections = PROGRAMS[program]
    missing = []
    for command in commands(typer.main.get_command(app)):
        options = options_of(command)
        helps = {max(each.opts, key=len).lstrip("-"): each.help or "" for each in command.params}
        for section in sections:
            for key in keys_for(section, command.name, options):
                known = {section.variables.get(key), *section.yields_to.get(key, ())}
                named = set(re.findall(r"BRIGADE_[A-Z_]+", helps[key]))
                missing += [(section.name, key, name) for name in named - known]
    assert missing == []


@pytest.mark.parametrize(
    ("program", "command", "line"),
    [
        ("coord", "serve", 'listen = "0.0.0.0:7400"  # {file}, line 2'),
        ("worker", "join", 'urls = ["https://coordinator.lan:7400"]  # {file}, line 9'),
        ("client", "generate", "max-tokens = 500  # {file}, line 18"),
        ("client", "serve", 'api-key-file = "{home}/.config/brigade/api-key"  # {file}, line 16'),
    ],
)
def test_the_documents_example_is_one(
    program: str, command: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    example = re.search(r"\n\n((?:    .*\n|\n)+)", page)
    assert example
    file = tmp_path / "brigade.toml"
    file.write_text(textwrap.dedent(example[1]))
    app, _ = PROGRAMS[program]
    app([command, "--show-config", "--config", str(file)], standalone_mode=False)
    assert line.format(file=file, home=Path.home()) in capsys.readouterr().out.splitlines()
