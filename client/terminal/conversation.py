"""A conversation: the system message and the turns so far, as chat templates take them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from client.chat_template import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the person said, and the answer to it, as far as it came."""

    said: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """All that the model is given with the next message."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self, said: str | None = None) -> list[Message]:
        """The conversation as messages, with the next one as the last if there is one."""
        found: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            found.append({"role": "user", "content": turn.said})
            found.append({"role": "assistant", "content": turn.answer})
        return found if said is None else [*found, {"role": "user", "content": said}]

    def with_turn(self, said: str, answer: str) -> Conversation:
        """One turn longer."""
        return replace(self, turns=(*self.turns, Turn(said=said, answer=answer)))

    def without_latest(self) -> Conversation:
        """Without the latest turn, if there is one."""
        return replace(self, turns=self.turns[:-1])

    def without_oldest(self, n_turns: int) -> Conversation:
        """Without so many of the oldest turns; the system message stays."""
        return replace(self, turns=self.turns[n_turns:])
