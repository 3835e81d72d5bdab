"""A plain batch loop with transformers: `python pipeline_loop.py CHECKPOINT ROWS.jsonl`.

It runs with the peers' Python, without this project. Batches of sixteen rows, padded on the left; a batch ends with its longest
answer, as it would if the model ended them.
"""

import json
import sys
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
for first in range(0, len(rows), BATCH):
    batch = rows[first : first + BATCH]
    longest = max(row["max_tokens"] for row in batch)
    pipeline(
        [row["prompt"] for row in batch],
        batch_size=BATCH,
        do_sample=False,
        max_new_tokens=longest,
        min_new_tokens=longest,
    )
