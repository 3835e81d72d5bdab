"""Random numbers that depend on what they are for, not on earlier draws.

A draw depends on the seed, the sequence's index and the token's position only: the same request gives the same text in any
engine, order and batch.
"""

import hashlib
import secrets
import struct
from typing import Final

MAX_SEED: Final = 2**63 - 1


def fresh_seed() -> int:
    """Return a random seed for a request without one, small enough for JSON readers whose numbers are floats."""
    return secrets.randbelow(2**53)


def uniform(seed: int, index: int, position: int) -> float:
    """Return a number in [0, 1): 53 bits of BLAKE2b over (seed, sequence index, position).

    Args:
        seed: 0 … 2^63 − 1.
        index: of the returned sequence, from 0.
        position: of the generated token, from 0.
    """
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, index, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)
