"""Entry of Azure ML's batch endpoint; the work is in `llama_serving.batch.driver`."""

import sys
from pathlib import Path

# As in score.py: the uploaded package comes before an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from llama_serving.batch.driver import init, run

__all__ = ["init", "run"]
