"""Run by vLLM's own python, which has nothing of this project: log-probabilities of one checkpoint after the other.

Reads a JSON object from standard input: `folders`, `prompts` (token ids), `dtype`, `max_tokens`. Writes one JSON
line for each folder: for each prompt the log-probability of every prompt token but the first (`prompt`), the greedy
ids after it (`ids`) and theirs (`greedy`); or `error`, the last line of why vLLM would not load it.
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


def main():
    asked = json.load(sys.stdin)
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes elsewhere
    for folder in asked["folders"]:
        try:
            line = {"prompts": logprobs(folder, asked["prompts"], asked["dtype"], asked["max_tokens"])}
        except Exception as error:  # every refusal of vLLM's is a result
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), file=told, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
