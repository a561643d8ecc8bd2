"""What the commands of a chat do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from client.api import Client
from client.output import models_table, timings_lines
from client.terminal.figures import latest_rows, route_rows, totals_rows
from client.terminal.sampling_settings import setting_rows, with_setting
from client.terminal.saved_conversation import read_conversation, write_conversation
from client.terminal.screen import Screen
from client.terminal.slash_commands import COMMANDS, KEYS, Commanded
from client.terminal.talk import Talk
from protocol.errors import InvalidRequestError, NotFoundError

_NO_SYSTEM = "-"
_SHOWN_CHARACTERS = 60


class Acts:
    """Carries commands out."""

    def __init__(self, client: Client, screen: Screen, talk: Talk) -> None:
        self._client = client
        self._screen = screen
        self._talk = talk
        self.model_names: Sequence[str] = (talk.model.name,)
        """As far as they are known, for completion."""
        self._acts: dict[str, Callable[[str], Awaitable[None]]] = {
            "help": self._help,
            "model": self._model,
            "models": self._models,
            "system": self._system,
            "clear": self._clear,
            "undo": self._undo,
            "drop": self._drop,
            "retry": self._retry,
            "save": self._save,
            "load": self._load,
            "set": self._set,
            "route": self._route,
            "stats": self._stats,
        }

    async def carry_out(self, command: Commanded) -> bool:
        """Carry one out; whether the chat goes on.

        Raises:
            BrigadeError: it can't be done.
        """
        if command.name == "quit":
            return False
        await self._acts[command.name](command.argument)
        return True

    async def _help(self, _argument: str) -> None:
        self._screen.rows([(command.usage, command.does) for command in COMMANDS.values()])
        self._screen.aside("keys, on a terminal:")
        self._screen.rows(KEYS)

    async def _model(self, name: str) -> None:
        if name:
            self._talk.model = await self._talk.chat_model(name)
        model = self._talk.model
        self._screen.aside(f"{model.name} answers; its context has {model.context_length} tokens")

    async def _models(self, _argument: str) -> None:
        models = await self._client.models()
        self.model_names = tuple(model.name for model in models)
        self._screen.lines(models_table(models))

    async def _system(self, text: str) -> None:
        talk = self._talk
        if text:
            talk.conversation = replace(talk.conversation, system=None if text == _NO_SYSTEM else text)
        if talk.conversation.system is None:
            self._screen.aside("there is no system message")
        else:
            self._screen.quotation("system", talk.conversation.system)

    async def _clear(self, _argument: str) -> None:
        self._forget(len(self._talk.conversation.turns))

    async def _drop(self, argument: str) -> None:
        n_turns = len(self._talk.conversation.turns)
        n_dropped = int(argument) if argument.isdecimal() else 0
        if not 1 <= n_dropped <= n_turns:
            raise InvalidRequestError(f"/drop {argument}: it must be a whole number from 1 to {n_turns}, the turns")
        self._forget(n_dropped)

    def _forget(self, n_oldest: int) -> None:
        talk = self._talk
        talk.conversation = talk.conversation.without_oldest(n_oldest)
        left = len(talk.conversation.turns)
        self._screen.aside(f"forgot {_counted(n_oldest)}; the conversation has {_counted(left)}")

    async def _undo(self, _argument: str) -> None:
        talk = self._talk
        if not talk.conversation.turns:
            raise InvalidRequestError("there is no turn that could be forgotten")
        said = talk.conversation.turns[-1].said
        talk.conversation, talk.unanswered = talk.conversation.without_latest(), None
        cut = said if len(said) <= _SHOWN_CHARACTERS else f"{said[:_SHOWN_CHARACTERS]}..."
        left = len(talk.conversation.turns)
        self._screen.aside(f"forgot the turn that began with: {cut}; the conversation has {_counted(left)}")

    async def _retry(self, _argument: str) -> None:
        await self._talk.retry()

    async def _save(self, argument: str) -> None:
        talk = self._talk
        file = _path(argument) if argument else talk.file
        if file is None:
            raise InvalidRequestError("/save needs a FILE: the conversation has been in none yet")
        may_replace = talk.file is not None and _is_same(file, talk.file)
        await asyncio.to_thread(write_conversation, file, talk.saved(), may_replace=may_replace)
        talk.file = file
        self._screen.aside(f"saved {_counted(len(talk.conversation.turns))} to {file}")

    async def _load(self, argument: str) -> None:
        talk, file = self._talk, _path(argument)
        what, conversation = await asyncio.to_thread(read_conversation, file)
        model = talk.model
        if what.model != model.name:
            try:
                model = await talk.chat_model(what.model)
            except (NotFoundError, InvalidRequestError) as exc:
                self._screen.notice(f"{talk.model.name} goes on with it: {exc.message}")
        talk.replace_by(what, conversation, file, model)
        self.show_loaded()

    def show_loaded(self) -> None:
        """What a conversation that goes on here is, and its latest turn."""
        talk = self._talk
        self._screen.aside(
            f"{talk.file}: {_counted(len(talk.conversation.turns))}; {talk.model.name} answers the next one"
        )
        if talk.conversation.system is not None:
            self._screen.quotation("system", talk.conversation.system)
        for turn in talk.conversation.turns[-1:]:
            self._screen.quotation("you", turn.said)
            self._screen.quotation(talk.model.name, turn.answer)

    async def _set(self, argument: str) -> None:
        talk = self._talk
        if argument:
            name, _, value = argument.partition(" ")
            if not value.strip():
                raise InvalidRequestError(f"/set {name} needs a value: {COMMANDS['set'].usage}")
            talk.options = with_setting(talk.options, name, value.strip())
        tokenizer = await self._client.tokenizer(talk.model.revision)
        self._screen.rows(setting_rows(talk.options, tokenizer.defaults))

    async def _route(self, _argument: str) -> None:
        if self._talk.latest is None:
            raise InvalidRequestError("there is no answer yet whose route could be shown")
        self._screen.lines(route_rows(self._talk.latest))

    async def _stats(self, _argument: str) -> None:
        talk = self._talk
        rows = totals_rows(talk.totals)
        if talk.latest is not None:
            rows += latest_rows(talk.latest, talk.model.context_length)
        self._screen.rows(rows)
        if talk.latest is not None and talk.latest.timings is not None:
            self._screen.lines([*timings_lines(talk.latest.timings), f"trace {talk.latest.trace_id}"])


def _path(argument: str) -> Path:
    if "\0" in argument:
        raise InvalidRequestError(f"{argument} can't be a file's name: it has a NUL in it")
    try:
        return Path(argument).expanduser()
    except RuntimeError as exc:
        raise InvalidRequestError(f"{argument}: no home folder is known of that user; give the path") from exc


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _counted(n_turns: int) -> str:
    return "1 turn" if n_turns == 1 else f"{n_turns} turns"
