from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from protocol.config_file import ConfigFile, found_config, holds_secret
from protocol.errors import ConfigError
from protocol.exit_codes import EXIT_USAGE


def written(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def read(path: Path) -> ConfigFile:
    found = found_config(path, {})
    assert found is not None
    return found


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value.message


def test_the_file_is_the_given_one_then_the_variables_then_the_users_and_never_just_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    nearby = written(tmp_path / "cloned" / "brigade.toml", "[client]\nurl = 'https://evil:1'\n")
    monkeypatch.chdir(nearby.parent)
    environ = {"BRIGADE_CONFIG": str(written(tmp_path / "named.toml", "[worker]\n"))}
    assert found_config(None, {}) is None
    own = written(platformdirs.user_config_path("brigade") / "brigade.toml", "[client]\n")
    assert path_of(None, {}) == own
    assert path_of(None, environ) == tmp_path / "named.toml"
    assert path_of(nearby, environ) == nearby


def path_of(given: Path | None, environ: dict[str, str]) -> Path | None:
    found = found_config(given, environ)
    return None if found is None else found.path


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refused(path) == f"--config: {path} can't be read: No such file or directory"
    with pytest.raises(ConfigError, match=r"BRIGADE_CONFIG: .*none.toml can't be read"):
        found_config(None, {"BRIGADE_CONFIG": str(path)})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[worker]\nthreads = = 1\n", "is not TOML: Invalid value (at line 2"),
        ("listen = 'x'\n", "line 1: 'listen' stands in no section; put it under one of [coordinator], [worker]"),
        ("[client]\n[wroker]\n", "line 2: there is no section [wroker]; did you mean 'worker'?"),
        ("[worker]\nkv-memory = 1\nkv_memory = 2\n", "[worker] has 'kv-memory' twice, once with '_'"),
        ("[worker]\nx = '\udcff'\n", "is not UTF-8 at byte 14"),
        ("#" * (2**20 + 1), "more than 1048576 bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "brigade.toml"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    message = refused(path)
    assert message.startswith(str(path))
    assert says in message


def test_lines_are_found_however_keys_are_spelled(tmp_path: Path) -> None:
    text = '# x\n[client]\nmodel = "a"\n\n[ worker ]\n"kv_memory" = 1\n  model = "b"\n'
    file = read(written(tmp_path / "f.toml", text))
    assert file.tables == {"client": {"model": "a"}, "worker": {"kv-memory": 1, "model": "b"}}
    assert file.where("worker") == f"{file.path}, line 5"
    assert file.where("worker", "kv-memory") == f"{file.path}, line 6"
    assert file.where("worker", "model") == f"{file.path}, line 7"
    dotted = read(written(tmp_path / "g.toml", "client.model = 'a'\n"))
    assert dotted.where("client", "model") == str(dotted.path)


@pytest.mark.parametrize(
    "line", ["secret = 'S3CRET'", "invite = 'S3CRET'", "database-url = 'postgresql://brigade:S3CRET@db/x'"]
)
def test_a_secret_that_others_may_read_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "brigade.toml"
    message = refused(written(path, f"[coordinator]\n{line}\n", 0o640))
    assert f"{path}, line 2: [coordinator] " in message
    assert f"is a secret, and the file has mode 0640: others may read it. Run `chmod 600 {path}`" in message
    assert "S3CRET" not in message
    path.chmod(0o600)
    assert "S3CRET" not in repr(read(path))


def test_names_of_files_are_no_secrets() -> None:
    assert not holds_secret("secret-file", "/x")
    assert not holds_secret("database-url", "postgresql+asyncpg://brigade@db/x")
    assert not holds_secret("max-tokens", 5)
