"""Which of some texts is nearest in meaning to a question, by the vectors that a model makes of them.

python examples/embeddings.py MODEL

A model made for it (an encoder such as all-MiniLM-L12-v2) finds better than one that chats; any works.
"""

from __future__ import annotations

import sys

from client.sync_api import SyncClient

TEXTS = ["Bees make honey.", "The train is late.", "It rains in the mountains."]


def main(model: str) -> None:
    with SyncClient() as client:
        found = client.embed(model, ["Who makes honey?", *TEXTS])
        states = client.hidden_states(model, TEXTS[0], block=1)
    question, *texts = found.vectors  # of length 1: their product is the cosine of the angle between them
    for likeness, text in sorted(
        ((float(question @ vector), text) for vector, text in zip(texts, TEXTS, strict=True))
    )[::-1]:
        print(f"{likeness:6.3f}  {text}")
    print(f"[after the first block {TEXTS[0]!r} is {states.shape[0]} tokens of {states.shape[1]} numbers]")


if __name__ == "__main__":
    main(sys.argv[1])
