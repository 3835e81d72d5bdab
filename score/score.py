"""Entry of Azure ML's online endpoint; the work is in `llama_serving.hosts.azureml_online`."""

import sys
from pathlib import Path

# The server puts this folder last on the path: an installed llama_serving would shadow the uploaded one.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from llama_serving.hosts.azureml_online import init, run

__all__ = ["init", "run"]
