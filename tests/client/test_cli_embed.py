from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from coordinator.file_store import FileStore
from coordinator.packing import pack_model
from tests.support.client_program import Ended, Program
from tests.support.coordinators import key_of
from tests.support.tiny_models import TINY_ENCODERS, save_tiny_model
from tests.support.tiny_tokenizer import tiny_files, tiny_tokenizer
from tests.support.whole_cluster import Packed, whole_cluster

pytestmark = pytest.mark.timeout(120)


def write_sentence_model(folder: Path) -> Path:
    """A tiny BERT with a tokenizer, whose authors take the first token's states as the vector."""
    config = TINY_ENCODERS["bert"]()
    config.vocab_size = tiny_tokenizer().get_vocab_size()
    save_tiny_model(config, folder)
    for name, data in tiny_files(is_chat=False).items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    return folder


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Program]:
    store = FileStore(tmp_path / "packed")
    packed = pack_model(str(write_sentence_model(tmp_path / "model")), store, lambda *_: None)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", Packed(store=store, model=packed))
        await cluster.join("a", "0:2")
        await cluster.join("b", "2:4")
        await cluster.until_ready()
        key_text = key_of(cluster.coordinator, "client")
        yield Program(SimpleNamespace(url=cluster.coordinator.url, key_text=key_text), tmp_path)  # type: ignore[arg-type]


def lines_of(ended: Ended) -> list[dict[str, object]]:
    assert (ended.code, ended.err) == (0, "")
    return [json.loads(line) for line in ended.out.splitlines()]


async def test_vectors_and_states_are_lines_of_json_and_errors_say_what_to_do(
    program: Program, tmp_path: Path
) -> None:
    first, second, done = lines_of(await program.run("embed", "the tin", "in"))
    piped = lines_of(await program.run("embed", stdin=b"the tin\n\nin\n"))
    assert piped == [first, second, done]
    assert (done["done"]["pooling"], done["done"]["n_truncated"]) == ("cls", 0)  # type: ignore[index]
    (states,) = lines_of(await program.run("embed", "in", "--hidden-states", "4"))
    cls = np.array(states["hidden_states"])[0]
    np.testing.assert_allclose(np.array(second["embedding"]), cls / np.linalg.norm(cls), rtol=1e-5)
    for arguments, code, words in (
        (("x" * 40,), 2, "input 0 has 41 tokens; the model takes 12"),
        (("in", "--pooling", "max"), 2, "pooling is 'max'; it can be auto, mean, last or cls"),
        (("in", "--hidden-states", "4", "--truncate"), 2, "--hidden-states"),
        ((), 2, "no texts"),
    ):
        ended = await program.run("embed", *arguments)
        assert (ended.code, ended.out) == (code, ""), ended.err
        assert words in ended.err
    (cut, done) = lines_of(await program.run("embed", "x" * 40, "--truncate", "--dimensions", "4"))
    assert len(cut["embedding"]) == 4  # type: ignore[arg-type]
    assert (done["done"]["n_tokens"], done["done"]["n_truncated"]) == (12, 1)  # type: ignore[index]
    ended = await program.run("generate", "in")
    assert ended.code == 2
    assert "is an encoder" in ended.err
