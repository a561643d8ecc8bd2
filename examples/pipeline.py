"""A cluster's model in transformers' own pipeline, and in `generate` with a batch. Needs brigade[worker].

python examples/pipeline.py MODEL
"""

from __future__ import annotations

import sys

from transformers import TextStreamer, pipeline

from client.causal_lm import BrigadeForCausalLM


def main(name: str) -> None:
    with BrigadeForCausalLM.from_cluster(name) as model:
        tokenizer = model.tokenizer()
        answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
        print(answer("Bees make", max_new_tokens=16, do_sample=False)[0]["generated_text"])

        batch = tokenizer(["Bees make", "The capital of France is"], return_tensors="pt", padding=True)
        for text in tokenizer.batch_decode(model.generate(**batch, max_new_tokens=16), skip_special_tokens=True):
            print(text)

        one = tokenizer("Once upon a time", return_tensors="pt")
        model.generate(**one, max_new_tokens=32, do_sample=True, top_p=0.9, streamer=TextStreamer(tokenizer))


if __name__ == "__main__":
    main(sys.argv[1])
