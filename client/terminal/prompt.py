"""Where a person types: a line editor with history, several lines, and completion of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from client.output import printable
from client.terminal.sampling_settings import SETTINGS
from client.terminal.slash_commands import COMMANDS

_STYLE = Style.from_dict({"prompt": "bold ansicyan", "bottom-toolbar": "noreverse ansibrightblack"})
_MENU_LINES = 6
"""Kept free below the input: fewer than the editor's 8, so that a small terminal shows more of the chat."""


class Prompt:
    """Asks for one message after the other."""

    def __init__(
        self, history: History, *, toolbar: Callable[[], str], model_names: Callable[[], Sequence[str]]
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", "> ")],
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_bindings(),
            completer=CommandCompleter(model_names),
            history=history,
            bottom_toolbar=lambda: printable(toolbar()),
            style=_STYLE,
            reserve_space_for_menu=_MENU_LINES,
        )

    async def asked(self, say: Callable[[str], None]) -> str | None:
        """What the person sends; None: they leave. `say` shows them a line."""
        is_warned = False
        while True:
            try:
                # Ctrl-C as a signal is the chat's, which knows what it means just now
                return await self._session.prompt_async(handle_sigint=False)
            except EOFError:
                return None
            except KeyboardInterrupt:
                was_empty = not self._session.default_buffer.text
            if is_warned and was_empty:
                return None
            is_warned = True
            say("Ctrl-C again leaves, as Ctrl-D does")

    def interrupt(self) -> None:
        """As Ctrl-C at the prompt, if it is there."""
        if self._session.app.is_running and not self._session.app.is_done:
            self._session.app.exit(exception=KeyboardInterrupt())


class CommandCompleter(Completer):
    """Completes commands, and what some of them take; never a message."""

    def __init__(self, model_names: Callable[[], Sequence[str]]) -> None:
        self._model_names = model_names
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the line before the cursor may become."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(
                        f"/{command.name}",
                        start_position=-len(text),
                        display=command.usage,
                        display_meta=command.does,
                    )
        elif name in ("save", "load"):
            yield from self._paths.get_completions(Document(argument), complete_event)
        else:
            words = {"model": self._model_names(), "set": tuple(SETTINGS)}.get(name, ())
            yield from (Completion(word, -len(argument)) for word in words if word.startswith(argument))


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
