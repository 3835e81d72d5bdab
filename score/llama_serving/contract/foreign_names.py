"""Suggests the intended name of an unknown field: another API's name, another spelling, or a typo.

Names are compared without case and underscores, then looked up in a table of other APIs' names. Similar letters do not mean
a similar meaning (`stop_sequences` resembles `num_return_sequences`), so similarity is used for typos only.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from llama_serving.contract.request import LLAMACPP_NAMES, OLLAMA_NAMES, OPENAI_NAMES

SLIP: Final = 0.85
"""Least difflib ratio of a typo: one letter added, missing or replaced."""


def meant(unknown: str, accepted: Sequence[str]) -> str:
    """Return a sentence that suggests an accepted name; empty if there is no likely one."""
    plain = _plain(unknown)
    spelled = [name for name in accepted if _plain(name) == plain]
    if spelled:
        return _question(spelled[0])
    if plain in _NOTES:
        name, note = _NOTES[plain]
        name = _here(name, accepted)
        return note.format(name=name) if name else ""
    same = _here(_SAME.get(plain, ""), accepted)
    close = [same] if same else get_close_matches(unknown, accepted, n=1, cutoff=SLIP)
    return _question(close[0]) if close else ""


def _question(name: str) -> str:
    return f"Did you mean `{name}`?"


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _here(name: str, accepted: Collection[str]) -> str:
    """Return the accepted spelling of a name; empty if this protocol does not have it."""
    openai = OPENAI_NAMES.get(name, name)
    if "model" in accepted and openai in accepted:
        return openai
    return (
        next((one for one in (name, OLLAMA_NAMES.get(name), LLAMACPP_NAMES.get(name)) if one in accepted), "")
        or ""
    )


_OTHER_NAMES: Final[Mapping[str, str]] = {
    # length
    "max_new_tokens": "maxoutputtokens maxtokenstosample maxlengthgenerated maxgeneratedtokens maxtokencount maxnewtoken "
    "maxtokens maxnewtokens npredict ntokens numtokens tokenstogenerate outputlen outputtokens maxcompletiontokens",
    "min_new_tokens": "mintokenstogenerate minoutputtokens",
    # end of text
    "stop": "stopsequence stopwords stopstrings stopstring stoptokens endsequences stopon antiprompt eossequence",
    "ignore_eos": "ignoreeostoken baneostoken",
    # sampling
    "temperature": "temp randomness",
    "top_p": "p nucleus nucleussampling",
    "top_k": "k",
    "repetition_penalty": "repetitionpenalty repeatpenalty reppenalty repetition",
    "seed": "randomseed rngseed manualseed samplingseed",
    "do_sample": "sample",
    # number and content of results
    "num_return_sequences": "candidatecount numgenerations numsamples numcompletions numoutputs numresponses numresults "
    "batchcount",
    "logprobs": "topntokens numlogprobs returnlogprobs nprobs toplogprobs logprob",
    "return_full_text": "returnprompt includeprompt returnoriginal",
    "details": "returndetails detail",
    "stream": "streaming streamresponse",
    # parameters and prompts
    "params": "parameters",
    "parameters": "params",
    "input_string": "inputstrings text texts prompts query question inputtext instruction",
}
"""Our name: its plain names in other APIs."""
_SAME: Final = {plain: ours for ours, names in _OTHER_NAMES.items() for plain in names.split()}

_COUNTS_PROMPT: Final = "It would count the prompt too: send `{name}`, which counts what is generated."
_NOTES: Final[Mapping[str, tuple[str, str]]] = {
    "maxlength": ("max_new_tokens", _COUNTS_PROMPT),
    "maxlen": ("max_new_tokens", _COUNTS_PROMPT),
    "minlength": ("min_new_tokens", _COUNTS_PROMPT),
    "greedy": ("temperature", "Send `{name}: 0` for greedy text."),
    "decodingmethod": ("temperature", "Send `{name}: 0` for greedy text."),
}
"""Names that resemble ours but mean something else, or that are requested differently."""
