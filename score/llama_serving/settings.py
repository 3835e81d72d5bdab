"""The operator's settings: one frozen value, read once from the environment."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError

ENGINES: Final = ("auto", "batching", "pipeline", "upstream", "vllm")
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
BACKENDS: Final = ("auto", "native", "portable")
CPU_INSTRUCTIONS: Final = ("auto", "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "neon_bf16", "neon")
QUANTIZATIONS: Final = ("none", "int8", "int4")
KV_DTYPES: Final = ("auto", "fp8")
TRACES: Final = ("off", "azure", "otlp")
COLLECTORS: Final = ("off", "azureml", "jsonl", "otlp")
_PREFIX: Final = "LLAMA_"
_VERBATIM: Final = ("LLAMA_TLS_KEY_PASSWORD",)
"""Spaces at the ends of these belong to the value."""
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. Each is read from `LLAMA_` and its name in capitals. `shown` and `repr` mask keys.

    Attributes:
        engine: which engine generates. `auto` is `batching` on a CPU; on a GPU it is `vllm` where vLLM is found, else
            `pipeline`. `vllm` starts vLLM; `upstream` calls another server.
        upstream_url: address of that server, without `/v1`.
        upstream_key: its bearer token.
        dtype: of the weights; `auto` is what packaging recorded.
        backend: of the batching engine; `auto` is `native` where it supports CPU and model (bfloat16; x86-64 with AVX2 or
            AArch64), else `portable`.
        cpu_instructions: the instruction set that the native backend uses; `auto` is the fastest that the CPU has.
        quantization: applied to the weights while they load: `int8` takes half the bytes of bfloat16, `int4` 28 % (native
            backend only). `none` leaves a checkpoint's weights as they are.
        packed_copy: quantized weights are kept in the user's cache folder (`XDG_CACHE_HOME`), where the next start reads them.
        speculative_tokens: most tokens of a sequence that are guessed by prompt lookup in each step of the batching engine; 0 is
            none. The answers are the same.
        context: tokens of prompt and completion; None is the number of positions that the model was trained on.
        threads: of torch, or of vLLM on a CPU; None is the library's default, within the container's CPU quota.
        max_num_seqs: sequences that run at a time (the pipeline engine runs one).
        kv_memory: bytes for keys and values; None is half of the free memory, and no more than can be used (vLLM on a GPU:
            its share).
        vllm: the Python of the environment that has vLLM, or its `vllm` command; None is `vllm` on PATH.
        vllm_tensor_parallel: GPUs that share each layer.
        vllm_pipeline_parallel: groups of GPUs that share the layers among them.
        vllm_gpu_share: share of a GPU's memory that vLLM may use.
        vllm_prefix_caching: keep keys and values of prompts, to reuse them for prompts with the same prefix.
        vllm_prefill_tokens: most tokens in one step; None is vLLM's default.
        vllm_speculative_tokens: tokens guessed by prompt lookup in each step; 0 is none.
        vllm_kv_dtype: type of keys and values; `auto` is the model's.
        vllm_eager: vLLM neither compiles nor records CUDA graphs: it starts faster and generates slower.
        vllm_start_s: seconds that vLLM may take until it is healthy. Loading 138 GB of weights takes 92 minutes at 25 MB/s.
        queue: requests that may wait beside `max_num_seqs` others; further ones are refused with 429.
        deadline_s: seconds a request may take; None is the host's default.
        max_body: bytes of a request's body.
        max_prompts: prompts in one request.
        api_keys: keys of our own server (other hosts have authentication in front of them).
        named_keys: the file of keys with names and limits, YAML or JSON; read again on SIGHUP.
        audit: the file that gets a JSON line for each request of our own server.
        audit_fsync: lines of the audit are forced onto the disk.
        audit_max_bytes: size at which the audit's file is renamed and a new one begun.
        cors_origins: origins whose pages may call our own server from a browser; `*` is all.
        trusted_proxies: addresses and networks (CIDR) of proxies in front of our own server, whose `X-Forwarded-*` headers are
            believed; `unix` is every peer on a Unix socket.
        path_prefix: our own server's paths also exist below it, such as `/llama` behind a proxy that does not strip it.
        tls_cert: our own server speaks TLS with this chain of certificates in PEM. A changed file is read again.
        tls_key: its private key in PEM; None is in the file of the certificate.
        tls_key_password: of an encrypted key.
        tls_client_ca: clients need a certificate that one of these has signed, in PEM.
        page: our own server has a page for browsers at `/`.
        guards: the file of the guards that check prompts and texts, YAML or JSON; None has no guards.
        log_prompts: prompts may be written to the log.
        collect: where prompts and answers of online requests are collected, redacted: `off`, `azureml` (the deployment's data
            collector), `jsonl` (a file) or `otlp` (OpenTelemetry events).
        collect_rate: share of the requests that are collected.
        collect_file: the file of `jsonl`.
        collect_max_bytes: size at which that file is renamed and a new one begun.
        batch_output: how Azure's batch endpoint uses the driver's results, its `output_action`.
        batch_gpus: GPUs that one process of Azure's batch endpoint uses; None is all of the machine.
        traces: where our own server sends OpenTelemetry traces: `off`, `azure` (Application Insights) or `otlp`.
    """

    engine: str = "auto"
    upstream_url: str | None = None
    upstream_key: str | None = field(default=None, repr=False)
    dtype: str = "auto"
    backend: str = "auto"
    cpu_instructions: str = "auto"
    quantization: str = "none"
    packed_copy: bool = True
    speculative_tokens: int = 15
    context: int | None = None
    threads: int | None = None
    max_num_seqs: int = 16
    kv_memory: int | None = None
    vllm: str | None = None
    vllm_tensor_parallel: int = 1
    vllm_pipeline_parallel: int = 1
    vllm_gpu_share: float = 0.92
    vllm_prefix_caching: bool = True
    vllm_prefill_tokens: int | None = None
    vllm_speculative_tokens: int = 0
    vllm_kv_dtype: str = "auto"
    vllm_eager: bool = False
    vllm_start_s: int = 7200
    queue: int = 64
    deadline_s: float | None = None
    max_body: int = 4 * 1024 * 1024
    max_prompts: int = 64
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    named_keys: str | None = field(default=None, repr=False)
    audit: str | None = None
    audit_fsync: bool = False
    audit_max_bytes: int = 256 << 20
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    path_prefix: str = ""
    tls_cert: str | None = None
    tls_key: str | None = field(default=None, repr=False)
    tls_key_password: str | None = field(default=None, repr=False)
    tls_client_ca: str | None = None
    page: bool = True
    guards: str | None = None
    log_prompts: bool = False
    collect: str = "off"
    collect_rate: float = 1.0
    collect_file: str | None = None
    collect_max_bytes: int = 256 << 20
    traces: str = "off"
    batch_output: str = "append_row"
    batch_gpus: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Return the settings in `environment` (default: that of the process).

        Raises:
            SetupError: a value is invalid, or a name is a near miss of a setting's.
        """
        given = _llama_variables(os.environ if environment is None else environment)
        keys_file = given.pop("api_keys_file", None)
        if keys_file is not None:
            if "api_keys" in given:
                raise SetupError("LLAMA_API_KEYS and LLAMA_API_KEYS_FILE are both set. Set one of them.")
            given["api_keys"] = _read_keys(keys_file)
        for name in given:
            if name not in _PARSERS:
                _refuse_misspelled(name)
        known = {name: text for name, text in given.items() if name in _PARSERS}
        return cls(**{name: _PARSERS[name](name, text) for name, text in known.items()})

    def shown(self) -> str:
        """Return all settings in one line, keys masked."""

        def show(name: str) -> str:
            value = getattr(self, name)
            if name == "api_keys":
                value = f"{len(value)} keys"
            elif name == "upstream_key" and value is not None:
                value = "1 key"
            elif name == "tls_key_password" and value is not None:
                value = "1 password"
            return f"{_PREFIX}{name.upper()}={value}"

        return " ".join(show(field.name) for field in fields(self))


def _llama_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(_PREFIX).lower(): text if name in _VERBATIM else text.strip()
        for name, text in environment.items()
        if name.startswith(_PREFIX) and text.strip()
    }


def _refuse_misspelled(name: str) -> None:
    """Refuse a near miss. Other software also has variables that begin with LLAMA_, so other names are ignored."""
    close = get_close_matches(name, [*_PARSERS, "api_keys_file"], n=1, cutoff=0.8)
    if close:
        raise SetupError(f"{_PREFIX}{name.upper()} is not a setting. Did you mean {_PREFIX}{close[0].upper()}?")


def _read_keys(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").replace("\n", ",")
    except (OSError, ValueError) as error:  # (ValueError: not UTF-8, or no path at all)
        raise SetupError(f"LLAMA_API_KEYS_FILE can't be read: {error}.") from error


def _choice(*allowed: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text not in allowed:
            raise _unusable(name, text, f"one of {', '.join(allowed)}")
        return text

    return parse


def _address(name: str, text: str) -> str:
    address = text.rstrip("/")
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", address) or address.endswith(
        "/v1"
    ):
        shown = "..." if "@" in text else text  # (a password may precede the @)
        raise _unusable(name, shown, "an address without /v1 at its end, such as http://127.0.0.1:8000")
    return address


def _key(name: str, text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise SetupError(
            f"{_PREFIX}{name.upper()} holds no key: one word of letters, digits and signs is needed."
        )
    return text


def _integer(low: int, high: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise _unusable(name, text, f"an integer from {low} to {high}")
        return int(text)

    return parse


def _bytes(name: str, text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})(KiB|MiB|GiB)?", text)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if size <= 0:
        raise _unusable(name, text, "a number of bytes above 0, such as 8GiB or 500MiB")
    return size


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) <= 0:
        raise _unusable(name, text, "a number of seconds above 0")
    return float(text)


def _share(low: float, high: float) -> Callable[[str, str], float]:
    def parse(name: str, text: str) -> float:
        if not re.fullmatch(r"0?\.[0-9]{1,9}", text) or not low <= float(text) <= high:
            raise _unusable(name, text, f"a number from {low:g} to {high:g}")
        return float(text)

    return parse


def _rate(name: str, text: str) -> float:
    if not re.fullmatch(r"0?\.[0-9]{1,9}|1(\.0{1,9})?", text) or float(text) <= 0:
        raise _unusable(name, text, "a number above 0, at most 1")
    return float(text)


def _program(name: str, text: str) -> str:
    # A bare name is searched for on PATH when the program is started.
    if not re.fullmatch(r"[^\x00-\x1f-][^\x00-\x1f]*", text) or text.endswith("/"):
        raise _unusable(
            name, text, "the path of a Python or of the `vllm` command, such as /opt/vllm/bin/python"
        )
    return text


def _path(example: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if not re.fullmatch(r"[^\x00-\x1f-][^\x00-\x1f]*", text) or text.endswith("/"):
            raise _unusable(name, text, f"the path of a file, such as {example}")
        return text

    return parse


def _boolean(name: str, text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise _unusable(name, text, "true or false")
    return values[text.lower()]


def _keys(name: str, text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        raise SetupError(f"{_PREFIX}{name.upper()} holds no key. Put keys in it, separated by commas.")
    return keys


def _origins(name: str, text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    if not origins or not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
        raise _unusable(
            name,
            text,
            "* or origins with commas between them, such as https://example.org,http://localhost:3000",
        )
    return origins


def _proxies(name: str, text: str) -> tuple[str, ...]:
    found = tuple(one.strip() for one in text.split(",") if one.strip())
    try:
        if not found:
            raise ValueError("it names none")  # noqa: TRY301
        for one in found:
            if one != "unix" and ip_network(one) and "%" in one:
                raise ValueError(f"{one} has a zone")  # noqa: TRY301
    except ValueError as error:
        raise _unusable(
            name,
            text,
            "addresses, networks and `unix` with commas between them, such as 127.0.0.1,10.0.0.0/8",
            f" ({error})",
        ) from None
    return found


def _path_prefix(name: str, text: str) -> str:
    prefix = text.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", prefix):
        raise _unusable(name, text, "a path such as /llama, of letters, digits, hyphens and dots")
    return prefix


def _password(name: str, text: str) -> str:
    if len(text.encode("utf-8", "surrogateescape")) > 1024:
        raise SetupError(f"{_PREFIX}{name.upper()} is too long: OpenSSL takes 1,024 bytes.")
    return text


def _unusable(name: str, text: str, allowed: str, why: str = "") -> SetupError:
    return SetupError(f"{_PREFIX}{name.upper()}={text} can't be used{why}: it must be {allowed}.")


_PARSERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "engine": _choice(*ENGINES),
    "upstream_url": _address,
    "upstream_key": _key,
    "dtype": _choice(*DTYPES),
    "backend": _choice(*BACKENDS),
    "cpu_instructions": _choice(*CPU_INSTRUCTIONS),
    "quantization": _choice(*QUANTIZATIONS),
    "packed_copy": _boolean,
    "speculative_tokens": _integer(0, 63),
    "context": _integer(16, 10_000_000),
    "threads": _integer(1, 1024),
    "max_num_seqs": _integer(1, 4096),
    "kv_memory": _bytes,
    "vllm": _program,
    "vllm_tensor_parallel": _integer(1, 64),
    "vllm_pipeline_parallel": _integer(1, 64),
    "vllm_gpu_share": _share(0.05, 0.99),
    "vllm_prefix_caching": _boolean,
    "vllm_prefill_tokens": _integer(64, 1 << 20),
    "vllm_speculative_tokens": _integer(0, 16),
    "vllm_kv_dtype": _choice(*KV_DTYPES),
    "vllm_eager": _boolean,
    "vllm_start_s": _integer(1, 86_400),
    "queue": _integer(0, 1_000_000),
    "deadline_s": _seconds,
    "max_body": _integer(1024, 1 << 30),
    "max_prompts": _integer(1, 4096),
    "api_keys": _keys,
    "named_keys": _path("/etc/llama/keys.yml"),
    "audit": _path("/var/log/llama/audit.jsonl"),
    "audit_fsync": _boolean,
    "audit_max_bytes": _bytes,
    "cors_origins": _origins,
    "trusted_proxies": _proxies,
    "path_prefix": _path_prefix,
    "tls_cert": _path("/etc/llama/tls.crt"),
    "tls_key": _path("/etc/llama/tls.key"),
    "tls_key_password": _password,
    "tls_client_ca": _path("/etc/llama/clients.crt"),
    "page": _boolean,
    "guards": _path("/etc/llama/guards.yml"),
    "log_prompts": _boolean,
    "collect": _choice(*COLLECTORS),
    "collect_rate": _rate,
    "collect_file": _path("/var/lib/llama/collected.jsonl"),
    "collect_max_bytes": _bytes,
    "traces": _choice(*TRACES),
    "batch_output": _choice("append_row", "summary_only"),
    "batch_gpus": _integer(1, 64),
}
