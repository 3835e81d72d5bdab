"""Checks of the HTTP request itself, before its body is parsed."""

from email.message import Message
from typing import Final

from llama_serving.errors import BodyTooLarge, MethodNotAllowed, UnsupportedMediaType


def check_method(method: str) -> None:
    """Refuse any method but POST.

    Raises:
        MethodNotAllowed: the method is another one.
    """
    if method != "POST":
        raise MethodNotAllowed(f"{method} does not score. Send POST.")


UNSAID: Final = ("", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
"""What HTTP clients say of a body where they are not told what it is: httpx, curl, aiohttp of text and of bytes."""


def check_media_type(content_type: str | None, content_encoding: str | None, *, unsaid: bool = False) -> None:
    """Refuse anything but uncompressed JSON in UTF-8.

    Args:
        content_type: the header, if there is one.
        content_encoding: likewise.
        unsaid: JSON need not be called so.

    Raises:
        UnsupportedMediaType: the headers say something else.
    """
    header = Message()
    header["content-type"] = content_type or ""
    called = header.get_content_type() if content_type else ""
    if called != "application/json" and not (unsaid and called in UNSAID):
        raise UnsupportedMediaType("Send JSON with the header Content-Type: application/json.")
    charset = header.get_param("charset")
    if charset is not None and str(charset).lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("Send JSON in UTF-8; no other charset is read.")
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("Send the body as it is; no Content-Encoding is read.")


def check_size(size: int, limit: int) -> None:
    """Refuse a body of more than `limit` bytes.

    Raises:
        BodyTooLarge: the body is larger.
    """
    if size > limit:
        raise BodyTooLarge(f"The body has more than {limit} bytes. Send fewer or shorter prompts.")
