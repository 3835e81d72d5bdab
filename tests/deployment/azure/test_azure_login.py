"""What is told of an error of Azure's."""

import pytest

from llama_endpoints.azure.credentials import error_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("It is so.\nReally."), "It is so"),
        (ValueError("at url: /c?sv=1&sig=abc%3D (Caused by X)"), "at url: /c (Caused by X)"),
        (ValueError("https://a/c?sig=abc"), "https://a/c"),
        (ValueError(), "ValueError"),
        (ValueError("\nsecond"), "ValueError"),
    ],
)
def test_one_line_without_signatures(error: Exception, line: str) -> None:
    assert error_line(error) == line
