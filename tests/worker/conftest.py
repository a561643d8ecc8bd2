from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from tests.support.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint
from worker import decode_kernel, packed_linear, quantised_forms, row_kernels


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture
def torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that kernels of our own aren't for."""
    for module in (packed_linear, quantised_forms):
        monkeypatch.setattr(module, "why_no_products", lambda *_: "a test has it so")
    for module in (decode_kernel, row_kernels):
        monkeypatch.setattr(module, "are_there", lambda: False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyCheckpoint]:
    root: Path = tmp_path_factory.mktemp("checkpoints")
    return lambda name: tiny_checkpoint(name, root)
