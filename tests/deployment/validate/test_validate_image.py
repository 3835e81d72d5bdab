"""What `validate` reads out of a Dockerfile."""

import pytest

from llama_endpoints.validate.image import Image, tagged

DOCKERFILE = r"""
# FROM nothing
FROM --platform=linux/amd64 ubuntu:24.04 AS base
FROM base
from nvcr.io/cuda@sha256:abc as second
FROM scratch
ENV A=1 B="two words" \
    # a comment between
    C=3
ENV OLD the old form
ENV A=4
EXPOSE 5001
USER root
USER llama
CMD ["sh", "-c", "exec azmlinfsrv --entry_script x --port 5002"]
"""


def test_a_dockerfile() -> None:
    image = Image.of(DOCKERFILE)
    assert image.bases == ("ubuntu:24.04", "nvcr.io/cuda@sha256:abc")
    assert image.variables == {"A": "4", "B": "two words", "C": "3", "OLD": "the old form"}
    assert image.ports == {5001, 5002}
    assert image.user == "llama"


@pytest.mark.parametrize(
    "command",
    [
        'CMD ["gunicorn", "--bind", "0.0.0.0:8080"]',
        "CMD gunicorn --bind=0.0.0.0:8080",
        'CMD ["x", "--port", "8080"]',
        "EXPOSE 8080/tcp",
    ],
)
def test_ports(command: str) -> None:
    assert Image.of(command).ports == {8080}


def test_an_empty_one() -> None:
    assert Image.of("") == Image((), {}, frozenset(), "root")


def test_quotes_that_do_not_close() -> None:
    assert Image.of('ENV A="1\nENV B=2').variables == {"B": "2"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ubuntu", False),
        ("ubuntu:latest", False),
        ("ubuntu:", False),
        ("ubuntu:24.04", True),
        ("registry.io:5000/ubuntu", False),
        ("registry.io:5000/ubuntu:1", True),
        ("ubuntu@sha256:abc", True),
        ("ubuntu:latest@sha256:abc", True),
        ("ubuntu@abc", False),
    ],
)
def test_whether_an_image_has_a_version(name: str, expected: bool) -> None:
    assert tagged(name) is expected
