"""Only our own server writes traces; the other hosts warn that the setting has no effect."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_serving.hosts import azureml_batch, azureml_online, mlflow_pyfunc
from llama_serving.service.service import Service


def mlflow(model: Path) -> None:
    artifacts = {mlflow_pyfunc.ARTIFACT: str(model / "artifacts" / mlflow_pyfunc.ARTIFACT)}
    mlflow_pyfunc.LlamaModel().load_context(SimpleNamespace(artifacts=artifacts))


@pytest.fixture
def given(request: pytest.FixtureRequest, nano_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting as the hosts read it, without loading a model."""
    value: str = request.param
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(nano_model))
    monkeypatch.setenv("LLAMA_TRACES", value)
    monkeypatch.setattr(Service, "start", lambda files, settings: None)
    monkeypatch.setattr(azureml_batch, "_loaded", [])
    return value


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(lambda model: azureml_online._load(), id="online"),
        pytest.param(lambda model: azureml_batch.init(), id="batch"),
        pytest.param(mlflow, id="mlflow"),
    ],
)
@pytest.mark.parametrize("given", ["off", "otlp"], indirect=True)
def test_a_host_without_traces_warns(
    load: Callable[[Path], None], given: str, nano_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(nano_model)
    said = [record for record in caplog.records if "LLAMA_TRACES has no effect" in record.getMessage()]
    assert len(said) == (given != "off")
