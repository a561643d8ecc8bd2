"""Many questions at once: workers take them together, which costs little more than one. Each is its own generation.

python examples/many_at_once.py MODEL
"""

from __future__ import annotations

import asyncio
import sys

from client.api import Client
from protocol.errors import BrigadeError

QUESTIONS = ["What is a worker bee?", "What is a queen bee?", "What is a drone?"]


async def main(model: str) -> None:
    async with Client() as client:

        async def ask(question: str) -> str:
            try:
                # where a limit of the key is used up, this one waits for its turn
                messages = [{"role": "user", "content": question}]
                result = await client.chat(model, messages, max_tokens=32, wait_for_quota=True)
            except BrigadeError as error:  # this one's end, not the others'
                return f"[{error.code}] {error}"
            return result.text.strip()

        for question, answer in zip(QUESTIONS, await asyncio.gather(*map(ask, QUESTIONS)), strict=True):
            print(f"{question} {answer}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
