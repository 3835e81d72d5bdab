"""Which files a checkpoint consists of."""

from typing import Final

from llama_endpoints.checkpoints.quantization import OLD_FILES
from llama_serving.llama_config import FILE

PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
SMALL_FILES: Final = (FILE, "tokenizer.json")
OPTIONAL_FILES: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    *OLD_FILES,
    "LICENSE*",
    "USE_POLICY*",
    "NOTICE*",
)
