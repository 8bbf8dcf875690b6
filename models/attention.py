"""Attention of timm's Attention modules over a packed batch: run by run, or all in one call (varlen.py)."""

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from models.ragged import Run, Tokens
from models.varlen import takes_varlen, varlen
from models.windows import takes_windows, windowed


def width_of(attn: Attention) -> int:
    """Of all heads together."""
    return attn.num_heads * attn.head_dim


def heads(attn: Attention, rows: Tensor) -> tuple[Tensor, ...]:
    """Dense rows [images, tokens, _] of queries, keys, values, or several of these side by side: one [images,
    H, tokens, D] each."""
    images, tokens, width = rows.shape
    split = rows.view(images, tokens, width // width_of(attn), attn.num_heads, attn.head_dim)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def parts_of_qkv(attn: Attention) -> tuple[slice, slice]:
    """The outputs of the qkv layer that are queries, and those that are keys and values."""
    width = width_of(attn)
    return slice(0, width), slice(width, 3 * width)


def _heads_of_rows(attn: Attention, rows: Tensor) -> tuple[Tensor, ...]:
    """As `heads`, of the rows of all images: one [rows, H, D] each."""
    return rows.view(-1, rows.shape[-1] // width_of(attn), attn.num_heads, attn.head_dim).unbind(1)


def queries(attn: Attention, normed: Tensor) -> Tensor:
    """The query rows [*rows, H * D] alone."""
    return attn.qkv.part(normed, parts_of_qkv(attn)[0])


def keys_and_values(attn: Attention, normed: Tensor) -> Tensor:
    """The key and value rows [*rows, 2 * H * D] alone."""
    return attn.qkv.part(normed, parts_of_qkv(attn)[1])


def self_attention(attn: Attention, normed: Tensor, tokens: Tokens, exact: bool) -> Tensor:
    """What timm's Attention gives, without its drop of the projection: [*rows, dim] for the ``normed`` rows
    of all tokens. ``exact`` insists on the kernels that timm would use."""
    qkv = attn.qkv(normed)
    packing, sizes = tokens.packing, tokens.sizes
    if len(packing.runs) > 1 and takes_varlen(attn, qkv, sizes):
        mixed = _varlen(attn, _heads_of_rows(attn, qkv), tokens, tokens)
    elif takes_windows(qkv) and not exact:
        mixed = _windowed(attn, qkv, None, tokens, tokens)
    else:
        parts = []
        for run in packing.runs:
            q, k, v = heads(attn, run.dense(qkv))
            parts.append(_mix(attn, attn.q_norm(q), attn.k_norm(k), v, _size_bias(sizes, run, q), exact))
        mixed = packing.pack(parts)
    return _output(attn, mixed, normed)


def cross_attention(
    attn: Attention, q_rows: Tensor, normed: Tensor, tokens: Tokens, kv_rows: Tensor, source: Tokens
) -> Tensor:
    """As `self_attention`, of the query rows ``q_rows`` (of ``tokens``, whose ``normed`` rows a gate reads)
    to the key and value rows ``kv_rows`` of ``source``, of which ``tokens`` are a part, image by image."""
    packing, source_packing = tokens.packing, source.packing
    ragged = len(packing.runs) > 1 or len(source_packing.runs) > 1
    if ragged and takes_varlen(attn, q_rows, source.sizes):
        (q,) = _heads_of_rows(attn, q_rows)
        mixed = _varlen(attn, (q, *_heads_of_rows(attn, kv_rows)), tokens, source)
    elif takes_windows(q_rows):
        mixed = _windowed(attn, q_rows, kv_rows, tokens, source)
    else:
        parts = []
        for run, source_run in packing.runs_beside(source_packing):
            (q,) = heads(attn, run.dense(q_rows))
            k, v = heads(attn, source_run.dense(kv_rows))
            bias = _size_bias(source.sizes, source_run, q)
            parts.append(_mix(attn, attn.q_norm(q), attn.k_norm(k), v, bias, exact=False))
        mixed = packing.pack(parts)
    return _output(attn, mixed, normed)


def _varlen(attn: Attention, qkv: tuple[Tensor, ...], tokens: Tokens, source: Tokens) -> Tensor:
    """`varlen`, of queries, keys and values [rows, H, D] each."""
    q, k, v = qkv
    bias = None if source.sizes is None else source.sizes.log().to(q.dtype)
    if bias is not None and len(bias) < len(k):
        bias = F.pad(bias, (0, len(k) - len(bias)))  # of rows behind the images
    mixed = varlen(attn.q_norm(q), attn.k_norm(k), v, tokens, source, attn.scale, bias)
    return tokens.packing.shaped(mixed)


def _windowed(
    attn: Attention, q_rows: Tensor, kv_rows: Tensor | None, tokens: Tokens, source: Tokens
) -> Tensor:
    """`windowed`, of and for rows that may be dense."""
    flat = q_rows.view(-1, q_rows.shape[-1])
    flat_kv = None if kv_rows is None else kv_rows.view(-1, kv_rows.shape[-1])
    bias = None if source.sizes is None else source.sizes.log().to(q_rows.dtype)
    return tokens.packing.shaped(windowed(attn, flat, flat_kv, tokens.packing, source.packing, bias))


def _mix(attn: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, exact: bool) -> Tensor:
    """Attention output [images, tokens, H * D], with timm's operations in timm's order.

    ``exact`` insists on the kernel that timm would use. Otherwise the faster one is taken: on a CPU in bf16
    that is the plain matmul-softmax-matmul form (5-12 % of the model in inference, a third in training).
    """
    plain_is_faster = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if attn.fused_attn and (exact or not plain_is_faster):
        dropout = attn.attn_drop.p if attn.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    else:
        logits = (q * attn.scale) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        mixed = attn.attn_drop(logits.softmax(dim=-1)) @ v
    return mixed.transpose(1, 2).flatten(2)


def _size_bias(sizes: Tensor | None, run: Run, like: Tensor) -> Tensor | None:
    """log(size) of each key (ToMe's proportional attention): a token of s patches is attended to s times."""
    if sizes is None:
        return None
    return run.dense(sizes.unsqueeze(-1)).log().to(like.dtype).view(run.images, 1, 1, run.tokens)


def _output(attn: Attention, mixed: Tensor, normed: Tensor) -> Tensor:
    """What follows on the heads' answers: norm, gate and projection."""
    mixed = attn.norm(mixed)
    if attn.gate is not None:
        mixed = mixed * attn.gate(normed).sigmoid()
    return attn.proj_drop(attn.proj(mixed))
