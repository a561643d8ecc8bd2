from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.terminal.conversation import Conversation, Turn
from client.terminal.saved_conversation import read_conversation, saved, write_conversation
from protocol.errors import InvalidRequestError, StorageError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
CONVERSATIONS = st.builds(
    Conversation,
    system=st.none() | TEXTS,
    turns=st.lists(st.builds(Turn, said=TEXTS, answer=TEXTS), max_size=4).map(tuple),
)
SETTINGS = st.fixed_dictionaries(
    {}, optional={"top_k": st.integers(0, 9), "seed": st.integers(0, 2**53), "temperature": st.floats(0.0, 9.0)}
)


@given(conversation=CONVERSATIONS, values=SETTINGS)
def test_what_was_saved_is_read_again(conversation: Conversation, values: dict[str, int | float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.json"
        write_conversation(path, saved(conversation, model="tiny", settings=values), may_replace=False)
        what, found = read_conversation(path)
    assert (what.model, what.settings, found) == ("tiny", values, conversation)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no conversation that /save wrote"),
        ("[" * 100_000, "is no conversation that /save wrote"),
        ('{"format": "other", "version": 1}', "its format is 'other'"),
        ('{"format": "brigade-chat", "version": 2, "turns": []}', "format version 2; this program reads version 1"),
        ('{"format": "brigade-chat", "version": 1, "model": "m", "messages": [], "min_trust": 0}', "min_trust"),
        (
            '{"format": "brigade-chat", "version": 1, "model": "m", "messages": [], "settings": {"min_trust": 0}}',
            "there is no setting min_trust",
        ),
        (
            '{"format": "brigade-chat", "version": 1, "model": "m", "messages": [], "settings": {"top_k": 0.5}}',
            "top_k is 0.5; it must be a whole number",
        ),
        (
            '{"format": "brigade-chat", "version": 1, "model": "m", "messages": [{"role": "user", "content": ""}]}',
            "in turns",
        ),
    ],
)
def test_what_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=r"chat\.json") as caught:
        read_conversation(path)
    assert words in caught.value.message


def test_no_other_file_is_replaced_and_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path, what = tmp_path / "chat.json", saved(Conversation(), model="tiny", settings={})
    path.write_text("precious")
    with pytest.raises(InvalidRequestError, match="is there already"):
        write_conversation(path, what, may_replace=False)
    assert path.read_text() == "precious"
    with pytest.raises(StorageError, match="name another file"):
        write_conversation(tmp_path / "nowhere" / "chat.json", what, may_replace=False)
    with pytest.raises(StorageError, match="File name too long"):
        write_conversation(tmp_path / ("x" * 300), what, may_replace=False)
    with pytest.raises(InvalidRequestError, match="can't be read"):
        read_conversation(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequestError, match="a device or a pipe"):
        read_conversation(tmp_path / "pipe")
