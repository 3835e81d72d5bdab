"""What editors' plugins send, by their public sources: every field, written anew.

llama.vim's `autoload/llama.vim`, llama.vscode's `src/llama-server.ts`, Continue's `core/llm/llms/{Ollama,LlamaCpp}.ts`, twinny's
`src/extension/completion/request-body.ts`, Zed's `crates/ollama/src/ollama.rs` and `crates/edit_prediction/src/ollama.rs`,
Open WebUI's `backend/open_webui/utils/payload.py`. JetBrains' assistant has no public source: its entry is what Ollama's API
documents, which is what it can send.
"""

from collections.abc import Mapping
from typing import Any, Final

PREFIX: Final = "import os\n\n\ndef f(x):\n"
MIDDLE: Final = "    y ="
SUFFIX: Final = "\n    return y\n"
MARKED: Final = f"<PRE> {PREFIX}{MIDDLE} <SUF>{SUFFIX} <MID>"
CHUNK: Final = {"text": "def g(x):\n    return x + 1\n", "time": [3, 141592], "filename": "g.py"}
_TIMINGS: Final = [
    f"timings/{kind}_{what}"
    for kind in ("prompt", "predicted")
    for what in ("n", "ms", "per_token_ms", "per_second")
]
_VIM: Final[dict[str, Any]] = {
    "input_prefix": PREFIX, "input_suffix": SUFFIX, "input_extra": [CHUNK], "prompt": MIDDLE, "n_predict": 24, "stop": [],
    "n_indent": 4, "top_k": 40, "top_p": 0.90, "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True,
    "t_max_prompt_ms": 500, "t_max_predict_ms": 60_000, "response_fields": ["content", *_TIMINGS, "truncated", "tokens_cached"],
}  # fmt: skip
_VSCODE: Final[dict[str, Any]] = {
    "input_prefix": PREFIX, "input_suffix": SUFFIX, "input_extra": [{**CHUNK, "time": 1_700_000_000_000}], "prompt": MIDDLE,
    "n_predict": 24, "top_k": 40, "top_p": 0.99, "stream": False, "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True, "n_indent": 4, "t_max_prompt_ms": 500, "t_max_predict_ms": 60_000,
}  # fmt: skip
_CONTINUE: Final[dict[str, Any]] = {
    "temperature": 0.01, "top_p": 0.9, "top_k": 40, "num_predict": 24, "stop": ["<PRE>", "<SUF>", "<MID>", "\n\n\n"],
    "num_ctx": 8096, "mirostat": 0, "num_thread": 4, "use_mmap": True, "min_p": 0.05,
}  # fmt: skip
_WEBUI: Final[dict[str, Any]] = {
    "temperature": 0.8, "top_p": 0.9, "seed": 42, "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0, "num_ctx": 2048,
    "num_batch": 512, "num_keep": 24, "num_predict": 24, "repeat_last_n": 64, "top_k": 40, "min_p": 0.0, "typical_p": 1.0,
    "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "penalize_newline": False, "stop": ["</s>"],
    "numa": False, "num_gpu": 0, "main_gpu": 0, "low_vram": False, "vocab_only": False, "use_mmap": True, "use_mlock": False,
    "num_thread": 2,
}  # fmt: skip
_USER: Final = {"role": "user", "content": "Reverse a list"}
_DIALOG: Final = [{"role": "system", "content": "Answer briefly."}, _USER]

REQUESTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "llama.vim": ("/infill", _VIM),
    "llama.vim, its extra context": (
        "/infill",
        {
            "input_prefix": "", "input_suffix": "", "input_extra": [CHUNK], "prompt": "", "n_predict": 0, "temperature": 0.0,
            "stream": False, "samplers": [], "cache_prompt": True, "t_max_prompt_ms": 1, "t_max_predict_ms": 1,
            "response_fields": [""],
        },
    ),
    "llama.vscode": ("/infill", _VSCODE),
    "llama.vscode, its extra context": (
        "/infill",
        {
            "input_prefix": "", "input_suffix": "", "input_extra": [CHUNK], "prompt": "", "n_predict": 0, "samplers": [],
            "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1,
        },
    ),
    "llama.vscode, earlier": (
        "/infill",
        {
            "input_prefix": "", "input_suffix": "", "input_extra": [], "prompt": "", "n_predict": 1, "top_k": 40,
            "top_p": 0.99, "stream": False, "samplers": ["temperature"], "cache_prompt": True, "t_max_prompt_ms": 1,
            "t_max_predict_ms": 1,
        },
    ),
    "llama.vscode, its edits": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "system", "content": "You are an expert coder."}, _USER], "stream": False, "cache_prompt": True,
            "samplers": "edkypmxt", "temperature": 0.8, "dynatemp_range": 0, "dynatemp_exponent": 1, "top_k": 40, "top_p": 0.95,
            "min_p": 0.05, "typical_p": 1, "xtc_probability": 0, "xtc_threshold": 0.1, "repeat_last_n": 64, "repeat_penalty": 1,
            "presence_penalty": 0, "frequency_penalty": 0, "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2,
            "dry_penalty_last_n": -1, "max_tokens": -1, "timings_per_token": False,
            "stop": ["\n"],  # (not theirs: nano would fill its context)
        },
    ),
    "Continue, Ollama": (
        "/api/generate",
        {"model": "codellama:7b", "prompt": PREFIX + MIDDLE, "suffix": SUFFIX, "raw": True, "options": _CONTINUE,
         "keep_alive": 1800, "stream": True},
    ),
    "Continue, Ollama with its own marks": (
        "/api/generate",
        {"model": "codellama:7b-code", "prompt": MARKED, "raw": True, "options": _CONTINUE, "keep_alive": 1800, "stream": True},
    ),
    "Continue, Ollama's chat": (
        "/api/chat",
        {"model": "codellama:7b", "messages": _DIALOG, "options": _CONTINUE, "keep_alive": 1800, "stream": True},
    ),
    "Continue, Ollama's model": ("/api/show", {"name": "codellama:7b"}),
    "Continue, llama.cpp": (
        "/completion",
        {"prompt": MARKED, "stream": True, "n_predict": 24, "frequency_penalty": 0, "presence_penalty": 0, "min_p": 0.05,
         "mirostat": 0, "stop": ["\n\n\n"], "top_k": 40, "top_p": 0.9, "temperature": 0.01},
    ),
    "twinny, Ollama": (
        "/api/generate",
        {"model": "codellama:7b-code", "prompt": MARKED, "stream": True, "keep_alive": "5m",
         "options": {"temperature": 0.2, "num_predict": 24, "stop": ["<PRE>", "<SUF>", "<MID>", "\n\n"]}},
    ),
    "twinny, llama.cpp": (
        "/completion",
        {"prompt": MARKED, "stream": True, "temperature": 0.2, "max_tokens": 24, "stop": ["\n\n"]},
    ),
    "twinny, another": (
        "/completion",
        {"prompt": MARKED, "stream": True, "temperature": 0.2, "n_predict": 24, "stop": ["\n\n"]},
    ),
    "Zed, its predictions": (
        "/api/generate",
        {"model": "codellama:7b-code", "prompt": MARKED, "raw": True, "stream": False,
         "options": {"num_predict": 24, "temperature": 0.2, "stop": [
             "<|endoftext|>", "<|file_separator|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
             "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<PRE>", "<SUF>", "<MID>", "[PREFIX]", "[SUFFIX]"]}},
    ),
    "Zed, its chat": (
        "/api/chat",
        {
            "model": "codellama:latest", "stream": True, "keep_alive": -1, "tools": [], "think": None,
            "messages": [
                _USER, {"role": "assistant", "content": "a[::-1]", "tool_calls": None, "thinking": None},
                {"role": "user", "content": "Write a test of it"},
            ],
            "options": {"num_ctx": 16384, "num_predict": None, "stop": ["<|im_end|>"], "temperature": 1.0, "top_p": None},
        },
    ),
    "Zed, the model": ("/api/show", {"model": "codellama:latest"}),
    "Open WebUI, its chat": (
        "/api/chat",
        {"model": "nano:latest", "messages": _DIALOG, "stream": True, "options": _WEBUI, "keep_alive": "5m", "think": False,
         "metadata": {"chat_id": "1"}},
    ),
    "Open WebUI, a completion": (
        "/api/generate",
        {"model": "nano:latest", "prompt": "Reverse a list", "suffix": "", "options": _WEBUI, "system": "", "stream": True,
         "raw": False, "keep_alive": 300},
    ),
    "Open WebUI, out of memory": ("/api/generate", {"model": "nano:latest", "prompt": "", "keep_alive": 0}),
    "JetBrains": (
        "/api/chat",
        {"model": "codellama:latest", "messages": _DIALOG, "stream": True, "keep_alive": "5m",
         "options": {"num_ctx": 16384, "num_predict": 24, "temperature": 0.2, "top_p": 0.9, "top_k": 40, "seed": 1}},
    ),
}  # fmt: skip
"""The client, the path, and the body."""
