from __future__ import annotations

import os
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory

from client.terminal.history_file import MAX_HISTORY_BYTES, KeptHistory, opened_history
from protocol.disk import partial_of


def test_what_is_typed_is_kept_for_this_user_alone_and_within_a_size(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    history, why_none = opened_history(path)
    assert why_none is None
    history.store_string("first\nof all")
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    history.store_string("once more")
    assert path.stat().st_mode & 0o777 == 0o600
    for number in range(4):
        history.store_string(f"{number}" * (MAX_HISTORY_BYTES // 4))
    kept, _ = opened_history(path)
    assert [string[0] for string in kept.load_history_strings()] == ["3"]
    assert path.stat().st_size < MAX_HISTORY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_chats_that_shorten_it_at_once_both_keep_a_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "history", os.open
    path.write_bytes(b"\n# then\n+one\n" * (MAX_HISTORY_BYTES // 10))

    def overtaken(name: Path, flags: int, mode: int = 0o777) -> int:
        if name == partial_of(path):
            name.write_text("another's")
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", overtaken)
    history, why_none = opened_history(path)
    assert why_none is None
    assert isinstance(history, KeptHistory)


def test_a_chat_goes_on_without_a_history_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    history, why_none = opened_history(tmp_path / "state" / "history")
    assert isinstance(history, InMemoryHistory)
    assert why_none is not None
    assert "--no-history" in why_none
    lost, _ = opened_history(tmp_path / "history")
    assert isinstance(lost, KeptHistory)
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    lost.store_string("not kept")
    assert lost.failure is not None
    assert "is not kept" in lost.failure
