"""Suggests the intended name of an unknown field: another API's name, another spelling, or a typo.

Names are compared without case and underscores, then looked up in a table of other APIs' names. Similar letters do not mean
a similar meaning (`stop_sequences` resembles `num_return_sequences`), so similarity is used for typos only.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from llama_serving.contract.request import OPENAI_NAMES

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
    return name if name in accepted else ""


_NEW: Final = "max_new_tokens"
_SAME: Final[Mapping[str, str]] = {
    # length
    **dict.fromkeys(
        (
            "maxoutputtokens",
            "maxtokenstosample",
            "maxlengthgenerated",
            "maxgeneratedtokens",
            "maxtokencount",
            "maxnewtoken",
            "npredict",
            "ntokens",
            "numtokens",
            "tokenstogenerate",
            "outputlen",
            "outputtokens",
            "maxcompletiontokens",
        ),
        _NEW,
    ),
    **dict.fromkeys(("mintokenstogenerate", "minoutputtokens"), "min_new_tokens"),
    # end of text
    **dict.fromkeys(
        (
            "stopsequence",
            "stopwords",
            "stopstrings",
            "stopstring",
            "stoptokens",
            "endsequences",
            "stopon",
            "antiprompt",
            "eossequence",
        ),
        "stop",
    ),
    **dict.fromkeys(("ignoreeostoken", "baneostoken"), "ignore_eos"),
    # sampling
    **dict.fromkeys(("temp", "randomness"), "temperature"),
    **dict.fromkeys(("p", "nucleus", "nucleussampling"), "top_p"),
    "k": "top_k",
    **dict.fromkeys(("repeatpenalty", "reppenalty", "repetition"), "repetition_penalty"),
    **dict.fromkeys(("randomseed", "rngseed", "manualseed", "samplingseed"), "seed"),
    "sample": "do_sample",
    # number and content of results
    **dict.fromkeys(
        (
            "candidatecount",
            "numgenerations",
            "numsamples",
            "numcompletions",
            "numoutputs",
            "numresponses",
            "numresults",
            "batchcount",
        ),
        "num_return_sequences",
    ),
    **dict.fromkeys(
        ("topntokens", "numlogprobs", "returnlogprobs", "nprobs", "toplogprobs", "logprob"), "logprobs"
    ),
    **dict.fromkeys(("returnprompt", "includeprompt", "returnoriginal"), "return_full_text"),
    **dict.fromkeys(("returndetails", "detail"), "details"),
    **dict.fromkeys(("streaming", "streamresponse"), "stream"),
    # parameters and prompts
    "parameters": "params",
    "params": "parameters",
    **dict.fromkeys(
        ("inputstrings", "text", "texts", "prompts", "query", "question", "inputtext", "instruction"),
        "input_string",
    ),
}
"""Plain name in another API: our name."""

_NOTES: Final[Mapping[str, tuple[str, str]]] = {
    "maxlength": (_NEW, "It would count the prompt too: send `{name}`, which counts what is generated."),
    "maxlen": (_NEW, "It would count the prompt too: send `{name}`, which counts what is generated."),
    "minlength": (
        "min_new_tokens",
        "It would count the prompt too: send `{name}`, which counts what is generated.",
    ),
    "greedy": ("temperature", "Send `{name}: 0` for greedy text."),
    "decodingmethod": ("temperature", "Send `{name}: 0` for greedy text."),
}
"""Names that resemble ours but mean something else, or that are requested differently."""
