"""A batch job on Spark: JSONL files -> one record a row, in order, by the packaged model as a UDF of MLflow's.

    spark-submit --conf spark.task.cpus=N deployment/llama_endpoints/spark/job.py --model MODEL --input FOLDER --output FOLDER

with N the cores of an executor (`spark.executor.cores`): one task at a time, so that one Python worker an executor holds the
model. All paths must be such that every executor finds them. Of a large model package only a reference
(`llama-endpoints package --weights reference`): what is not small Spark would send to every executor.
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
"""Of each line: the number of its file, and its bytes, or the record that says why it can't be read."""
ROWS_AT_ONCE: Final = 256
WAVES: Final = 4
"""Partitions for each task that can run at a time: what a failed one costs, and how uneven the end is."""
PARTITION: Final = 4 << 20
"""Bytes of input in a partition, at most: executors may still come when the job is planned."""


def main() -> None:
    """Parse the command line, and do the job."""
    parser = ArgumentParser(description=__doc__, prog="job.py")
    parser.add_argument("--model", required=True, help="folder of a packaged model, or azureml:...")
    parser.add_argument(
        "--input", required=True, type=Path, help="a JSONL file (also .gz), or a folder with such"
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="folder that Spark makes: part-00000... in order"
    )
    parser.add_argument(
        "--parameters", default="{}", help="JSON object: parameters of rows that bring none of their own"
    )
    parser.add_argument(
        "--partitions",
        type=int,
        help="how many tasks; by default four for each that can run at a time, and more for large files",
    )
    parser.add_argument("--master", help="only without spark-submit, such as local-cluster[2,1,2048]")
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
    """Where it lies: one that Azure names is downloaded first, before Spark takes machines for the job."""
    from llama_endpoints.download.azureml_cache import here
    from llama_serving.errors import SetupError

    try:
        return here(name)
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
    """The records of a file or a folder: one column `value`, JSON, its partitions in the order of the rows.

    Args:
        spark: a session.
        model: folder of a packaged model, on a path that every executor has.
        given: JSONL files, likewise.
        parameters: of rows that bring none of their own; only what MLflow's params schema of the model has.
        partitions: how many; None is `WAVES` for each task that can run at a time, and one for each `PARTITION` bytes.
    """
    import mlflow.pyfunc
    from pyspark.sql import functions as f

    files = _files(given)
    code = str(model.absolute() / "code")
    named = spark.createDataFrame([(number, str(path), name) for number, (path, name) in enumerate(files)],
                                  "number int, path string, name string")  # fmt: skip
    lines = named.repartition(len(files), "number").mapInPandas(partial(read, code=code), READ)
    # In order before the model has it, and not after: to sort, Spark computes what it sorts twice.
    ordered = lines.repartitionByRange(
        partitions or _partitions(spark, files), "number", "line"
    ).sortWithinPartitions("number", "line")
    answer = mlflow.pyfunc.spark_udf(
        spark, str(model), result_type="string", env_manager="local", params=parameters
    )
    row = f.struct("file", "line", "row")
    return ordered.select(f.coalesce("record", answer(row)).alias("value"))


def read(tables: "Iterator[pd.DataFrame]", code: str) -> "Iterator[pd.DataFrame]":
    """On an executor: the lines of files, read by the model's own code, so that a line is what it is to our command.

    Args:
        tables: of files: number, path, name.
        code: the folder `code` of the model.
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
    """Each file with the name that its records get, as `llama-endpoints batch` names and orders them."""
    from llama_serving.batch import inputs, reader

    found = inputs.find([str(given)])
    tables = [source.name for source in found if reader.is_csv(source.path)]
    if tables:
        raise SystemExit(
            f"{tables[0]} is CSV, and this job reads JSONL: spark.read.csv and to_json(struct('*')) make it of it."
        )
    return [(source.path, source.name) for source in found]


def _params(text: str) -> dict[str, Any]:
    """Parameters by the names that the model's params schema has: MLflow drops all others."""
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
    """Say so where an executor would hold the model several times."""
    cpus, cores = _number(spark, "spark.task.cpus"), spark.conf.get("spark.executor.cores", None)
    master = spark.sparkContext.master
    if given := re.fullmatch(r"local-cluster\[ *[0-9]+ *, *([0-9]+) *,.*\]", master):
        cores = given[1]
    elif master.startswith("local"):
        cores = str(spark.sparkContext.defaultParallelism)
    if cores is None or int(cores) // cpus > 1:
        tasks = "as many tasks as it has cores" if cores is None else f"{int(cores) // cpus} tasks"
        print(f"An executor may run {tasks} at a time, and each has a Python worker with the model: so many times its "  # noqa: T201
              "memory, and threads that get in each other's way. Set spark.executor.cores, and spark.task.cpus to the same.",
              file=sys.stderr)  # fmt: skip


def _number(spark: "SparkSession", name: str) -> int:
    return int(spark.conf.get(name, "1") or 1)


if __name__ == "__main__":
    main()
