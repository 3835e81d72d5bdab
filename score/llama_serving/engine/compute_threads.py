"""How many threads torch computes with."""

import os

from llama_serving.engine.cpus import available


def use(threads: int | None) -> None:
    """Let torch compute with so many threads, in the calling thread and in those that come to torch later.

    Args:
        threads: None is torch's own choice (OMP_NUM_THREADS, else the cores that it may run on), but no more than a
            container's quota keeps busy: more would only be stopped by turns, in the middle of a product.
    """
    import torch

    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return
        threads = min(torch.get_num_threads(), available())
    torch.set_num_threads(threads)
