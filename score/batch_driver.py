"""Entry of Azure ML's batch endpoint; the work is in `llama_serving.hosts.azureml_batch`."""

import sys
from pathlib import Path

# As in score.py: the uploaded package comes before an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from llama_serving.hosts.azureml_batch import init, run

__all__ = ["init", "run"]
