"""Checks of method, media type and size, before the body is parsed."""

import pytest

from llama_serving.contract.http import check_media_type, check_method, check_size
from llama_serving.errors import BodyTooLarge, MethodNotAllowed, UnsupportedMediaType


def test_only_post_scores() -> None:
    check_method("POST")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", ""])
def test_other_methods_are_405(method: str) -> None:
    with pytest.raises(MethodNotAllowed, match="Send POST"):
        check_method(method)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json; charset=utf8",
        "application/json; profile=x",
    ],
)
@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_json_in_utf8_is_read(content_type: str, encoding: str | None) -> None:
    check_media_type(content_type, encoding)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        " ",
        ";",
        "json",
        "text/plain",
        "text/json",
        "application/jsonx",
        "application/x-ndjson",
        "application/problem+json",
        "application/json, text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=",
        "application/json; charset*=utf-8''utf-16",
        "text/plain; charset=application/json",
    ],
)
def test_other_media_are_415(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_media_type(content_type, None)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"])
def test_packed_bodies_are_415(encoding: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding"):
        check_media_type("application/json", encoding)


def test_the_largest_body_is_read() -> None:
    check_size(0, 4)
    check_size(4, 4)


def test_one_byte_more_is_413() -> None:
    with pytest.raises(BodyTooLarge, match="more than 4 bytes"):
        check_size(5, 4)
