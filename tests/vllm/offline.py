"""Run by vLLM's own python, which has nothing of this project: one checkpoint after the other, in one process.

Reads a JSON object from standard input: `folders`, `plain` (those with the weights that they stand for), `prompts`
(token ids), `dtype`, `max_tokens`. Writes one JSON line for each folder:

    prompts   for each the log-probability of every prompt token but the first (`prompt`), the greedy ids after it
              (`ids`) and theirs (`greedy`); or `error`, why vLLM would not load it
    decoded   the largest difference between a weight as vLLM's libraries decode it and as `plain` has it
"""

import gc
import json
import os
import sys

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # one process for all checkpoints, in place of one each
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    VLLM_LOGGING_LEVEL="ERROR",
)
os.environ.setdefault("OMP_NUM_THREADS", "2")


def logprobs(folder, prompts, dtype, max_tokens):
    from vllm import LLM, SamplingParams

    model = LLM(
        folder, dtype=dtype, enforce_eager=True, max_model_len=256, max_num_seqs=4, load_format="safetensors",
        skip_tokenizer_init=True, enable_prefix_caching=False, generation_config="vllm",
    )  # fmt: skip
    params = SamplingParams(
        temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=0, prompt_logprobs=0, detokenize=False
    )
    answers = model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    told = []
    for answer, prompt in zip(answers, prompts, strict=True):
        out = answer.outputs[0]
        told.append(
            {
                "prompt": [at[i].logprob for at, i in zip(answer.prompt_logprobs[1:], prompt[1:], strict=True)],
                "ids": list(out.token_ids),
                "greedy": [at[i].logprob for at, i in zip(out.logprobs, out.token_ids, strict=True)],
            }
        )
    return told


def decoded(folder, plain):
    from safetensors.torch import load_file

    with open(f"{folder}/config.json") as file:
        config = json.load(file)["quantization_config"]
    tensors, expected = load_file(f"{folder}/model.safetensors"), load_file(f"{plain}/model.safetensors")
    worst = 0.0
    for name in (name for name in expected if name.endswith("_proj.weight")):
        module = name.removesuffix("weight")
        parts = {key.removeprefix(module): each for key, each in tensors.items() if key.startswith(module)}
        weight = decode_gptq(parts, config) if "g_idx" in parts else decode_compressed(parts, config)
        worst = max(worst, (weight.float() - expected[name]).abs().max().item())
    return worst


def decode_gptq(parts, config):
    from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
    from vllm.scalar_type import scalar_types

    kind = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}[config["bits"]]
    values = unpack_quantized_values_into_int32(parts["qweight"], kind, 0) - kind.bias  # (in, out)
    return (values * parts["scales"].float()[parts["g_idx"].long()]).T


def decode_compressed(parts, config):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    if scheme.weights.strategy == "block":  # (the compressor's own way back forgets the blocks)
        return dequantize(parts["weight"], parts["weight_scale"], args=scheme.weights)
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    wide = {key: each.float() if each.dtype.itemsize == 2 else each for key, each in parts.items()}
    return compressor.decompress(wide, scheme)["weight"]


def main():
    asked = json.load(sys.stdin)
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes elsewhere
    for folder, plain in zip(asked["folders"], asked["plain"], strict=True):
        try:
            line = {"prompts": logprobs(folder, asked["prompts"], asked["dtype"], asked["max_tokens"])}
        except Exception as error:  # every refusal of vLLM's is a result
            line = {"error": f"{type(error).__name__}: {error}"}
        if (
            "awq" not in open(f"{folder}/config.json").read()
        ):  # (AutoAWQ's order: vLLM's libraries decode it in place)
            line["decoded"] = decoded(folder, plain)
        print(json.dumps(line), file=told, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
