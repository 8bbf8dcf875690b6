"""Learned pooling of tokens, the reducer `pool`: what it costs.

Pure Python, as all that counts (schedule.py). What computes it is in token_pool.py.
"""

# Values of a query and of a key: those of a head in timm's networks.
KEY_WIDTH = 64


def pool_macs(dim: int, tokens: int, count: int) -> int:
    """Multiply-accumulates of pooling ``tokens`` tokens of ``dim`` values into ``count``: the keys of all,
    the products of queries and keys, and the weighted means."""
    return tokens * dim * KEY_WIDTH + tokens * count * (KEY_WIDTH + dim)
