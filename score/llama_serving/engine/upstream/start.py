"""From settings to a running engine."""

from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine


def start(url: str, *, model: str, key: str | None, max_num_seqs: int) -> UpstreamEngine:
    """A running engine.

    Args:
        url: where the server is, without `/v1`.
        model: the name of the model there.
        key: None where it wants none.
        max_num_seqs: sequences that it is asked for at a time.

    Raises:
        SetupError: it does not come, has another model, or is none that can be used.
    """
    return UpstreamEngine(
        lambda: UpstreamClient(url, key=key),
        behind=ServerMonitor.at(url),
        model=model,
        max_num_seqs=max_num_seqs,
    )
