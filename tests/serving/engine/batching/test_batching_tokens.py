"""The batching engine's tokens are the reference's, in any batch."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.engine.batching.prefill_budget import PrefillBudget
from llama_serving.engine.pipeline import PipelineEngine
from llama_serving.sampling_params import SamplingParams
from tests.support import backends, llamas
from tests.support.batching_engines import GREEDY, Model, Started, alone, ids_of, prompt
from tests.support.llamas import SHAPES


class TestTheTokensAreTheReferences:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_greedy_ids_of_every_shape(self, shape: str, tmp_path: Path) -> None:
        llamas.write(SHAPES[shape], tmp_path)
        model = llamas.reference(tmp_path)
        with Started(Model(tmp_path)) as started:
            handles = [(p, started.engine.submit(p, replace(GREEDY, max_new_tokens=24)))
                       for p in (prompt(seed, count) for seed, count in enumerate((1, 2, 15, 16, 17, 33, 70, 200)))]  # fmt: skip
            for given_, handle in handles:
                assert ids_of(handle) == llamas.generate(model, given_, 24)

    def test_sampled_ids_and_logprobs_are_those_of_the_pipeline_engine(self, folder: Path) -> None:
        choices = [
            SamplingParams(
                max_new_tokens=16, temperature=t, top_p=p, top_k=k, repetition_penalty=r, logprobs=n, seed=s
            )
            for s, (t, p, k, r, n) in enumerate(
                [
                    (0.2, 0.9, 0, 1.0, None),
                    (1.0, 1.0, 0, 1.0, 2),
                    (1.0, 0.5, 0, 1.2, None),
                    (1.5, 1.0, 7, 1.0, 5),
                    (0, 1, 0, 1.4, 1),
                ]
            )
        ]
        other = PipelineEngine(*_tokenized(folder), dtype="float32")
        try:
            with Started(Model(folder)) as started:
                handles = [started.engine.submit(prompt(s), params) for s, params in enumerate(choices)]
                for seed, (params, handle) in enumerate(zip(choices, handles, strict=True)):
                    ours, theirs = list(handle), list(other.submit(prompt(seed), params))
                    assert [t.id for t in ours] == [t.id for t in theirs]
                    assert [t.logprob for t in ours] == pytest.approx([t.logprob for t in theirs], abs=1e-4)
        finally:
            other.close()

    @pytest.mark.parametrize("backend", ["portable bf16", *(f"native {name}" for name in backends.SETS)])
    def test_in_bf16_a_first_difference_is_a_near_tie(self, backend: str, tmp_path: Path) -> None:
        """Only where the two best logits of the reference lie closer than ε."""
        epsilon = 0.15
        llamas.write(SHAPES["heads of 64"], tmp_path, dtype=torch.bfloat16)
        model = llamas.reference(tmp_path, torch.bfloat16)
        with Started(Model(tmp_path, backend)) as started:
            texts = [
                (p, started.engine.submit(p, replace(GREEDY, max_new_tokens=20)))
                for p in map(prompt, range(16))
            ]
            for given_, handle in texts:
                ours, theirs = ids_of(handle), llamas.generate(model, given_, 20)
                differing = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
                if differing is not None:
                    with torch.inference_mode():
                        logits = model(torch.tensor([given_ + theirs[:differing]])).logits[0, -1].float()
                    assert logits[theirs[differing]] - logits[ours[differing]] < epsilon

    @settings(max_examples=4)
    @given(data=st.data())
    def test_whatever_the_schedule_each_sequence_gets_what_it_gets_alone(
        self, model: Model, data: st.DataObject
    ) -> None:
        """Random joins and cancels of 32 requests, tiny memory, chunks and prefixes, greedy and seeded."""
        rng = random.Random(data.draw(st.integers(0, 10_000)))
        chunk, blocks = data.draw(st.sampled_from((16, 48, 512))), data.draw(st.sampled_from((9, 14, 60)))
        share, seqs = data.draw(st.booleans()), data.draw(st.sampled_from((2, 8, 32)))
        slices = data.draw(st.booleans())
        beginning = prompt(99, 60)
        jobs = []
        for number in range(32):
            given_ = beginning[: rng.choice((0, 16, 40, 60))] + prompt(number, rng.randint(1, 30))
            params = SamplingParams(
                max_new_tokens=rng.randint(1, 128 - 90),  # (all fit into the fewest blocks)
                temperature=rng.choice((0, 0, 1.0)),
                seed=number,
                top_p=rng.choice((1, 0.9)),
            )
            jobs.append((given_, params))
        expected = alone(model, jobs)
        with (
            pytest.MonkeyPatch.context() as patch,
            Started(
                model, blocks=blocks, share_prefixes=share, largest_chunk=chunk, max_num_seqs=seqs
            ) as started,
        ):
            if slices:
                patch.setattr(PrefillBudget, "prefill_layers", lambda *_: 1)
            handles = []
            for number, (given_, params) in enumerate(jobs):
                handles.append(started.engine.submit(given_, params))
                if number % 6 == 5:
                    handles[rng.randrange(len(handles))].cancel()
                if rng.random() < 0.2:
                    next(iter(handles[rng.randrange(len(handles))]), None)
            for handle, whole in zip(handles, expected, strict=True):
                found = ids_of(handle)
                if handle.finish_reason == "length":
                    assert whole[len(whole) - len(found) :] == found, (
                        "its first tokens may have been looked at before"
                    )
                else:
                    assert handle.finish_reason == "cancelled"
            stats = started.engine.stats()
            assert (stats.running, stats.waiting, stats.kv_blocks_free) == (0, 0, started.blocks)

    def test_a_preempted_one_goes_on_as_if_nothing_had_been(self, model: Model) -> None:
        jobs = [(prompt(n, 20), SamplingParams(max_new_tokens=60, temperature=n % 2, seed=n)) for n in range(4)]
        expected = alone(model, jobs)
        with Started(model, blocks=14, max_num_seqs=4) as started:
            handles = [started.engine.submit(*job) for job in jobs]
            assert [ids_of(handle) for handle in handles] == expected
            assert started.engine.stats().num_preemptions > 0


def _tokenized(folder: Path) -> tuple[Path]:
    """The pipeline engine insists on a tokenizer beside the weights; ids alone go through it."""
    import shutil

    from llama_endpoints.nano import FOLDER

    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    return (folder,)
