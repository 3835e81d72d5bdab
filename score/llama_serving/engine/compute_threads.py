"""Number of torch's compute threads."""

import os

from llama_serving.engine.cpus import available


def use(threads: int | None) -> None:
    """Set the number of torch's threads, for the calling thread and for threads that use torch later.

    Args:
        threads: None is torch's default (OMP_NUM_THREADS, else the cores of the affinity), but no more than the container's
            quota: more threads would be throttled in the middle of a product.
    """
    import torch

    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return
        threads = min(torch.get_num_threads(), available())
    torch.set_num_threads(threads)
