"""The cost of the reducers that make each token from all patches: `pool` and `transform`.

Pure Python, like everything that counts (schedule.py). The computation is in token_pool.py and reducers.py.
"""

# The width of queries and keys: that of a head in timm's networks.
KEY_WIDTH = 64


def reducer_macs(reducer: str, dim: int, tokens: int, count: int) -> int:
    """Multiply-accumulates of a reducer that turns ``tokens`` tokens of ``dim`` values into ``count``; 0 for
    `drop`, `fuse` and `merge`, and if no token is removed."""
    if count == tokens:
        return 0
    if reducer == "pool":
        return pool_macs(dim, tokens, count)
    return transform_macs(dim, tokens, count) if reducer == "transform" else 0


def pool_macs(dim: int, tokens: int, count: int) -> int:
    """Multiply-accumulates of learned pooling: the keys of all tokens, the products of queries and keys, and
    the weighted means."""
    return tokens * dim * KEY_WIDTH + transform_macs(dim, tokens, count)


def transform_macs(dim: int, tokens: int, count: int) -> int:
    """Multiply-accumulates of token transforming: the similarities of keys, and the weighted means. The keys
    are those of the attention."""
    return tokens * count * (KEY_WIDTH + dim)
