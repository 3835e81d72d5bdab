"""The loop that one writes with transformers: `python pipeline_loop.py CHECKPOINT ROWS.jsonl`, prints seconds.

It runs with the peers' Python, where nothing of this project is installed. Sixteen rows at a time, padded on the
left; a batch goes on until its longest answer is there, as it would if the model ended them.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers

BATCH = 16

checkpoint, path = sys.argv[1:]
with open(path, encoding="utf-8") as lines:  # noqa: PTH123
    rows = [json.loads(line) for line in lines]
pipeline: Any = transformers.pipeline("text-generation", model=checkpoint, dtype=torch.bfloat16, device="cpu")
pipeline.tokenizer.pad_token = "</s>"  # noqa: S105
pipeline.tokenizer.padding_side = "left"
# Decoded and encoded again, a prompt may differ by a token or two: its length is what matters here.
prompts = [pipeline.tokenizer.decode(row["ids"]) for row in rows]


def answer(first: int) -> None:
    """One batch."""
    longest = max(row["new_tokens"] for row in rows[first : first + BATCH])
    pipeline(
        prompts[first : first + BATCH],
        batch_size=BATCH,
        do_sample=False,
        max_new_tokens=longest,
        min_new_tokens=longest,
    )


answer(0)
started = time.perf_counter()
for at in range(0, len(rows), BATCH):
    answer(at)
print(time.perf_counter() - started)  # noqa: T201
