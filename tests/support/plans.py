"""Models, machines and requests of plans."""

from typing import Final

from hypothesis import strategies as st

from llama_endpoints.planning.planner import Plan
from llama_endpoints.planning.sizing import Fit, Precision
from llama_endpoints.planning.skus import SKUS
from llama_serving.catalog import CATALOG, NANO

LLAMA_13B: Final = CATALOG["meta-llama/Llama-2-13b-hf"]
CODE_7B: Final = CATALOG["codellama/CodeLlama-7b-hf"]
CODE_34B: Final = CATALOG["codellama/CodeLlama-34b-hf"]
CODE_70B: Final = CATALOG["codellama/CodeLlama-70b-hf"]
A100: Final = SKUS["Standard_NC24ads_A100_v4"]
H100: Final = SKUS["Standard_NC40ads_H100_v5"]
variants = st.sampled_from([row for row in CATALOG.values() if row is not NANO])
precisions = st.sampled_from(list(Precision))
contexts = st.integers(16, 4096)
numbers = st.integers(1, 64)


def chosen(found: Plan) -> Fit:
    assert found.chosen is not None
    return found.chosen
