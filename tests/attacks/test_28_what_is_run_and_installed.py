"""Class 28. Defences: no shell, no program by a stranger's name, no download that runs, versions held to a list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("coordinator", "worker", "client", "protocol", "migrations", "demo", "benchmarks")
STARTERS = {
    "client/chat_template.py",
    "client/ends_process.py",
    "demo/local_cluster.py",
    "demo/run.py",
    "worker/grammar_trial.py",
    "worker/hardware.py",
}
"""Who may start programs; each by a list of its own words."""
RUNS_TEXT = {"popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "spawnl", "spawnlp", "execlp"}
BUILD_FILES = ("Makefile", "README.md", "CONTRIBUTING.md", ".ci/run", ".pre-commit-config.yaml", "Dockerfile")
BAD_STEPS = {
    "a download that is run": re.compile(r"(curl|wget)[^\n|]*\|\s*(sudo\s+)?(ba|z|da)?sh|<\(\s*(curl|wget)"),
    "certificates that aren't checked": re.compile(r"--trusted-host|--insecure|curl[^\n]* -k\b|verify\s*=\s*False"),
    "an index beside the first": re.compile(r"--extra-index-url"),
    "an image of no version": re.compile(r"^FROM\s+(?![^\n]*@sha256:)", re.MULTILINE),
    "an action of no version": re.compile(r"uses:\s*[^@\n]+@(?![0-9a-f]{40})"),
}


def started(source: str) -> Iterator[str]:
    """What a source file has that starts programs in ways that none may be started."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) as func):
                if name in RUNS_TEXT or ast.unparse(func) == "os.system":
                    yield f"{node.lineno}: {name}"
                if ast.unparse(func).startswith("subprocess.") and is_text(node.args[:1]):
                    yield f"{node.lineno}: one text for a command"
            case ast.keyword(arg="shell", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield f"{value.lineno}: shell="


def is_text(arguments: list[ast.expr]) -> bool:
    return any(isinstance(argument, ast.Constant | ast.JoinedStr) for argument in arguments)


def starts_programs(source: str) -> bool:
    """Whether it can start any at all."""
    if "subprocess" not in source and "exec" not in source and "startfile" not in source:
        return False
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if any(name.name.split(".")[0] == "subprocess" for name in names):
                return True
            case ast.ImportFrom(module="subprocess"):
                return True
            case ast.Attribute(attr="create_subprocess_exec" | "execv" | "execve" | "startfile"):
                return True
    return False


def bad_steps(text: str) -> list[str]:
    return [what for what, pattern in BAD_STEPS.items() if pattern.search(text)]


@pytest.mark.parametrize(
    "source",
    ["os.system('ls')", "subprocess.run('ls', shell=True)", "subprocess.run(f'ls {x}')", "run(x, shell=is_shell)",
     "asyncio.create_subprocess_shell(x)", "os.popen(x)"],
)  # fmt: skip
def test_the_way_of_looking_finds_shells(source: str) -> None:
    """So that the tests below can fail."""
    assert list(started(source))


@pytest.mark.parametrize(
    "text",
    ["curl -s https://x.example/i | sh", "wget -qO- x | sudo bash", "bash <(curl x)", "pip --trusted-host x",
     "FROM python:3.11\n", "uses: actions/checkout@v4", "requests.get(u, verify=False)", "--extra-index-url x"],
)  # fmt: skip
def test_the_way_of_looking_finds_build_steps(text: str) -> None:
    """So that the tests below can fail."""
    assert bad_steps(text)


def sources() -> list[Path]:
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(found) > 200
    return found


def test_nothing_is_started_by_a_shell_and_few_start_anything() -> None:
    """Fails if a command is a text, or a file starts programs that isn't known to."""
    shells = {str(path.relative_to(ROOT)): list(started(path.read_text())) for path in sources()}
    assert {path: lines for path, lines in shells.items() if lines} == {}
    starters = {str(path.relative_to(ROOT)) for path in sources() if starts_programs(path.read_text())}
    products = {path for path in starters if path.split("/")[0] != "benchmarks"}
    assert products <= STARTERS, "a new place that starts programs: is all of its command ours?"


def test_no_build_step_runs_what_it_downloads_or_trusts_anybody() -> None:
    """Fails if an instruction, or the checks, fetch and run something that nothing vouches for."""
    paths = [ROOT / name for name in BUILD_FILES]
    paths += [*ROOT.glob(".github/workflows/*"), *ROOT.glob("**/Dockerfile*"), *ROOT.glob("*.sh")]
    read = {str(path.relative_to(ROOT)): path.read_text() for path in paths if is_ours(path)}
    assert {"Makefile", "README.md", ".ci/run"} <= set(read)
    assert {name: bad_steps(text) for name, text in read.items() if bad_steps(text)} == {}


def is_ours(path: Path) -> bool:
    return path.is_file() and not any(part in (".venv", ".demo", ".cache") for part in path.parts)


def test_what_is_installed_has_its_version_written_down() -> None:
    """Fails if an installation takes whatever is newest that day."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    held = [line for line in lines if line]
    assert [line for line in held if not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[0-9][^\s;]*( *;.*)?", line)] == []
    names = {re.split(r"[=\[]", line)[0].lower().replace("_", "-") for line in held}
    assert {"aiohttp", "torch", "transformers", "sqlalchemy", "cryptography", "msgspec", "jinja2"} <= names
    makefile = (ROOT / "Makefile").read_text()
    demo_model = re.search(r"^DEMO_MODEL := \S+==\d", makefile, re.MULTILINE)
    assert demo_model is not None
    for line in makefile.splitlines():
        if "pip install" in line:
            assert "-c constraints.txt" in line or "$(DEMO_MODEL)" in line, line


def test_no_program_updates_itself() -> None:
    """Fails if code of ours installs or fetches code; models aside, nothing is downloaded while it runs."""
    words = re.compile(r"""["']pip["']\s*,\s*["']install|\bensurepip\b|\burlretrieve\b|importlib\.reload""")
    assert [str(path) for path in sources() if words.search(path.read_text())] == []
