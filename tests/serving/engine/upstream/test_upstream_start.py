"""What is asked of the server before the first request."""

import threading
from typing import Any

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service.engine_factory import start_engine
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.calls import until
from tests.support.draws import PATIENCE_S
from tests.support.upstream_engines import run, running
from tests.support.upstreams import (
    HEAD,
    MODEL,
    Close,
    FakeUpstream,
    Step,
    chunk,
    status,
    stream,
)


def test_it_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeUpstream()
    fake.up()
    fake.down()  # (its port is known, and nobody listens)
    later = threading.Thread(target=lambda: (until(lambda: "waiting for" in caplog.text), fake.up()))
    later.start()
    with running(fake, start_s=PATIENCE_S) as own:
        assert run(own)[1] == "length"
    later.join()
    fake.down()


@pytest.mark.parametrize(
    ("path", "code"), [("/health", 503), ("/health", 500), ("/v1/models", 502), ("/version", 429)]
)
def test_one_that_is_loading_is_waited_for(
    fake: FakeUpstream, caplog: pytest.LogCaptureFixture, path: str, code: int
) -> None:
    fake.said[path] = status(code)
    ready = threading.Thread(target=lambda: (until(lambda: "waiting for" in caplog.text), fake.said.clear()))
    ready.start()
    with running(fake, start_s=PATIENCE_S) as own:
        assert run(own)[1] == "length"
    ready.join()
    assert f"it answers {path} with {code}" in caplog.text


def refusal(fake: FakeUpstream, **how: Any) -> str:
    with pytest.raises(SetupError) as refused, running(fake, **how):
        pass
    assert f"LLAMA_UPSTREAM_URL={fake.url}" in str(refused.value)
    return str(refused.value)


def test_the_server_is_not_waited_for_forever(fake: FakeUpstream) -> None:
    fake.down()
    assert "no server answered there within 0 s" in refusal(fake, start_s=0.0)
    fake.up()


def test_another_model_is_refused(fake: FakeUpstream) -> None:
    fake.models = ("other", "another")
    assert "its models are other, another, and not nano" in refusal(fake)
    assert fake.asked == []


@pytest.mark.parametrize("said", [{}, [], {"data": 5}, {"data": [{"name": "x"}]}, {"data": ["nano"]}])
def test_what_is_no_list_of_models(fake: FakeUpstream, said: object) -> None:
    fake.said["/v1/models"] = status(200, said)
    assert "no list of models" in refusal(fake)


def test_a_list_of_models_that_fails(fake: FakeUpstream) -> None:
    fake.said["/v1/models"] = status(500)
    assert "it answers /v1/models with 500" in refusal(fake)


def test_a_start_that_is_ended_is_over() -> None:
    """As by Ctrl-C: the start ends before its ten minutes."""
    kept: list[UpstreamEngine] = []

    def closing() -> UpstreamClient:
        threading.Thread(target=kept[0].close).start()
        return UpstreamClient("http://127.0.0.1:9")

    class Kept(UpstreamEngine):
        def _start(self) -> None:
            kept.append(self)
            super()._start()

    with pytest.raises(SetupError, match="was interrupted"):
        Kept(closing, monitor=ServerMonitor.at("http://127.0.0.1:9"), model=MODEL, start_s=PATIENCE_S * 10)


def test_what_is_no_json(fake: FakeUpstream) -> None:
    fake.said["/v1/models"] = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml"]
    assert "no JSON" in refusal(fake)


def test_a_server_of_an_unknown_kind_is_refused(fake: FakeUpstream) -> None:
    fake.owned_by = "somebody"
    assert "not one of the supported servers: vLLM or llama-endpoints" in refusal(fake)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_a_wrong_key_is_said_at_once(fake: FakeUpstream, path: str) -> None:
    fake.said[path] = status(401)
    assert f"it refuses {path} (401): it rejects the key" in refusal(fake, key="wrong")


def test_what_is_no_model_s_server_at_all(fake: FakeUpstream) -> None:
    fake.said["/health"] = status(404)
    assert "it answers /health with 404" in refusal(fake)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            status(400, {"error": {"type": "BadRequestError", "param": "prompt"}}),
            "400, BadRequestError, prompt",
        ),
        (stream([chunk([7], "length", token_ids=None)]), "without token ids"),
        ([HEAD, Close()], "broke off"),
    ],
)
def test_one_that_takes_or_gives_no_ids_is_found_out_at_the_start(
    fake: FakeUpstream, answer: list[Step], says: str
) -> None:
    fake.answers.append(answer)
    message = refusal(fake)
    assert "A first request failed" in message
    assert says in message


def test_one_without_a_version_and_a_context(fake: FakeUpstream) -> None:
    fake.context, fake.said["/version"] = None, status(404)
    with running(fake) as own:
        assert own.capacity is None
        assert own.stats().backend == f"vLLM at {fake.url}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(engine="upstream"), "LLAMA_ENGINE=upstream needs LLAMA_UPSTREAM_URL"),
        (Settings(upstream_url="http://a"), "LLAMA_UPSTREAM_URL is set, but the engine is not `upstream`"),
        (Settings(engine="batching", upstream_key="k"), "LLAMA_UPSTREAM_KEY is set, but the engine is not"),
        (Settings(engine="upstream", upstream_url="http://a", threads=2), "LLAMA_THREADS is set, but"),
        (Settings(engine="upstream", upstream_url="http://a", kv_memory=2), "LLAMA_KV_MEMORY is set, but"),
    ],
)
def test_settings_that_do_not_go_together(settings: Settings, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        start_engine(ModelFiles(NANO_FOLDER, NANO), dtype="float32", context=64, settings=settings)


def test_the_context_is_no_longer_than_the_server_s(
    fake: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    fake.context = 64
    given = Settings(engine="upstream", upstream_url=fake.url, upstream_key="hidden")
    with caplog.at_level("INFO", "llama_serving"):
        service = Service.start(ModelFiles(NANO_FOLDER, NANO), given)
    service.close()
    assert service.builder.context == 64
    assert "the model's server has a context of 64 tokens" in caplog.text
    assert f"upstream engine on the vLLM 0.32.0 at {fake.url} backend" in caplog.text
    assert "hidden" not in caplog.text
