"""Who sends a request. A request without a caller is never collected."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

_SIZE: Final = 8
"""Bytes of the digest that decide."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a host knows of a request beside its body.

    Attributes:
        request_id: the id that its answer and its log line have.
        secrets: the keys that it came with. They are removed from what is collected.
    """

    request_id: str
    secrets: tuple[str, ...] = field(default=(), repr=False)


def is_sampled(request_id: str, rate: float) -> bool:
    """Return whether a request is in the sample.

    The id's hash decides: a prompt and its answer, and a request that is sent again with its id, are treated alike.

    Args:
        request_id: any text.
        rate: the share of all ids, from 0 to 1.
    """
    digest = hashlib.sha256(request_id.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:_SIZE], "big") < rate * 256**_SIZE
