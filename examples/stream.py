"""Show an answer as it comes, then what it took.

python examples/stream.py MODEL [PROMPT]
"""

from __future__ import annotations

import asyncio
import sys

from client.api import Client


async def main(model: str, prompt: str) -> None:
    async with Client() as client, client.stream(model, prompt, max_tokens=48) as pieces:
        async for piece in pieces:
            print(piece.text, end="", flush=True)
    result = pieces.result
    print(f"\n[{result.completion_tokens} tokens, {result.tokens_per_s:.0f}/s, over {len(result.route)} workers]")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], " ".join(sys.argv[2:]) or "The capital of France is"))
