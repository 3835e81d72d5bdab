"""A batch job on Spark: JSONL files to one record per row, in order, with the packaged model as an MLflow UDF.

    spark-submit --conf spark.task.cpus=N deployment/llama_endpoints/spark/job.py --model MODEL --input FOLDER --output FOLDER

N is the number of cores of an executor (`spark.executor.cores`): with one task at a time, one Python worker per executor holds the
model. Every executor must find all paths. For a large model, use a package with a reference
(`llama-endpoints package --weights reference`): Spark sends the packaged files to every executor.
"""

import os
import re
import shutil
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

READ: Final = "number int, file string, line long, row binary, record string"
"""Per line: the number of its file, and its bytes, or a record that says why it cannot be read."""
ROWS_AT_ONCE: Final = 256
WAVES: Final = 4
"""Partitions per task slot: fewer make a failed task costlier and the end more uneven."""
PARTITION: Final = 4 << 20
"""The most input bytes of a partition; executors may still join after the job is planned."""


def main() -> None:
    """Parse the command line and run the job."""
    parser = ArgumentParser(description=__doc__, prog="job.py")
    parser.add_argument("--model", required=True, help="folder of a packaged model, or an azureml: URI")
    parser.add_argument(
        "--input", required=True, type=Path, help="a JSONL file (optionally .gz), or a folder of such files"
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="folder that Spark creates, with part-00000... in order"
    )
    parser.add_argument(
        "--parameters", default="{}", help="JSON object of parameters for rows without their own"
    )
    parser.add_argument(
        "--partitions",
        type=int,
        help="number of tasks; by default four per task slot, and more for large files",
    )
    parser.add_argument("--master", help="only without spark-submit; for example local-cluster[2,1,2048]")
    given = parser.parse_args()
    model = _model(given.model)
    spark = _session(given.master)
    try:
        _check(spark)
        records = score(
            spark, model, given.input, parameters=_params(given.parameters), partitions=given.partitions
        )
        records.write.text(str(given.output.absolute()))
    finally:
        spark.stop()


def _model(name: str) -> Path:
    """Return the model's folder. Download it before Spark allocates machines for the job."""
    from llama_endpoints.download.azureml_cache import resolve
    from llama_serving.errors import SetupError

    try:
        return resolve(name)
    except SetupError as error:
        raise SystemExit(f"--model: {error}") from None


def score(
    spark: "SparkSession",
    model: Path,
    given: Path,
    *,
    parameters: dict[str, Any],
    partitions: int | None = None,
) -> "DataFrame":
    """Return the records of a file or folder: one column `value` of JSON, with partitions in row order.

    Args:
        spark: the session.
        model: folder of a packaged model, on a path that every executor has.
        given: JSONL files, on such a path too.
        parameters: parameters for rows without their own, limited to MLflow's params schema of the model.
        partitions: number of partitions; None is `WAVES` per task slot, and at least one per `PARTITION` bytes.
    """
    import mlflow.pyfunc
    from pyspark.sql import functions as f

    files = _files(given)
    code = str(model.absolute() / "code")
    named = spark.createDataFrame([(number, str(path), name) for number, (path, name) in enumerate(files)],
                                  "number int, path string, name string")  # fmt: skip
    lines = named.repartition(len(files), "number").mapInPandas(partial(read, code=code), READ)
    # Sorted before the model runs: Spark computes the input of a sort twice.
    ordered = lines.repartitionByRange(
        partitions or _partitions(spark, files), "number", "line"
    ).sortWithinPartitions("number", "line")
    answer = mlflow.pyfunc.spark_udf(
        spark, str(model), result_type="string", env_manager="local", params=parameters
    )
    row = f.struct("file", "line", "row")
    return ordered.select(f.coalesce("record", answer(row)).alias("value"))


def read(tables: "Iterator[pd.DataFrame]", code: str) -> "Iterator[pd.DataFrame]":
    """Read lines of files on an executor, with the model's own code, so that lines mean the same as in our command.

    Args:
        tables: files: number, path, name.
        code: the model's folder `code`.
    """
    import pandas as pd

    sys.path.insert(0, code)
    from llama_serving.batch.reader import raw_lines
    from llama_serving.contract.rows import dumps, error_record
    from llama_serving.errors import ServingError
    from llama_serving.settings import Settings

    max_bytes = Settings.from_environment().max_body
    columns = [name.split()[0] for name in READ.split(", ")]
    for table in tables:
        for number, path, name in table.itertuples(index=False):
            rows: list[tuple[Any, ...]] = []
            for place, raw in raw_lines(Path(path), name, max_bytes=max_bytes):
                bad = dumps(error_record(place, None, raw)) if isinstance(raw, ServingError) else None
                rows.append((number, name, place.line, None if bad else raw, bad))
                if len(rows) == ROWS_AT_ONCE:
                    yield pd.DataFrame(rows, columns=columns)
                    rows = []
            yield pd.DataFrame(rows, columns=columns)


def _partitions(spark: "SparkSession", files: "Sequence[tuple[Path, str]]") -> int:
    tasks = max(1, int(spark.sparkContext.defaultParallelism) // _number(spark, "spark.task.cpus"))
    return max(WAVES * tasks, sum(path.stat().st_size for path, _ in files) // PARTITION)


def _files(given: Path) -> list[tuple[Path, str]]:
    """Return each file with the name its records get, as named and ordered by `llama-endpoints batch`."""
    from llama_serving.batch import inputs, reader

    found = inputs.find([str(given)])
    tables = [source.name for source in found if reader.is_csv(source.path)]
    if tables:
        raise SystemExit(
            f"{tables[0]} is CSV, but this job reads JSONL. Convert it with spark.read.csv and to_json(struct('*'))."
        )
    return [(source.path, source.name) for source in found]


def _params(text: str) -> dict[str, Any]:
    """Return the parameters under the names of the model's params schema; MLflow drops all others."""
    from llama_endpoints.batch.row_defaults import defaults_of

    given = {name: value for name, value in asdict(defaults_of(text)[0]).items() if value is not None}
    if len(given.get("stop", ())) > 1:
        raise SystemExit(
            "--parameters: MLflow takes one `stop` for all rows. Put several into the rows' own parameters."
        )
    return {**given, "stop": given["stop"][0]} if "stop" in given else given


def _session(master: str | None) -> "SparkSession":
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise SystemExit(
            "Spark needs Java: install version 17 or 21, such as Debian's openjdk-17-jre-headless."
        )
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("llama-endpoints")
    if master is None:
        return builder.getOrCreate()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return builder.master(master).getOrCreate()


def _check(spark: "SparkSession") -> None:
    """Warn if an executor would hold the model several times."""
    cpus, cores = _number(spark, "spark.task.cpus"), spark.conf.get("spark.executor.cores", None)
    master = spark.sparkContext.master
    if given := re.fullmatch(r"local-cluster\[ *[0-9]+ *, *([0-9]+) *,.*\]", master):
        cores = given[1]
    elif master.startswith("local"):
        cores = str(spark.sparkContext.defaultParallelism)
    if cores is None or int(cores) // cpus > 1:
        tasks = "as many tasks as it has cores" if cores is None else f"{int(cores) // cpus} tasks"
        print(f"An executor may run {tasks} at a time, and each has a Python worker with a copy of the model, with more memory and "  # noqa: T201
              "competing threads. Set spark.executor.cores, and spark.task.cpus to the same value.",
              file=sys.stderr)  # fmt: skip


def _number(spark: "SparkSession", name: str) -> int:
    return int(spark.conf.get(name, "1") or 1)


if __name__ == "__main__":
    main()
