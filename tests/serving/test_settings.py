"""Settings: read from the environment once; what can't be used stops the start with one sentence."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.native import cpu
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

URLS = ("http://127.0.0.1:8000", "https://host.name", "http://[::1]:8000/", "http://gpu/models/a/")
ACCEPTED: dict[str, tuple[tuple[str, Any], ...]] = {
    "engine": tuple((name, name) for name in ("auto", "batching", "pipeline", "upstream", "vllm")),
    "upstream_url": tuple((text, text.rstrip("/")) for text in URLS),
    "upstream_key": (("k", "k"), ("a-b_c.d=", "a-b_c.d=")),
    "dtype": tuple((name, name) for name in ("auto", "float32", "bfloat16", "float16")),
    "backend": tuple((name, name) for name in ("auto", "native", "portable")),
    "cpu_instructions": tuple((name, name) for name in ("auto", *(one.name for one in cpu.SETS))),
    "quantization": (("none", "none"), ("int8", "int8"), ("int4", "int4")),
    "packed_copy": (("true", True), ("false", False)),
    "speculative_tokens": (("0", 0), ("63", 63)),
    "context": (("16", 16), ("100000", 100_000)),
    "threads": (("1", 1), ("1024", 1024)),
    "max_num_seqs": (("1", 1), ("4096", 4096)),
    "kv_memory": (("1", 1), ("12345", 12345), ("500MiB", 500 << 20), ("8GiB", 8 << 30), ("64KiB", 64 << 10)),
    "vllm": (("/opt/vllm/bin/python", "/opt/vllm/bin/python"), ("vllm", "vllm"), ("/a b/vllm", "/a b/vllm")),
    "vllm_tensor_parallel": (("1", 1), ("64", 64)),
    "vllm_pipeline_parallel": (("1", 1), ("64", 64)),
    "vllm_gpu_share": (("0.05", 0.05), (".9", 0.9), ("0.99", 0.99)),
    "vllm_prefix_caching": (("true", True), ("0", False)),
    "vllm_prefill_tokens": (("64", 64), ("1048576", 1 << 20)),
    "vllm_speculative_tokens": (("0", 0), ("16", 16)),
    "vllm_kv_dtype": (("auto", "auto"), ("fp8", "fp8")),
    "vllm_eager": (("true", True), ("0", False)),
    "vllm_start_s": (("1", 1), ("86400", 86_400)),
    "queue": (("0", 0), ("1000000", 1_000_000)),
    "deadline_s": (("0.001", 0.001), ("60", 60.0), ("1.5", 1.5)),
    "max_body": (("1024", 1024), ("1073741824", 1 << 30)),
    "max_prompts": (("1", 1), ("4096", 4096)),
    "cors_origins": (("*", ("*",)), ("https://a.org, http://b:3000", ("https://a.org", "http://b:3000"))),
    "api_keys": (("a", ("a",)), ("a,b", ("a", "b")), (" a , ,b ", ("a", "b"))),
    "named_keys": (("/etc/llama/keys.yml", "/etc/llama/keys.yml"), ("keys.json", "keys.json")),
    "audit": (("/var/log/llama/audit.jsonl", "/var/log/llama/audit.jsonl"), ("a b.jsonl", "a b.jsonl")),
    "audit_fsync": (("true", True), ("0", False)),
    "audit_max_bytes": (("1", 1), ("64MiB", 64 << 20)),
    "traces": (("off", "off"), ("azure", "azure"), ("otlp", "otlp")),
    "batch_output": (("append_row", "append_row"), ("summary_only", "summary_only")),
    "batch_gpus": (("1", 1), ("64", 64)),
    "guards": (("guards.yml", "guards.yml"), ("/etc/a b/guards.json", "/etc/a b/guards.json")),
    "trusted_proxies": (
        ("127.0.0.1, ::1", ("127.0.0.1", "::1")),
        ("unix,10.0.0.0/8,fd00::/8", ("unix", "10.0.0.0/8", "fd00::/8")),
    ),
    "path_prefix": (("/llama", "/llama"), ("/a/b-c_d.e~/", "/a/b-c_d.e~"), ("/", "")),
    "tls_cert": (("/etc/tls.crt", "/etc/tls.crt"), ("a b.pem", "a b.pem")),
    "tls_key": (("/etc/tls.key", "/etc/tls.key"), ("a b.pem", "a b.pem")),
    "tls_key_password": (("a b", "a b"), ("  a ", "  a "), ("é", "é")),
    "tls_client_ca": (("/etc/ca.crt", "/etc/ca.crt"), ("a b.pem", "a b.pem")),
    "page": (("true", True), ("1", True), ("False", False), ("0", False)),
    "collect": tuple((one, one) for one in ("off", "azureml", "jsonl", "otlp")),
    "collect_rate": (("1", 1.0), ("1.0", 1.0), ("0.5", 0.5), (".05", 0.05), ("0.000000001", 1e-9)),
    "collect_file": (("/var/lib/llama/c.jsonl", "/var/lib/llama/c.jsonl"), ("a b.jsonl", "a b.jsonl")),
    "collect_max_bytes": (("1", 1), ("64MiB", 64 << 20)),
    "log_prompts": (("true", True), ("1", True), ("TRUE", True), ("false", False), ("0", False)),
}
NO_INTEGER = ("-1", "1.5", "1e3", "0x10", "1_000", "²", "٣", "9" * 30, "many", "1 2")
REFUSED: dict[str, tuple[str, ...]] = {
    "engine": ("vLLM", "Pipeline", "pipeline,batching"),
    "upstream_url": (
        "127.0.0.1:8000",
        "http://",
        "http://a/v1",
        "http://a/v1/",
        "http://k@a",
        "http://a?b",
        "a b",
        "ftp://a",
    ),
    "upstream_key": ("a b", "é"),
    "dtype": ("int8", "FLOAT32", "fp16"),
    "backend": ("cpu", "Native", "native,portable"),
    "cpu_instructions": ("sse2", "AMX", "avx512f", "avx2,avx512"),
    "quantization": ("int2", "INT8", "awq", "true"),
    "packed_copy": ("maybe", "on"),
    "speculative_tokens": ("64", "-1", *NO_INTEGER),
    "guards": ("/etc/llama/", "--guards", "a\tb"),
    "page": ("off", "yes"),
    "trusted_proxies": ("*", "proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", "fe80::1%eth0", "a b", ","),
    "path_prefix": (
        "llama",
        "//llama",
        "/../llama",
        "/a//b",
        "/.hidden",
        "/a b",
        "/é",
        "/a?b",
        "http://a/b",
        "/%61",
    ),
    "tls_cert": ("/etc/llama/", "--tls", "a\tb"),
    "tls_key": ("/etc/llama/", "-", "a\tb"),
    "tls_key_password": ("a" * 1025, "é" * 513),
    "tls_client_ca": ("/etc/llama/", "-", "a\tb"),
    "named_keys": ("/etc/llama/", "-", "a\tb"),
    "audit": ("/var/log/", "--audit", "a\tb"),
    "audit_fsync": ("always", "yes"),
    "audit_max_bytes": ("0", "1GB", *NO_INTEGER),
    "context": ("0", "15", "10000001", *NO_INTEGER),
    "threads": ("0", "1025", *NO_INTEGER),
    "max_num_seqs": ("0", "4097", *NO_INTEGER),
    "kv_memory": ("0", "0GiB", "8GB", "8gib", "1.5GiB", "8 GiB", "GiB", *NO_INTEGER),
    "vllm": ("/opt/vllm/", "--trust-remote-code", "a\tb"),
    "vllm_tensor_parallel": ("0", "65", *NO_INTEGER),
    "vllm_pipeline_parallel": ("0", "65", *NO_INTEGER),
    "vllm_gpu_share": ("0", "0.04", "0.995", "1", "1.0", "90%", "-0.5", "nan", "9e-1"),
    "vllm_prefix_caching": ("yes", "2", "on"),
    "vllm_prefill_tokens": ("63", "1048577", *NO_INTEGER),
    "vllm_speculative_tokens": ("17", *NO_INTEGER),
    "vllm_kv_dtype": ("fp4", "FP8", "fp8_e4m3"),
    "vllm_eager": ("yes", "2"),
    "vllm_start_s": ("0", "86401", *NO_INTEGER),
    "queue": ("1000001", *NO_INTEGER),
    "deadline_s": ("0", "0.0", "-1", "nan", "inf", "1e3", "1s", "."),
    "max_body": ("1023", "1073741825", "4MB", *NO_INTEGER),
    "max_prompts": ("0", "4097", *NO_INTEGER),
    "cors_origins": (",", "a.org", "https://a.org/path", "https://a.org b"),
    "api_keys": (",", " , "),
    "traces": ("on", "true", "OTLP", "azure,otlp"),
    "batch_output": ("rows", "append", "SUMMARY_ONLY"),
    "batch_gpus": ("0", "65", *NO_INTEGER),
    "collect": ("on", "true", "file", "AzureML", "jsonl,otlp"),
    "collect_rate": ("0", "0.0", ".0", "1.1", "2", "50%", "5e-1", "-0.5", "nan", "inf", "half"),
    "collect_file": ("/var/lib/", "--file", "a\tb"),
    "collect_max_bytes": ("0", "1GB", *NO_INTEGER),
    "log_prompts": ("yes", "2", "on", "truefalse"),
}


def variable(name: str) -> str:
    return f"LLAMA_{name.upper()}"


def test_the_tables_above_are_complete() -> None:
    names = {field.name for field in fields(Settings)}
    assert ACCEPTED.keys() == names
    assert REFUSED.keys() == names


@pytest.mark.parametrize(
    ("name", "text", "value"), [(name, *pair) for name, pairs in ACCEPTED.items() for pair in pairs]
)
def test_what_can_be_used_is_used(name: str, text: str, value: Any) -> None:
    given = text if name == "tls_key_password" else f" {text}\n"  # (its spaces belong to it)
    assert Settings.from_environment({variable(name): given}) == Settings(**{name: value})


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in REFUSED.items() for text in texts])
def test_what_cannot_be_used_stops_the_start(name: str, text: str) -> None:
    with pytest.raises(SetupError, match=variable(name)) as refusal:
        Settings.from_environment({variable(name): text})
    assert str(refusal.value).count("\n") == 0


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_no_setting(name: str, text: str) -> None:
    assert Settings.from_environment({variable(name): text}) == Settings()


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings.from_environment({"PATH": "/bin", "HOME": "/"})
    assert (settings.max_body, settings.max_prompts) == (4 * 1024 * 1024, 64)
    assert settings.api_keys == ()
    assert not settings.log_prompts
    assert settings.traces == "off"


def test_the_process_has_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_QUEUE", "3")
    settings = Settings.from_environment()
    monkeypatch.setenv("LLAMA_QUEUE", "4")
    assert settings.queue == 3


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().queue = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LLAMA_MAX_NUM_SEQ", "LLAMA_MAX_NUM_SEQS"),
        ("LLAMA_QUEUES", "LLAMA_QUEUE"),
        ("LLAMA_DEADLINE", "LLAMA_DEADLINE_S"),
        ("LLAMA_API_KEY", "LLAMA_API_KEYS"),
        ("LLAMA_API_KEYS_FILES", "LLAMA_API_KEYS_FILE"),
        ("LLAMA_LOG_PROMPT", "LLAMA_LOG_PROMPTS"),
        ("LLAMA_TRACE", "LLAMA_TRACES"),
    ],
)
def test_a_misspelled_name_stops_the_start(name: str, meant: str) -> None:
    with pytest.raises(SetupError, match=rf"{name} is not a setting. Did you mean {meant}\?"):
        Settings.from_environment({name: "1"})


@pytest.mark.parametrize("name", ["LLAMA_CPP_LIB", "LLAMA_INDEX_CACHE_DIR", "LLAMA_"])
def test_variables_of_other_software_are_left_alone(name: str) -> None:
    assert Settings.from_environment({name: "x"}) == Settings()


def test_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\r\ntwo\n\n", encoding="utf-8")
    assert Settings.from_environment({"LLAMA_API_KEYS_FILE": str(file)}).api_keys == ("one", "two")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", None])
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SetupError, match="LLAMA_API_KEYS"):
        Settings.from_environment({"LLAMA_API_KEYS_FILE": str(file)})


def test_keys_from_two_places_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="both set"):
        Settings.from_environment({"LLAMA_API_KEYS": "a", "LLAMA_API_KEYS_FILE": str(tmp_path)})


def test_all_settings_are_shown_and_keys_are_masked() -> None:
    shown = Settings(api_keys=("hidden-1", "hidden-2"), queue=3).shown()
    assert all(f"{variable(field.name)}=" in shown for field in fields(Settings))
    assert "LLAMA_API_KEYS=2 keys" in shown
    assert "LLAMA_QUEUE=3" in shown
    assert "hidden" not in shown
    assert "\n" not in shown


@pytest.mark.parametrize("told", [repr, str, Settings.shown, lambda settings: f"{[settings]}"])
def test_no_way_to_print_them_shows_a_key(told: Callable[[Settings], str]) -> None:
    said = told(
        Settings(
            api_keys=("hidden-1", "hidden-2"), upstream_key="hidden-3", tls_key_password="hidden-4", queue=3
        )
    )
    assert "hidden" not in said
    assert "3" in said


def test_keys_make_settings_differ() -> None:
    assert Settings(upstream_key="a") != Settings(upstream_key="b")
    assert Settings(api_keys=("a",)) != Settings()


@pytest.mark.parametrize("address", ["http://user:hidden@host", "https://hidden@host/v1", "hidden@host"])
def test_an_address_with_a_password_is_refused_without_it(address: str) -> None:
    with pytest.raises(SetupError, match=r"LLAMA_UPSTREAM_URL=\.\.\. can't be used") as refused:
        Settings.from_environment({"LLAMA_UPSTREAM_URL": address})
    assert "hidden" not in str(refused.value)


KEY = "key-of-nobody"
variables = st.sampled_from(
    [*map(variable, sorted(ACCEPTED.keys() - {"api_keys"})), "LLAMA_API_KEYS_FILE", "LLAMA_QUEU"]
)


@settings(deadline=None)
@given(environment=st.dictionaries(variables, st.text()), keys=st.text())
def test_any_environment_is_read_or_refused_without_its_keys(environment: dict[str, str], keys: str) -> None:
    try:
        message = Settings.from_environment({**environment, "LLAMA_API_KEYS": KEY + keys}).shown()
    except SetupError as refusal:
        message = str(refusal)
    assert KEY not in message


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "/", "/nowhere/at/all"])
def test_a_path_that_is_none_stops_the_start(path: str) -> None:
    with pytest.raises(SetupError, match="LLAMA_API_KEYS"):
        Settings.from_environment({"LLAMA_API_KEYS_FILE": path})
