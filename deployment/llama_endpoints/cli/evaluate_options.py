"""Options that all tasks of `evaluate` share, and what they start."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.evaluate_scoring import (
    RESUME,
    check_limits,
    code_running,
    limits_of,
    measured,
    progress_bar,
    resumable,
    scoring_options,
)
from llama_endpoints.cli.options import FiniteRange, options, setting_options
from llama_endpoints.evaluation.targets.endpoint_key import KEY, endpoint_key
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.evaluation.run import Evaluation
    from llama_endpoints.evaluation.targets.target import Model, Target
    from llama_endpoints.evaluation.tasks.task import Sampling

_KS: Final = (1, 10, 100)
_DRAWN: Final = 0.8
"""Temperature for several samples a problem (arXiv 2308.12950, section 3.1)."""


_TARGET: Final = options(
    click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the evaluation."),
    click.option("--model", help="Folder of a packaged model, an azureml: URI, or nano: loaded here."),
    click.option("--url", help=f"Address of a running endpoint. Its key comes from {KEY}."),
    click.option("--protocol", type=click.Choice(["score", "completions", "chat"]), default="score", help="Route of --url."),
    click.option("--deployment", help="Deployment of an Azure ML endpoint. Default: as its traffic rules say."),
    click.option("--model-name", default="default", help="`model` in requests to /v1 routes."),
    click.option("--concurrency", type=click.IntRange(1, 1024), help="Sequences at a time. Default: 64 with --model, 4 with --url."),
    click.option("--records", type=click.Path(dir_okay=False, path_type=Path),
                 help="Output of a batch job that scored requests.jsonl, instead of generating."),
    click.option("--requests-only", is_flag=True, help="Write requests.jsonl for a batch job, and end."),
    click.option("--variant", help="The model's name in the catalog, for --url and --records."),
    click.option("--prompt", type=click.Choice(["auto", "completion", "dialog"]), default="auto",
                 help="How the model is asked. auto: a dialog for Instruct models."),
    click.option("--overwrite", is_flag=True, help="Replace another evaluation in --output."),
)  # fmt: skip


def _sampling(
    max_new_tokens: int, temperature: float | None, top_p: float
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return options(
        click.option("--samples", type=click.IntRange(1, 1000), default=1, help="Samples for each problem."),
        click.option(
            "--temperature",
            type=FiniteRange(0, 2),
            default=temperature,
            help="0 is greedy." if temperature else "Default: 0 (greedy) for one sample, 0.8 for several.",
        ),
        click.option(
            "--top-p", type=FiniteRange(0, 1, min_open=True), default=top_p, help="Of nucleus sampling."
        ),
        click.option(
            "--max-new-tokens", type=click.IntRange(1), default=max_new_tokens, help="Of each sample."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            help="Of the first sample; each further one has the next.",
        ),
        click.option("--limit", type=click.IntRange(1), help="Take the first problems alone."),
    )


@dataclass(frozen=True, slots=True)
class Given:
    """What was given on the command line."""

    flags: Mapping[str, Any]
    settings: Mapping[str, str | None]

    def run(self, task: str, task_options: Mapping[str, Any], *, infill_order: str | None = None) -> None:
        """Evaluate, and print the metrics."""
        from llama_endpoints.evaluation.folder import EvaluationFolder
        from llama_endpoints.evaluation.run import Evaluation
        from llama_endpoints.evaluation.targets.protocols import Protocol
        from llama_endpoints.evaluation.tasks import registry

        flags = self.flags
        self._check()
        model, target = self._target(infill_order)
        sampling = self._sampling()
        named = {name: str(value) if isinstance(value, Path) else value for name, value in task_options.items()}
        order = {"order": model.infill_order} if task == "infilling" else {}
        if order and flags["model"] and model.infill_order is None:
            raise SetupError(f"{model.name} has no infilling. Choose another --model, or another task.")
        ks = [k for k in _KS if k <= sampling.samples]
        running = code_running(flags)
        made = registry.create(task, {**named, **order, "ks": ks}, running)
        check_limits(made, limits_of(flags), allowed=running.allowed)
        if made.runs_code and running.allowed:
            running.require()  # before hours of generation
        style = model.style if flags["prompt"] == "auto" else type(model.style)(flags["prompt"])
        folder = EvaluationFolder(flags["output"])
        if flags["url"]:
            Protocol(flags["protocol"]).check(style, infilling=task == "infilling")
        evaluation = Evaluation(folder, made, model, style, sampling, flags["limit"], flags["overwrite"])
        self._samples(evaluation, target)
        if made.runs_code and not running.allowed:
            click.echo(
                f"Samples: {folder.samples}. They are code: to run and score them, `llama-endpoints evaluate score {folder.path} "
                "--run-generated-code`.", err=True,
            )  # fmt: skip
            return
        measured(folder, made, flags)

    def _check(self) -> None:
        ways = [name for name in ("model", "url", "records", "requests_only") if self.flags[name]]
        if len(ways) != 1 and ways not in (["model", "requests_only"], ["model", "records"]):
            raise click.UsageError(
                "Give one of --model, --url, --records and --requests-only; --model also beside the last two."
            )
        if self.flags["url"] and any(self.settings.values()):
            raise click.UsageError(
                "--context, --dtype, --engine and --threads go with --model: a running server has its own."
            )

    def _samples(self, evaluation: "Evaluation", target: "Target | None") -> None:
        from llama_endpoints.evaluation.targets.target import Interrupted

        flags = self.flags
        if flags["records"]:
            evaluation.take(flags["records"])
            return
        if flags["requests_only"]:
            evaluation.open({"kind": "batch"}, evaluation.problems())
            click.echo(
                f"Requests: {evaluation.folder.requests}. Score them with a batch job, then give its output as --records.",
                err=True,
            )
            raise SystemExit(0)
        assert target is not None  # noqa: S101  (the options have been checked)
        total = len(evaluation.problems()) * evaluation.sampling.samples
        try:
            with resumable(), progress_bar(total, "samples") as bar:
                evaluation.generate(target, lambda counts: bar.update(counts.rows - bar.n))
        except Interrupted as end:
            click.echo(f"{end}. {RESUME}", err=True)
            raise SystemExit(end.exit_code) from None

    def _sampling(self) -> "Sampling":
        from llama_endpoints.evaluation.tasks.task import Sampling

        flags, samples = self.flags, self.flags["samples"]
        temperature = flags["temperature"]
        if temperature is None:
            temperature = 0.0 if samples == 1 else _DRAWN
        if samples > 1 and temperature == 0:
            raise click.UsageError(
                "--samples above 1 needs a --temperature above 0: greedy samples are all the same."
            )
        return Sampling(samples, temperature, flags["top_p"], flags["max_new_tokens"], flags["seed"])

    def _target(self, infill_order: str | None) -> "tuple[Model, Target | None]":
        if self.flags["model"]:
            return self._model_target(infill_order)
        if infill_order is not None:
            raise click.UsageError("--infill-order goes with --model: a running server has its own.")
        from llama_endpoints.evaluation.targets.endpoint_target import EndpointTarget
        from llama_endpoints.evaluation.targets.protocols import Protocol

        flags = self.flags
        model = _model_elsewhere(flags)
        if not flags["url"]:
            return model, None
        protocol = Protocol(flags["protocol"])
        target = EndpointTarget(
            address(flags["url"]),
            protocol,
            flags["model_name"],
            flags["deployment"],
            flags["concurrency"] or 4,
            endpoint_key(),
        )
        return model, target

    def _model_target(self, infill_order: str | None) -> "tuple[Model, Target | None]":
        import logging

        from llama_endpoints.checkpoints.variants import infilling_in
        from llama_endpoints.cli.options import settings_of
        from llama_endpoints.download.resolve import model_files
        from llama_endpoints.evaluation.targets.model_target import ModelTarget
        from llama_serving.model_files import ModelFiles

        flags = dict(self.settings)
        if self.flags["concurrency"] or not os.environ.get("LLAMA_MAX_NUM_SEQS", "").strip():
            flags["max_num_seqs"] = str(self.flags["concurrency"] or 64)
        files = model_files(self.flags["model"])
        files = ModelFiles(files.checkpoint, infilling_in(files.variant, infill_order))
        logging.getLogger("transformers").setLevel(logging.ERROR)
        target = ModelTarget(self.flags["model"], files, settings_of(flags))
        return target.model, target


def task_options(
    *, max_new_tokens: int = 512, temperature: float | None = None, top_p: float = 0.95
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add all shared options to a task's command, which gets them as one argument, `given`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        import inspect

        own = set(inspect.signature(command).parameters)

        @wraps(command)
        def with_given(**flags: Any) -> None:
            settings = {name: flags.pop(name) for name in ("context", "dtype", "engine", "threads")}
            mine = {name: flags.pop(name) for name in own & flags.keys()}
            command(**mine, given=Given(flags, settings))

        return options(
            _TARGET, _sampling(max_new_tokens, temperature, top_p), scoring_options, setting_options
        )(with_given)

    return decorate


def _model_elsewhere(flags: Mapping[str, Any]) -> "Model":
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_endpoints.evaluation.targets.target import Model
    from llama_endpoints.evaluation.tasks.task import PromptStyle

    variant = variant_of(flags["variant"], "") if flags["variant"] else None
    dialog = variant is not None and variant.dialog is not None
    style = PromptStyle.DIALOG if dialog or flags["protocol"] == "chat" else PromptStyle.COMPLETION
    order = str(variant.infill.value.order) if variant and variant.infill.value else None
    return Model(flags["model_name"], variant.name if variant else None, style, order)


def address(url: str) -> str:
    """Return --url, if it is an address.

    Raises:
        SetupError: it is none, or holds a user.
    """
    from llama_endpoints.connection.address import checked

    checked(url, name="--url")  # (a path such as /v1 stays: the protocol's route is told from it)
    return url
