"""Write MLflow's own transformers flavour of a checkpoint: `python stock_mlflow.py CHECKPOINT OUTPUT`.

It runs with the peers' Python, where nothing of this project is installed.
"""

import sys

import mlflow
import torch
import transformers

checkpoint, output = sys.argv[1:]
pipeline = transformers.pipeline("text-generation", model=checkpoint, dtype=torch.bfloat16, device="cpu")
mlflow.transformers.save_model(
    pipeline,
    output,
    pip_requirements=["torch", "transformers", "accelerate"],  # (its own guess needs torchvision installed)
    signature=mlflow.models.infer_signature(
        ["a prompt"], ["a text"], params={"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    ),
)
