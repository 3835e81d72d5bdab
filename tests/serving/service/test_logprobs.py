"""Log-probabilities of an answer's tokens."""

import json
import shutil
from pathlib import Path

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import CATALOG, NANO
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.conftest import shared_tokenizer
from tests.support.service_requests import Scripted, greedy, only, request, scripted


def test_logprobs_cover_the_text(service: Service) -> None:
    whole = only(service, greedy(logprobs=2, ignore_eos=True, max_new_tokens=24))
    assert whole.logprobs is not None
    assert b"".join(token.drawn.raw for token in whole.logprobs).decode() == whole.text
    assert all(len(token.top) == 2 for token in whole.logprobs)
    # Greedy: each token is the best of its alternatives.
    assert all(token.top[0] == token.drawn for token in whole.logprobs)


def test_logprobs_end_where_a_stop_string_cuts_the_text(service: Service) -> None:
    # Sampled by a fixed seed: what is greedy may repeat itself, and then all cuts are at the start.
    sampled = {"temperature": 1.0, "seed": 5, "max_new_tokens": 24, "logprobs": 0, "ignore_eos": True}
    whole = only(service, request(**sampled))
    assert whole.logprobs is not None
    borders = [sum(len(token.drawn.text) for token in whole.logprobs[:n]) for n in range(25)]
    cuts = set()
    for length in range(1, 20, 2):
        stop = whole.text[length : length + 3]
        cut = only(service, request(**sampled, stop=(stop,)))
        assert cut.logprobs is not None
        assert cut.text == whole.text[: whole.text.index(stop)]
        in_the_text = sum(border < len(cut.text) for border in borders)
        assert cut.logprobs == whole.logprobs[:in_the_text]
        cuts.add(in_the_text)
    assert len(cuts) > 2


def test_a_stop_string_at_the_very_start_leaves_no_logprobs(service: Service) -> None:
    first = only(service, greedy()).text[0]
    cut = only(service, greedy(logprobs=1, stop=(first,)))
    assert (cut.text, cut.logprobs, cut.finish_reason) == ("", (), "stop")


def test_logprobs_are_absent_unless_asked_for(service: Service) -> None:
    assert only(service, greedy()).logprobs is None


def test_logprobs_are_of_the_answers_tokens_where_bytes_make_no_character(nano_tokenizer: Tokenizer) -> None:
    """One byte that is no character becomes U+FFFD, which has three: counting bytes would let `c` in."""
    lone_byte = 3 + 0xFF
    ids = (lone_byte, *nano_tokenizer.encode_continuation("ab"), *nano_tokenizer.encode_continuation("c"))
    answer = only(scripted(NANO, nano_tokenizer, Scripted(*ids)), greedy(stop=("c",), logprobs=0))
    assert answer.text == "\ufffdab"
    assert answer.logprobs is not None
    assert "".join(token.drawn.text for token in answer.logprobs) == "\ufffdab"


def test_a_special_id_is_no_text_whatever_the_tokenizers_file_says() -> None:
    """The 70B's <step>: the tokenizer's file may not list it among the added tokens."""
    variant = CATALOG["codellama/CodeLlama-70b-Instruct-hf"]
    tokenizer = Tokenizer.from_folder(shared_tokenizer("codellama-7b"), variant.special_ids)
    engine = Scripted(*tokenizer.encode("done"), 32015)
    assert only(scripted(variant, tokenizer, engine), greedy()).text == " done"


def test_the_rows_special_ids_are_no_text_in_a_started_service(tmp_path: Path) -> None:
    """The checkpoint's own file says of none of its tokens that it is special."""
    for file in NANO_FOLDER.glob("*.*"):
        shutil.copy(file, tmp_path)
    layout = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**layout, "added_tokens": []}), encoding="utf-8")
    started = Service.start(ModelFiles(tmp_path, NANO), Settings())
    try:
        assert {started.tokenizer.piece(special) for special in NANO.special_ids} == {b""}
    finally:
        started.close()
