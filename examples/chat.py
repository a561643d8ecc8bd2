"""A conversation in a few lines, without asyncio: the session keeps what was said.

python examples/chat.py MODEL
"""

from __future__ import annotations

import sys

from client.sync_api import SyncClient


def main(model: str) -> None:
    with SyncClient() as client:
        chat = client.chat_session(model, system="You answer in one sentence.", max_tokens=64)
        for question in ("Why is the sky blue?", "And why is it red in the evening?"):
            print("you:  ", question)
            print("model:", chat.say(question).text.strip())
        print(f"[{client.count_tokens(model, chat.messages)} tokens so far]")


if __name__ == "__main__":
    main(sys.argv[1])
