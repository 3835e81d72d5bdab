"""Azure ML's data collector: the sidecar of a deployment whose YAML has `data_collector`.

The library's own `Collector` samples both sides of a request apart, waits for an answer without a limit, and tells nobody what
became of a payload. Of the library are therefore the configuration, the payloads and the protocol; queue and sampling are ours.
"""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import requests
from azureml.ai.monitoring.config import get_config, init_config
from azureml.ai.monitoring.context import BasicCorrelationContext
from azureml.ai.monitoring.payload import PandasFrameData
from azureml.ai.monitoring.payload.payload import build_payload
from azureml.ai.monitoring.worker.sender import MdcSender

from llama_serving.errors import SetupError
from llama_serving.service.collection.record import CollectedRequest
from llama_serving.service.collection.sinks.sink import SinkError

INPUTS: Final = "model_inputs"
OUTPUTS: Final = "model_outputs"
TIMEOUT_S: Final = 5.0
"""Seconds that the sidecar may take for one payload."""
CONFIGURATION: Final = "AZUREML_MDC_CONFIG_PATH"
"""Where Azure puts what a deployment's `data_collector` says."""


class _Sender(MdcSender):  # type: ignore[misc]  # the library is untyped
    """The library's sender, with a time limit, and without a proxy for the way to this machine."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.logger.disabled = True  # (it quotes answers; failures are counted and said by the collector)
        self._session = requests.Session()
        self._session.trust_env = False

    def _post_request(self, url: str, payload: Any, headers: Any = None) -> tuple[int, str]:
        with self._session.post(url, data=payload, headers=headers, timeout=TIMEOUT_S) as answer:
            return answer.status_code, ""

    def close(self) -> None:
        self._session.close()


class _Rows(PandasFrameData):  # type: ignore[misc]
    """Rows, whose type has the name that Azure documents for collected data; in pandas 3 the class calls itself otherwise."""

    def type(self) -> str:
        return "pandas.core.frame.DataFrame"


class DataCollector:
    """Posts a request's rows to the sidecar, as the collections `model_inputs` and `model_outputs`.

    Args:
        host, port: of the sidecar.
        rate: the share of requests that the deployment's YAML allows.
    """

    def __init__(self, host: str, port: int, rate: float) -> None:
        self.rate = rate
        self._sender, self._address = _Sender(host, port), f"{host}:{port}"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "DataCollector":
        """Return the data collector of this deployment.

        Raises:
            SetupError: the deployment has none, or prints what it gets.
        """
        try:
            init_config("default")
            config = get_config()
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise SetupError(
                f"LLAMA_COLLECT=azureml can't be used: {CONFIGURATION}={environment.get(CONFIGURATION)} can't be read "
                f"({type(error).__name__})."
            ) from error
        off = [name for name in (INPUTS, OUTPUTS) if not (config.enabled() and config.collection_enabled(name))]
        if off:
            raise SetupError(
                f"LLAMA_COLLECT=azureml needs the collections {' and '.join(off)} in `data_collector` of the deployment's YAML. "
                "Write it with `llama-endpoints render --collect SHARE`, or set LLAMA_COLLECT=off."
            )
        if config.local_capture():
            raise SetupError(
                "LLAMA_COLLECT=azureml can't be used in a local deployment: its data collector prints prompts to the log. "
                "Set LLAMA_COLLECT=off or LLAMA_COLLECT=jsonl."
            )
        percent = min(config.collection_sample_rate_percentage(name) for name in (INPUTS, OUTPUTS))
        return cls(config.host(), config.port(), percent / 100)

    @property
    def destination(self) -> str:
        """What the log says of it."""
        return f"Azure ML's data collector at {self._address}"

    def write(self, request: CollectedRequest) -> None:
        """Post both sides of a request, correlated by an id that no other request has.

        Raises:
            SinkError: the sidecar is away, too slow, or refuses it.
        """
        context = BasicCorrelationContext(request.correlation_id, int(request.seconds))
        for name, rows in ((INPUTS, request.model_inputs()), (OUTPUTS, request.model_outputs())):
            payload = build_payload(name, _Rows(pd.DataFrame(rows)), "default", context)
            accepted, why = self._sender.send(payload)
            if not accepted:
                raise SinkError(_said(why))

    def close(self) -> None:
        """Close the connection."""
        self._sender.close()


def _said(why: str) -> str:
    """Return the status alone, or what is wrong with the connection: neither has a text of the request."""
    status = why.partition(":")[0]
    return f"it answered {status}" if status.isdigit() else "it does not answer"
