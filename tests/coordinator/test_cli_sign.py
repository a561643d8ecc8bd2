from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from coordinator.cli_sign import label_of
from protocol.exit_codes import EXIT_STORAGE, EXIT_USAGE
from tests.coordinator.packing_support import write_model
from tests.support.coord_process import Coord, Served


@pytest.fixture
def key(coord: Coord, tmp_path: Path) -> Path:
    """A private key, with its public half beside it."""
    code, out, err = coord("model", "keygen", str(tmp_path / "ada"))
    assert (code, out) == (0, (tmp_path / "ada.pub").read_text()), err
    return tmp_path / "ada"


def test_keys_are_their_owners_alone_and_never_overwritten(coord: Coord, key: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    code, _, err = coord("model", "keygen", str(key))
    assert (code, key.read_bytes()) == (EXIT_USAGE, before)
    assert "choose another name" in err
    source = write_model(tmp_path / "model")
    key.chmod(0o644)
    code, _, err = coord("model", "sign", str(source), "--key", str(key), "--signer", "Ada")
    assert code == 0, err
    assert f"chmod 600 {key}" in " ".join(err.split())


def test_an_encrypted_key_needs_its_passphrase(coord: Coord, tmp_path: Path) -> None:
    right, wrong, file = tmp_path / "right", tmp_path / "wrong", tmp_path / "key"
    right.write_text("correct horse\n")
    wrong.write_text("battery\n")
    assert coord("model", "keygen", str(file), "--passphrase-file", str(right))[0] == 0
    source = str(write_model(tmp_path / "model"))
    sign = ("model", "sign", source, "--key", str(file), "--signer", "Ada")
    for options, words in (
        ((), "passphrase is needed"),
        (("--passphrase-file", str(wrong)), "passphrase is wrong"),
    ):
        code, _, err = coord(*sign, *options)
        assert code == EXIT_USAGE
        assert words in err
    assert coord(*sign, "--passphrase-file", str(right))[0] == 0


def test_a_folder_is_signed_added_and_verified(here: Coord, coordinator: Served, key: Path, tmp_path: Path) -> None:
    """The signature lies in the folder, changes nothing of the model, and goes where the model goes."""
    source = write_model(tmp_path / "model")
    sign = ("--key", str(key), "--signer", "Ada \N{SNOWMAN}", "--name", "tiny", "--version", "2.0")
    code, out, err = here("model", "sign", str(source), *sign)
    assert code == 0, err
    revision = out.split("revision ")[1][:12]
    assert here("author", "add", "Ada Lovelace", f"{key}.pub")[0] == 0
    try:
        code, out, err = here("model", "verify", str(source), "--json")
        assert code == 0, err
        found = json.loads(out)
        assert (found["author"], found["version"], found["revision"][:12]) == ("Ada Lovelace", "2.0", revision)
        code, out, err = here("model", "add", "tiny-signed", str(source))
        assert code == 0, err
        assert f"revision {revision}, signed by Ada Lovelace" in out
        code, out, err = here("model", "verify", "tiny-signed")
        assert code == 0, err
        assert "Ada Lovelace" in out
        assert "'tiny' version '2.0'" in out
        _check_a_flipped_bit_is_found(here, coordinator.state)
    finally:
        here("model", "remove", "tiny-signed")
        assert here("author", "remove", "Ada Lovelace")[0] == 0
    code, _, err = here("model", "verify", str(source))
    assert code == EXIT_USAGE
    assert "trusts no author" in err


def _check_a_flipped_bit_is_found(here: Coord, state: Path) -> None:
    shown = json.loads(here("model", "show", "tiny-signed", "--json")[1])
    files = sorted((state / "files" / "files").glob("??/*"), key=lambda path: path.stat().st_size)
    victim = next(path for path in reversed(files) if path.name != shown["revision"])
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    code, _, err = here("model", "verify", "tiny-signed")
    assert code == EXIT_STORAGE
    assert "altered" in err
    victim.write_bytes(good)


def test_a_served_model_takes_a_signature(here: Coord, key: Path, tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    assert here("model", "add", "unsigned", str(source))[0] == 0
    try:
        assert "not signed" in here("model", "show", "unsigned")[1]
        code, _, err = here("model", "verify", "unsigned", "--author", f"{key}.pub")
        assert code == EXIT_STORAGE
        assert "isn't signed" in err
        code, _, err = here("model", "sign", "unsigned", "--key", str(key), "--signer", "Ada")
        assert code == 0, err
        code, _, err = here("model", "verify", "unsigned", "--author", f"{key}.pub")
        assert code == 0, err
        assert "nobody whom this coordinator trusts" in here("model", "show", "unsigned")[1]
        line = json.loads(here("model", "pinned-ends", "unsigned", "on", "--json")[1])
        assert line["pinned_ends"] is True
    finally:
        assert here("model", "remove", "unsigned")[0] == 0


def test_altered_weights_dont_verify(coord: Coord, key: Path, tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    assert coord("model", "sign", str(source), "--key", str(key), "--signer", "Ada")[0] == 0
    other = shutil.copytree(source, tmp_path / "other")
    weights = next(other.glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 0x80]))  # the sign of the last number
    verify = ("--author", f"{key}.pub")
    assert coord("model", "verify", str(source), *verify)[0] == 0
    code, _, err = coord("model", "verify", str(other), *verify)
    assert code == EXIT_STORAGE
    assert "get the signature that goes with it" in err


def test_what_cant_be_meant_is_refused(here: Coord, key: Path, tmp_path: Path) -> None:
    source = str(write_model(tmp_path / "model"))
    for arguments, words in (
        (("model", "sign", source, "--key", str(tmp_path / "no"), "--signer", "Ada"), "--key"),
        (("model", "sign", source, "--key", f"{key}.pub", "--signer", "Ada"), "no private key"),
        (("model", "sign", source, "--key", str(key), "--signer", "A\x1b[31mda"), "printable"),
        (("model", "verify", source, "--author", f"{key}.pub"), "isn't signed"),
        (("model", "verify", source, "--author", "ed25519:abc"), "--author"),
        (("author", "add", "Mallory\u202e", f"{key}.pub"), "printable"),
        (("author", "add", "Mallory", "ed25519:" + "A" * 42 + "B"), "no author's key"),
        (("author", "remove", "nobody"), "coord author list"),
        (("model", "pinned-ends", "tiny", "perhaps"), "on, off"),
    ):
        code, out, err = here(*arguments)
        assert code != 0, out
        assert words in err
        assert "\x1b" not in err
        assert "\u202e" not in err


def test_a_passphrase_that_nobody_can_be_asked_for_leaves_no_key(coord: Coord, tmp_path: Path) -> None:
    file = tmp_path / "key"
    code, _, err = coord("model", "keygen", str(file), "--encrypt")
    assert code == EXIT_USAGE
    assert "--passphrase-file" in err
    assert not file.exists(), "it would lie there for everybody to use"
    long = tmp_path / "long"
    long.write_text("x" * 2000)
    code, _, err = coord("model", "keygen", str(file), "--passphrase-file", str(long))
    assert code == EXIT_USAGE
    assert "1023" in err


def test_a_signature_file_that_is_empty_is_no_signature(coord: Coord, key: Path, tmp_path: Path) -> None:
    source, empty = write_model(tmp_path / "model"), tmp_path / "empty.json"
    assert coord("model", "sign", str(source), "--key", str(key), "--signer", "Ada")[0] == 0
    empty.touch()
    verify = ("model", "verify", str(source), "--author", f"{key}.pub")
    assert coord(*verify)[0] == 0
    code, _, err = coord(*verify, "--signature", str(empty))
    assert code == EXIT_STORAGE
    assert "not a model's signature" in err


@pytest.mark.parametrize(
    ("source", "label"), [("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"), (".", "model-1.5"), ("w.gguf", "w")]
)
def test_the_label_is_the_sources_own_name(
    source: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model-1.5"
    folder.mkdir()
    (folder / "w.gguf").touch()
    monkeypatch.chdir(folder)
    assert label_of(source) == label
