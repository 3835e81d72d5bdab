"""Random numbers made from what they are for, not from what was drawn before.

A draw depends on the seed, the sequence's index and the token's position alone: the same request gives
the same text in any engine, any order and any company.
"""

import hashlib
import secrets
import struct
from typing import Final

MAX_SEED: Final = 2**63 - 1


def fresh_seed() -> int:
    """A seed for a request that brings none."""
    return secrets.randbelow(MAX_SEED)


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1): 53 bits of BLAKE2b over (seed, sequence index, position).

    Args:
        seed: 0 … 2^63 − 1.
        index: which of the returned sequences, from 0.
        position: which generated token, from 0.
    """
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, index, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)
