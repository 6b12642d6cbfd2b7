"""Random numbers that depend on named things alone, never on what was drawn before."""

import hashlib

import torch


def generator_for(*key: str | int) -> torch.Generator:
    """A CPU generator seeded by a hash of `key`, such as ("noise", seed, index): the same on every machine and rank."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
