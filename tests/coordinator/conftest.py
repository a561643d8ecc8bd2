from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from coordinator.cli import main
from tests.support.coord_process import Coord, Served, served


@pytest.fixture(scope="session")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("cli") / "state") as running:
        yield running


def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRIGADE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def coord(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Coord]:
    """Run a command: exit code, standard output, standard error."""
    clear_environment(monkeypatch)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    yield run
    structlog.reset_defaults()  # `serve` sets logging up, to a stream that ends with this test
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def here(coord: Coord, coordinator: Served) -> Coord:
    """Run a command on the coordinator of this module."""
    return lambda *arguments: coord(*arguments, "--state", str(coordinator.state))
