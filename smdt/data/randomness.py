"""Seeds as a function of what they are for, so that no generator state is ever saved.

A seed is the first 63 bits of BLAKE2b over the little-endian 64-bit words that name its use,
personalised by the purpose: equal words under different purposes give unrelated seeds.
"""

import struct
from hashlib import blake2b


def sample_seed(seed: int, epoch: int, sample_id: int) -> int:
    """Seed of the augmentation of one sample in one epoch, 0 <= seed < 2**63."""
    return seed_for("augment", seed, epoch, sample_id)


NO_EPOCH = -1
"""Epoch of what is drawn once and for all, as for evaluation."""


def field_of_view_seed(seed: int, epoch: int, sample_id: int) -> int:
    """Seed of where a sample's ground image looks in one epoch, 0 <= seed < 2**63."""
    return seed_for("look", seed, epoch, sample_id)


def chunk_seed(seed: int, step: int, rank: int, chunk: int) -> int:
    """Seed of the dropout of one chunk of one rank's share of a step, 0 <= seed < 2**63."""
    return seed_for("dropout", seed, step, rank, chunk)


def seed_for(purpose: str, *words: int) -> int:
    """Mix `words` (each in -2**63..2**63-1) into a seed, 0 <= seed < 2**63, for one purpose."""
    message = struct.pack(f"<{len(words)}q", *words)
    digest = blake2b(message, digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "little") >> 1
