"""The pins of the images, as the package index answers today. (Needs the network, as `make` does.)"""

import subprocess
import sys
from pathlib import Path

import pytest

from environments import resolve
from environments.resolve import Requirements, Unresolvable
from tests.conftest import ROOT

REQUESTS = """\
requests==2.34.2

# What those bring.
certifi==2026.10.18
charset-normalizer==3.5.2
idna==3.20
urllib3==2.8.0
"""


def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "environments.resolve", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("image", resolve.files())
def test_the_pins_of_an_image_hold_together_and_are_complete(image: str) -> None:
    done = checked(image)
    assert (done.stdout, done.returncode) == (f"{image}: all is pinned\n", 0), done.stderr


def test_an_image_that_is_not_there() -> None:
    done = checked("offline")
    assert done.returncode == 2
    assert (
        "There is no image offline. There are batch, evaluate, gpu, gpu/vllm, online, package." in done.stderr
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").touch()
    (tmp_path / "requirements.txt").write_text(REQUESTS, "utf-8")
    return tmp_path


def edited(folder: Path, old: str, new: str) -> Requirements:
    text = (folder / "requirements.txt").read_text("utf-8")
    assert old in text
    (folder / "requirements.txt").write_text(text.replace(old, new), "utf-8")
    return Requirements.read(folder / "requirements.txt")


def test_what_floats_and_what_nothing_needs_is_found(small: Path) -> None:
    assert Requirements.read(small / "requirements.txt").faults() == []
    (floats,) = edited(small, "idna==3.20\n", "").faults()
    assert floats.startswith("idna is not pinned: today it would be ")
    assert edited(small, "certifi", "idna==3.20\nhttpx==0.28.1\ncertifi").faults() == [
        "httpx is pinned, and nothing needs it"
    ]


def test_a_contradiction_is_said_in_uvs_words(small: Path) -> None:
    contradiction = edited(small, "idna==3.20", "idna==2.4")  # requests wants >= 2.5
    with pytest.raises(Unresolvable, match=r"requests.*depends on idna"):
        contradiction.faults()


def test_a_marker_is_answered_for_the_images_python(small: Path) -> None:
    """Here it is 3.11 that asks, and the image has 3.12."""
    for_312 = edited(small, "requests==2.34.2", 'requests==2.34.2\nsix==1.17.0 ; python_version < "3.12"')
    assert "six" not in for_312.resolved(keep=True)


def test_new_pins_are_the_tested_ones_where_they_fit(small: Path) -> None:
    requirements = edited(small, "charset-normalizer==3.5.2\nidna==3.20\nurllib3==2.8.0\n", "Urllib3==2.7.0\n")
    text = requirements.updated("idna==3.10\nurllib3==1.20\nunrelated==1\n")
    assert text.startswith(requirements.asked)
    pins = text.removeprefix(requirements.asked).splitlines()
    assert "idna==3.10" in pins, "the tested one"
    assert "Urllib3==1.20" not in pins, "it does not fit: requests wants >= 1.26"
    assert [pin.partition("==")[0] for pin in pins] == ["certifi", "charset-normalizer", "idna", "Urllib3"]
