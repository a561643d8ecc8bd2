"""Class 16. Defence: nothing here unpickles, evaluates, or runs code that came with a model."""

from __future__ import annotations

import ast
import json
import pickle  # noqa: TID251 - to make what has to be refused
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from protocol.errors import BrigadeError
from protocol.manifest import decode_manifest
from tests.coordinator.packing_support import no_progress, write_model

ROOT = Path(__file__).parents[2]
ROOMS = ("coordinator", "worker", "client", "protocol", "migrations", "demo", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "importlib.import_module",
    "tempfile.mktemp",
    "jinja2.Environment",
    "jinja2.Template",
}
ARGUMENTS = {
    "trust_remote_code": (False,),
    "allow_pickle": (False,),
    "weights_only": (True,),
    "shell": (False,),
    "use_safetensors": (True,),
}
"""What these may be, wherever they are given; as a variable: nothing."""


def forbidden(source: str) -> Iterator[str]:
    """What a source file has of it, with the line."""
    for node in ast.walk(ast.parse(source)):
        for what in _forbidden_in(node):
            yield f"{node.lineno}: {what}"  # type: ignore[attr-defined]


def _forbidden_in(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (name.name for name in names if name.name.split(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            if module.split(".")[0] in MODULES:
                yield module
            yield from (f"{module}.{name.name}" for name in names if f"{module}.{name.name}" in CALLS)
        case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
            yield f"{name}()"
        case ast.Call(func=ast.Attribute() as func) if ast.unparse(func) in CALLS:
            yield ast.unparse(func)
        case ast.keyword(arg=str(name), value=value) if name in ARGUMENTS:
            if not (isinstance(value, ast.Constant) and value.value in ARGUMENTS[name]):
                yield f"{name}={ast.unparse(value)}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal, json",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "exec('1')",
        "import yaml\nyaml.load(x)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "numpy.load('x', allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "load('x', weights_only=False)",
        "import os\nos.system('ls')",
    ],
)
def test_the_scan_finds_it(source: str) -> None:
    """So that the test below can fail."""
    assert list(forbidden(source))


def test_nothing_of_the_sort_is_in_the_tree() -> None:
    """Fails with the first such line (CVE-2025-32444, ShadowMQ and CVE-2025-32434 were of this kind)."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(paths) > 100
    assert [f"{path.relative_to(ROOT)}:{found}" for path in paths for found in forbidden(path.read_text())] == []


class Bomb:
    """Its pickle touches a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def pack(folder: Path, store: FileStore) -> Any:
    return pack_model(str(folder), store, no_progress)


def test_the_bomb_goes_off_where_it_is_unpickled(marker: Path) -> None:
    """So that the tests below can fail."""
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def test_a_model_of_pickles_is_refused_unread(tmp_path: Path, marker: Path) -> None:
    """Fails if a checkpoint is read by `torch.load`."""
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    store = FileStore(tmp_path / "store")
    with pytest.raises(BrigadeError, match="safetensors"):
        pack(folder, store)
    assert not marker.exists()
    assert store.hashes() == ()


def test_a_pickle_under_the_name_of_safetensors_is_refused_unread(tmp_path: Path, marker: Path) -> None:
    """Fails if the kind of a file is guessed, as `torch.load` does."""
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(BrigadeError):
        pack(folder, FileStore(tmp_path / "store"))
    assert not marker.exists()


@pytest.mark.parametrize("is_known", [True, False])
def test_code_that_comes_with_a_model_is_neither_run_nor_passed_on(
    tmp_path: Path, marker: Path, is_known: bool
) -> None:
    """Fails with `trust_remote_code`: an `auto_map` and its module are beside the weights."""
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "modeling_evil.Evil")
    config = {"auto_map": auto_map} | ({} if is_known else {"model_type": "evil", "architectures": ["Evil"]})
    folder = write_model(tmp_path / "model", config=config)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tok.Evil", None]}}))
    for name in ("modeling_evil.py", "tok.py", "configuration_evil.py"):
        (folder / name).write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Evil: pass\n")
    store = FileStore(tmp_path / "store")
    try:
        packed = pack(folder, store)
    except BrigadeError:
        assert store.hashes() == ()
    else:
        assert is_known
        manifest = decode_manifest(store.path(packed.revision).read_bytes())  # type: ignore[arg-type]
        assert not [file.name for file in manifest.all_files() if not file.name.endswith((".safetensors", ".json"))]
        for file in manifest.auxiliary:
            assert b"auto_map" not in store.path(file.sha256).read_bytes(), file.name
    assert not marker.exists()
