from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf.gguf_reader
import gguf.tensor_mapping
import pytest

from protocol.model_files.gguf_source import GgufSource
from protocol.model_files.quick_gguf import make_gguf_quick
from tests.coordinator.gguf_support import write_gguf


@pytest.fixture(autouse=True)
def quick() -> None:
    make_gguf_quick()


def contents(reader: gguf.GGUFReader) -> tuple[Any, ...]:
    fields = {name: (field.types, [part.tolist() for part in field.parts]) for name, field in reader.fields.items()}
    tensors = [(one.name, one.shape.tolist(), one.tensor_type, one.data.tolist()) for one in reader.tensors]
    return fields, tensors, reader.alignment, reader.endianess


def test_a_file_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    assert gguf.GGUFReader is not gguf.gguf_reader.GGUFReader
    quick, own = gguf.GGUFReader(path), gguf.gguf_reader.GGUFReader(path)
    assert contents(quick) == contents(own)
    assert "tokenizer.ggml.tokens" in quick.fields


def test_names_are_the_librarys_and_looked_up_in_one_table_for_a_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    table: Any = gguf.get_tensor_name_map
    table.cache_clear()
    GgufSource(path)
    known = table.cache_info()
    assert known.misses == 1
    assert known.hits > 10  # one for each module of the model
    for n_blocks in (2, 3):
        own = gguf.tensor_mapping.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n_blocks)
        assert table(gguf.MODEL_ARCH.LLAMA, n_blocks).mapping == own.mapping
