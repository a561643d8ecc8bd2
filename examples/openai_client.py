"""OpenAI's own Python package before a cluster. Needs `pip install openai`, and `client serve` beside it.

client serve &
python examples/openai_client.py MODEL [http://127.0.0.1:8000/v1]
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(model: str, base_url: str) -> None:
    # the gateway answers with its own key on this machine; elsewhere it takes a key of the cluster
    with OpenAI(base_url=base_url, api_key=os.environ.get("BRIGADE_API_KEY", "none")) as openai:
        stream = openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
            max_completion_tokens=48,
            stream=True,
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000/v1")
