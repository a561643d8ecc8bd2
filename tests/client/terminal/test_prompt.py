from __future__ import annotations

from pathlib import Path

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from client.terminal.prompt import CommandCompleter


def test_commands_and_what_they_take_are_completed_and_messages_are_not(tmp_path: Path) -> None:
    (tmp_path / "chat.json").touch()
    completer = CommandCompleter(lambda: ("tiny", "small"))

    def completed(text: str) -> list[str]:
        found = completer.get_completions(Document(text), CompleteEvent())
        return [text[: len(text) + one.start_position] + one.text for one in found]

    assert completed("/s") == ["/system", "/save", "/set", "/stats"]
    assert completed("/model t") == ["/model tiny"]
    assert completed("/set top") == ["/set top_p", "/set top_k"]
    assert completed(f"/load {tmp_path}/ch") == [f"/load {tmp_path}/chat.json"]
    for message in ("hello", "", "a /s", "/undo x", "/set a\n/s"):
        assert completed(message) == []
