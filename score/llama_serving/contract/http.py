"""What HTTP itself has to say about a request, before its body is looked at."""

from email.message import Message

from llama_serving.errors import BodyTooLarge, MethodNotAllowed, UnsupportedMediaType


def check_method(method: str) -> None:
    """Only POST scores.

    Raises:
        MethodNotAllowed: anything else.
    """
    if method != "POST":
        raise MethodNotAllowed(f"{method} does not score. Send POST.")


def check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    """JSON in UTF-8, not compressed.

    Raises:
        UnsupportedMediaType: anything else.
    """
    header = Message()
    header["content-type"] = content_type or ""
    if header.get_content_type() != "application/json":
        raise UnsupportedMediaType("Send JSON with the header Content-Type: application/json.")
    charset = header.get_param("charset")
    if charset is not None and str(charset).lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("Send JSON in UTF-8; no other charset is read.")
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("Send the body as it is; no Content-Encoding is read.")


def check_size(size: int, limit: int) -> None:
    """At most `limit` bytes.

    Raises:
        BodyTooLarge: more.
    """
    if size > limit:
        raise BodyTooLarge(f"The body has more than {limit} bytes. Send fewer or shorter prompts.")
