from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from tests.support.smollm2 import scratch, smollm2, smollm2_reference
from tests.support.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

__all__ = ["scratch", "smollm2", "smollm2_reference"]


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyCheckpoint]:
    root: Path = tmp_path_factory.mktemp("checkpoints")
    return lambda name: tiny_checkpoint(name, root)
