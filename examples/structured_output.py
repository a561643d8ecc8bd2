"""Have a model answer in JSON of a given shape: the answer can't be anything else.

python examples/structured_output.py MODEL
"""

from __future__ import annotations

import json
import sys

from client.sync_api import SyncClient

SCHEMA = {
    "type": "object",
    "properties": {
        "feeling": {"enum": ["good", "bad", "neither"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["feeling", "stars"],
    "additionalProperties": False,
}


def main(model: str) -> None:
    review = "The soup was cold, but the waiter made up for it."
    with SyncClient() as client:
        result = client.chat(
            model,
            [{"role": "user", "content": f"Rate this review as JSON: {review}"}],
            json_schema=json.dumps(SCHEMA),
            max_tokens=200,
        )
    answer = json.loads(result.text)
    print(f"{answer['stars']} stars, {answer['feeling']}")


if __name__ == "__main__":
    main(sys.argv[1])
