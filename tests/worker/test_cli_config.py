from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from protocol.exit_codes import EXIT_USAGE
from worker.cli import main

SECRET = secrets.token_urlsafe(32)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worker's settings; a test adds its own to [worker]."""
    monkeypatch.delenv("BRIGADE_SECRET", raising=False)
    path = tmp_path / "brigade.toml"
    path.write_text('[worker]\nurls = "https://127.0.0.1:1"\nstate = "state"\n')
    path.chmod(0o600)
    monkeypatch.setenv("BRIGADE_CONFIG", str(path))
    return path


def refused(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `worker join` says on standard error."""
    with pytest.raises(SystemExit) as caught:
        main(["join"])
    assert caught.value.code == EXIT_USAGE
    return capsys.readouterr().err.splitlines()


def test_a_secret_in_the_file_is_taken_without_the_warning_of_an_option(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text() + f'secret = "{SECRET}"\nchunk-tokens = 0\n')
    said, error = refused(capsys)
    assert said == f"settings from {file}"
    assert error == f"error: --chunk-tokens 0: 1 to 8192 (--chunk-tokens comes from {file}, line 5)"


def test_the_environments_secret_goes_before_the_files(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text() + 'secret-file = "none"\n')
    assert "--secret-file" in refused(capsys)[-1]
    assert f"{file.parent}/none can't be read: No such file" in " ".join(refused(capsys))
    monkeypatch.setenv("BRIGADE_SECRET", "changeme")
    assert "at most" in refused(capsys)[-1]


def test_a_value_that_an_option_refuses_says_where_it_stands(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text() + 'device = "tpu"\n')
    assert refused(capsys)[-1].endswith(f"one of auto, cpu, cuda, mps (--device comes from {file}, line 4)")
