"""Finds tool calls in an answer's text as it comes, in whatever format of `client.gateway.tool_formats`. Pure.

However the text is cut into pieces, what comes out is the same. Text that may be the beginning of a call is held
back until that is decided, which it is when the call's name is complete: from then on its arguments go out as they
come, in the model's own words. Whether they are JSON that fits the tool is not looked at, as with OpenAI: callers
must check. What turns out to be no call is text after all, marks included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from client.gateway.tool_formats import ToolFormat
from client.gateway.tool_json import CallBegun, Part, json_string
from client.gateway.turns import TextDelta, TokenLogprob, ToolCallDelta, TurnDelta
from client.stopping import cut

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,256}")
_MAX_BEFORE_NAME = 2048
"""What has no name by then is no call, and so much space is text. Without a limit, text full of marks is read again
and again, and whoever waits for the answer sees nothing of it."""
_MAX_BEFORE_ARGUMENTS = 64
"""Between a name and its arguments there may be an id."""


class CallReader:
    """A `turns.ToolReader`: one answer's text in, text and calls out."""

    def __init__(
        self, form: ToolFormat, *, names: frozenset[str], new_id: Callable[[], str], is_parallel: bool = True
    ) -> None:
        """Read calls of tools with these names; after the first, unless `is_parallel`, nothing is wanted."""
        self._form = form
        self._names = names
        self._new_id = new_id
        self._is_parallel = is_parallel
        self._step: Callable[[], bool] = self._in_text
        """What to do with the rest; whether that changed anything, so that more can be done."""
        self._rest = ""
        self._taken = ""
        """Since something began that may be a call: what is text after all if it isn't."""
        self._space = ""
        """Held back: before and after calls it is no text."""
        self._holds_space = True
        self._is_at_start = True
        self._logprobs: list[TokenLogprob] = []
        self._n_calls = 0
        self._n_in_section = 0
        self._is_opened = False
        """Whether the opening mark came just now, after which a name may stand."""
        self._said: list[TurnDelta] = []
        self._call = CallBegun()
        self.is_over = False

    @property
    def has_calls(self) -> bool:
        """Whether the answer is (among others) a call."""
        return self._n_calls > 0 or self._call.is_sure

    def push(self, delta: TextDelta) -> Sequence[TurnDelta]:
        """What can be said now that this text came."""
        self._rest += delta.text
        self._logprobs += delta.logprobs
        while not self.is_over and self._step():
            pass
        return self._all_said()

    def flush(self, *, is_cut: bool) -> Sequence[TurnDelta]:
        """What was held back; the answer is over, and `is_cut` where it got no longer.

        Of an answer that was cut, the beginning of a mark or of a call that has no name yet is nothing for people.
        """
        if self.is_over:
            return ()
        if not self._call.is_sure:
            is_past_calls = self._n_in_section > 0 and self._step != self._in_text
            if not is_cut and not is_past_calls:
                self._say(self._taken + self._rest)
            if (self._space or self._logprobs) and not self.has_calls:
                self._said.append(TextDelta(text=self._space, logprobs=tuple(self._logprobs)))
        elif self._call.held:
            self._argue(self._call.held)
        return self._all_said()

    def _all_said(self) -> Sequence[TurnDelta]:
        said, self._said = self._said, []
        return said

    def _in_text(self) -> bool:
        if self._is_at_start and self._form.is_bare:
            rest = self._rest.lstrip()
            n_space = len(self._rest) - len(rest)
            self._is_at_start = n_space <= _MAX_BEFORE_NAME
            if self._is_at_start and rest.startswith("{"):
                return self._open(self._rest[:n_space], "")
            if self._is_at_start and not rest:
                return False
        found = cut(self._rest, (self._form.opening,))
        if found.is_stopped:
            return self._open(found.shown, self._form.opening)
        self._rest = found.held
        self._say(found.shown)
        return False

    def _open(self, before: str, mark: str) -> bool:
        self._rest = self._rest[len(before) :]
        self._say(before)
        self._take(len(mark))
        self._n_in_section = 0
        self._is_opened = not self._form.before_call
        self._step = self._before_call
        return True

    def _before_call(self) -> bool:
        """After an opening mark, or after a call: what comes next?"""
        form = self._form
        self._take(len(self._rest) - len(self._rest.lstrip()))
        if len(self._taken) > _MAX_BEFORE_NAME:
            self._give_up()
            return True
        literals = [each for each in (form.closing, form.opening, form.before_call, *form.skipped) if each]
        if not self._rest or any(len(each) > len(self._rest) and each.startswith(self._rest) for each in literals):
            return False
        mark = next((each for each in literals if self._rest.startswith(each)), None)
        if mark is not None:
            if mark == form.opening and not self._n_in_section:  # the one before began nothing
                self._say(self._taken)
                self._taken = ""
            self._take(len(mark))
            self._taken = "" if self._n_in_section else self._taken
            self._is_opened = mark == form.opening
            if mark == form.before_call:
                self._step = self._in_name
            elif mark == form.closing and self._n_in_section:
                self._step = self._in_text
            elif mark == form.closing:
                self._give_up()
        elif self._rest[0] == "{" and not form.before_call:
            self._step = self._in_object
        elif form.name_ends and self._is_opened and _NAME.match(self._rest):
            self._step = self._in_name
        else:
            self._give_up()
        return True

    def _give_up(self) -> None:
        """It is no call: text, or, before the closing mark of calls that were some, nothing."""
        if self._n_in_section and self._form.closing:
            self._taken = ""
            self._step = self._past_closing
            return
        self._rest, self._taken = self._taken + self._rest, ""
        n_sure = len(self._form.opening) if self._rest.startswith(self._form.opening) else 1
        self._say(self._rest[:n_sure])  # else it would be found again
        self._rest = self._rest[n_sure:]
        self._call = CallBegun()
        self._is_at_start = False
        self._step = self._in_text

    def _past_closing(self) -> bool:
        found = cut(self._rest, (self._form.closing, self._form.opening))
        self._rest = self._rest[len(found.shown) :]
        if found.stop == self._form.opening:  # the closing mark was forgotten
            return self._open("", found.stop)
        self._rest = self._rest[len(found.stop) :]
        if found.is_stopped:
            self._step = self._in_text
        return found.is_stopped

    def _in_object(self) -> bool:
        n_wanted = len(self._rest) if self._call.is_sure else max(0, _MAX_BEFORE_NAME - len(self._taken))
        parts, n_read = self._call.object.read(self._rest[:n_wanted])
        self._take(n_read)
        for part in parts:
            if not self._read_part(part):
                self._give_up()
                return True
        if self._call.object.is_over or self._call.object.is_broken:
            self._end_call()
        elif not self._call.is_sure and len(self._taken) >= _MAX_BEFORE_NAME:
            self._give_up()
        return bool(self._rest)

    def _read_part(self, part: Part) -> bool:
        """Whether it still may be a call."""
        call = self._call
        if part.key == '"name"' and not call.is_sure:
            call.name += part.text
            return not part.is_last or self._is_named(json_string(call.name))
        if part.key in ('"arguments"', '"parameters"'):
            call.held += part.text
            call.is_held_whole = part.is_last
            self._argue_if_possible()
        return True

    def _argue_if_possible(self) -> None:
        call = self._call
        if not call.is_sure:
            return
        if call.has_argued or call.held.startswith("{"):
            self._argue(call.held)
        elif call.is_held_whole:  # some models give their arguments as a string, or null for none
            self._argue("{}" if call.held in ("null", '""') else json_string(call.held) or call.held)

    def _in_name(self) -> bool:
        found = cut(self._rest, self._form.name_ends)
        name = found.shown.strip()
        if len(found.shown) > _MAX_BEFORE_NAME or (name and not _NAME.fullmatch(name)):
            self._give_up()
            return True
        if not found.is_stopped:
            return False
        after = self._rest[len(found.shown) :]
        end = next(each for each in self._form.name_ends if after.startswith(each))
        self._call.name = name
        self._take(len(found.shown) + (0 if end == "{" else len(end)))
        self._step = self._to_arguments
        return True

    def _to_arguments(self) -> bool:
        start = self._rest.find("{")
        if start > _MAX_BEFORE_ARGUMENTS or (start < 0 and len(self._rest) > _MAX_BEFORE_ARGUMENTS):
            self._give_up()
        elif start < 0:
            return False
        else:
            self._take(start)
            if self._is_named(self._call.name):
                self._step = self._in_arguments
            else:
                self._give_up()
        return True

    def _in_arguments(self) -> bool:
        n_read = self._call.value.n_of(self._rest)
        self._argue(self._rest[:n_read])
        self._take(n_read)
        is_over = self._call.value.is_over
        if is_over:
            self._end_call()
        return is_over

    def _is_named(self, name: str | None) -> bool:
        """Say that a call begins, if this can be the name of a tool."""
        is_bare = not self._taken.startswith(self._form.opening) and self._n_in_section == 0
        if name is None or not _NAME.fullmatch(name) or (is_bare and name not in self._names):
            return False
        self._call.is_sure = True
        self._taken, self._space, self._holds_space = "", "", True
        self._logprobs.clear()
        self._said.append(ToolCallDelta(index=self._n_calls, id=self._new_id(), name=name))
        self._argue_if_possible()
        return True

    def _argue(self, text: str) -> None:
        """Say more of the arguments; nothing is held any more."""
        self._call.has_argued, self._call.held = True, ""
        self._logprobs.clear()
        last = self._said[-1] if self._said else None
        if isinstance(last, ToolCallDelta) and last.index == self._n_calls:
            self._said[-1] = ToolCallDelta(
                index=last.index, id=last.id, name=last.name, arguments=last.arguments + text
            )
        elif text:
            self._said.append(ToolCallDelta(index=self._n_calls, arguments=text))

    def _end_call(self) -> None:
        if not self._call.is_sure:
            self._give_up()
            return
        if not self._call.has_argued:
            self._argue(self._call.held or "{}")
        is_broken = self._call.object.is_broken
        self._n_calls += 1
        self._n_in_section += 1
        self._call = CallBegun()
        self.is_over = not self._is_parallel
        self._is_opened = False
        self._step = self._before_call
        if is_broken:
            self._give_up()

    def _take(self, n_characters: int) -> None:
        if not self._call.is_sure:
            self._taken += self._rest[:n_characters]
        self._rest = self._rest[n_characters:]

    def _say(self, text: str) -> None:
        text = self._space + text
        self._space = ""
        if self._holds_space and len(text) <= _MAX_BEFORE_NAME and not text.strip():
            self._space = text
        elif text:
            self._holds_space = self._is_at_start = False
            self._said.append(TextDelta(text=text, logprobs=tuple(self._logprobs)))
            self._logprobs.clear()
