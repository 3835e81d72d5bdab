"""Do the requirements of each image hold together, and is everything pinned that they bring? Asks the package index.

    python -m environments.resolve            check all images
    python -m environments.resolve online     check one
    python -m environments.resolve gpu/vllm   check one environment of an image that has several
    python -m environments.resolve --update   write the pins anew: those the tests run with where they fit, else the newest

A `requirements.txt` has what an image is asked for above the line that begins with `# What those bring`, and below it
what that brings. uv resolves it as the image does, for Ubuntu 24.04 and Python 3.12 on any machine: pip would take
the running interpreter for the answer to `; python_version < "3.12"`, and fetch wheels of gigabytes for their metadata.
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

FOLDER: Final = Path(__file__).resolve().parent
TESTED: Final = FOLDER.parent / "constraints.txt"
UV: Final = Path(sys.executable).with_name("uv")
BROUGHT: Final = "# What those bring"
IMAGE: Final = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39")
WHEELS: Final = ("--only-binary", ":all:", "--no-binary", "fusepy", "--no-binary", "rouge-score")
"""The index has these two only as source; azureml-dataset-runtime[fuse] needs fusepy."""
QUIETLY: Final = (
    "--quiet",
    "--no-config",
    "--no-header",
    "--no-annotate",
    "--no-python-downloads",
    "--system-certs",
)
CUDA: Final = re.compile(r"(cuda|nvidia)-[a-z0-9-]+|triton")
"""torch's dependencies. Dockerfiles that take torch from its own index leave them to that build."""


class Unresolvable(Exception):
    """The requirements contradict each other, or the index cannot be reached; the message is uv's."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """A `requirements.txt`.

    Attributes:
        asked: its text down to the line `BROUGHT`, and with it.
        brought: the pins below, package -> version.
        cuda: torch's CUDA packages are among the pins.
        names: how packages are spelled, by their normal name.
    """

    asked: str
    brought: Mapping[str, str]
    cuda: bool
    names: Mapping[str, str]

    @classmethod
    def read(cls, file: Path) -> "Requirements":
        """Return those of a file; its Dockerfile is beside it."""
        text, folder = file.read_text("utf-8"), file.parent
        above, line, below = text.partition(BROUGHT)
        rest, _, pins = below.partition("\n")
        cuda = "--index-url" not in (folder / "Dockerfile").read_text("utf-8")
        return cls(f"{above}{line}{rest}\n", versions(pins), cuda, spellings(text))

    @property
    def pinned(self) -> dict[str, str]:
        """All pins, of both halves."""
        return {**versions(self.asked), **self.brought}

    def resolved(self, *, prefer: str = "", keep: bool) -> dict[str, str]:
        """Return what the image would install.

        Args:
            prefer: pins to take where they fit.
            keep: all pins are conditions; else only what is asked for is one.

        Raises:
            Unresolvable: there is no answer.
        """
        pins = lines(self.brought) if keep else ""
        found = versions(uv(self.asked, constraints=pins, prefer=prefer))
        return {name: version for name, version in found.items() if self.cuda or not CUDA.fullmatch(name)}

    def faults(self) -> list[str]:
        """Return what is wrong, one line each.

        Raises:
            Unresolvable: there is no answer to what they ask for.
        """
        return differences(self.pinned, self.resolved(keep=True))

    def updated(self, tested: str) -> str:
        """Return the file's text with new pins in its lower half.

        Raises:
            Unresolvable: there is no answer to what its upper half asks for.
        """
        found = self.resolved(prefer=tested, keep=False)
        names = {**spellings(tested), **self.names}
        brought = {
            names.get(name, name): version
            for name, version in found.items()
            if name not in versions(self.asked)
        }
        return self.asked + "".join(sorted(lines(brought).splitlines(keepends=True), key=str.lower))


def differences(pinned: Mapping[str, str], resolved: Mapping[str, str]) -> list[str]:
    """Yield the differences between the pins and what an image would install, one line each."""
    return [
        *(
            f"{name} is not pinned: today it would be {version}"
            for name, version in resolved.items()
            if name not in pinned
        ),
        *(f"{name} is pinned, and nothing needs it" for name in pinned if name not in resolved),
        *(
            f"{name}: pinned {pinned[name]}, resolved {version}"
            for name, version in resolved.items()
            if name in pinned and public(version) != pinned[name]
        ),
    ]


def uv(asked: str, *, constraints: str, prefer: str) -> str:
    """Return uv's resolution of requirements as text.

    Raises:
        Unresolvable: it found no answer.
    """
    if not UV.exists():
        raise click.ClickException(f"There is no uv beside {sys.executable}: `make` installs it.")
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "asked.txt").write_text(asked, "utf-8")
        (folder / "constraints.txt").write_text(constraints, "utf-8")
        (folder / "found.txt").write_text(prefer, "utf-8")  # uv keeps existing pins where it can
        files = ("asked.txt", "--constraint", "constraints.txt", "--output-file", "found.txt")
        command = (UV, "pip", "compile", *files, *IMAGE, *WHEELS, *QUIETLY, "--python", sys.executable)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise Unresolvable(done.stderr.strip())
        return (folder / "found.txt").read_text("utf-8")


def versions(text: str) -> dict[str, str]:
    """Return versions by normalized package name, from the lines that pin one."""
    return {normal(name): version for name, version in _pins(text)}


def spellings(text: str) -> dict[str, str]:
    """Return names as written, by normalized name."""
    return {normal(name): name for name, _ in _pins(text)}


def _pins(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,-]+\])?==(\S+)", text, re.MULTILINE)


def lines(pins: Mapping[str, str]) -> str:
    """Return the pins as requirements, one per line."""
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


def normal(package: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def public(version: str) -> str:
    """Return a version without its local part (`+cpu`): the index chooses the build."""
    return version.partition("+")[0]


def files() -> dict[str, Path]:
    """Return all images: `gpu` is gpu/requirements.txt, and `gpu/vllm` is gpu/vllm-requirements.txt."""
    found = {_name(path): path for path in FOLDER.glob("*/*requirements.txt")}
    return dict(sorted(found.items()))


def _name(path: Path) -> str:
    part = path.name.removesuffix("requirements.txt").removesuffix("-")
    return f"{path.parent.name}/{part}" if part else path.parent.name


@click.command()
@click.argument("chosen", nargs=-1, metavar="[IMAGE]...")
@click.option("--update", is_flag=True, help="Write the pins anew.")
def main(*, chosen: Sequence[str], update: bool) -> None:
    """Check that the requirements of the images resolve, and that all they bring is pinned."""
    known = files()
    unknown = set(chosen) - set(known)
    if unknown:
        raise click.UsageError(f"There is no image {min(unknown)}. There are {', '.join(known)}.")
    wrong = False
    for image in chosen or known:
        faults = _faults(known[image], update=update)
        wrong = wrong or bool(faults)
        for line in faults or ["all is pinned"]:
            click.echo(f"{image}: {line}")
    sys.exit(wrong)


def _faults(file: Path, *, update: bool) -> list[str]:
    """Check one file, after an update if requested."""
    try:
        if update:
            file.write_text(Requirements.read(file).updated(TESTED.read_text("utf-8")), "utf-8")
        return Requirements.read(file).faults()
    except Unresolvable as error:
        return [str(error)]


if __name__ == "__main__":
    main()
