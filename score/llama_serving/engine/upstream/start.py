"""Starts an upstream engine from settings."""

from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine


def start(url: str, *, model: str, key: str | None, max_num_seqs: int) -> UpstreamEngine:
    """Start an engine.

    Args:
        url: address of the server, without `/v1`.
        model: name of the model on that server.
        key: bearer token; None if the server needs none.
        max_num_seqs: sequences sent to the server at a time.

    Raises:
        SetupError: the server does not come, lacks the model, or is of an unsupported kind.
    """
    return UpstreamEngine(
        lambda: UpstreamClient(url, key=key),
        monitor=ServerMonitor.at(url),
        model=model,
        max_num_seqs=max_num_seqs,
    )
