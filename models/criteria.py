"""The importance of patches, computed from attention: pure tensor functions.

The method is that of arXiv 2507.19175 (abstract): a patch is important if the heads disagree about it, so its
importance is the spread of its softmaxed attention weights ACROSS HEADS. The baselines `mean` (EViT, arXiv
2202.07800, section 3.2), `mean_value_norm` (ATS, arXiv 2111.15667, equation 3) and `random` have the same
interface.

Two kinds read the attention of all queries instead of one row. `renyi_*` is the Renyi entropy of a patch's
own attention (arXiv 2604.03803), `column_l2` the norm of the attention to a patch (Col-Ln, arXiv 2603.27900).
Only the abstracts of these two papers were available, so the formulas are reconstructions (docs/methods.md).
Everything is computed in float32.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.schedule import Criterion, Rows


def attention_rows(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H T D"],
    scale: float,
    rows: Rows,
    gaps: Bool[Tensor, "B T"] | None = None,
    shares: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B H T"]:
    """Softmaxed attention weights over all T keys, of the CLS query (token 0) or averaged over all queries.

    With ``rows`` "cls", ``q`` may contain the CLS query only. It costs one q_cls K^T product, without a T x T
    matrix. Keys in ``gaps`` get no attention. With gaps, the mean over queries is weighted by ``shares``,
    which are 0 in a gap.
    """
    if rows == "cls":
        q = q[:, :, :1]
    weights = attention_matrix(q, k, scale, gaps)
    if shares is not None and rows == "all":
        return (shares[:, None, None] @ weights).squeeze(2)
    return weights.squeeze(2) if weights.shape[2] == 1 else weights.mean(dim=2)


def attention_matrix(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H T D"],
    scale: float,
    gaps: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B H Q T"]:
    """Softmaxed attention weights of all queries in ``q``. Keys in ``gaps`` get no attention."""
    logits = (q.float() * scale) @ k.float().transpose(-2, -1)
    if gaps is not None:
        logits = logits.masked_fill(gaps[:, None, None], -torch.inf)
    return logits.softmax(dim=-1)


def renyi_entropy(weights: Float[Tensor, "*rows T"], order: float) -> Float[Tensor, "*rows"]:
    """Renyi entropy in nats of distributions over the last dimension: log(sum p^order) / (1 - order).

    Its limits are Shannon's entropy at order 1 and -log(max p) at infinity. Orders above 0.
    """
    if order == 1:
        return torch.special.entr(weights).sum(dim=-1)
    largest = weights.amax(dim=-1, keepdim=True)
    peak = largest.squeeze(-1).log()
    if math.isinf(order):
        return -peak
    # Divide by the largest weight first, so that the powers do not all underflow at a high order.
    return (order * peak + (weights / largest).pow(order).sum(dim=-1).log()) / (1 - order)


def renyi(matrix: Float[Tensor, "B H Q T"], order: float) -> Float[Tensor, "B Q"]:
    """exp(-H) for each query, where H is the Renyi entropy of its attention, averaged over heads.

    The lower the entropy, the higher the importance. exp(H) is the effective number of tokens that a patch
    attends to (Hill number), so the importance is between 1 / T and 1.
    """
    return (-renyi_entropy(matrix, order).mean(dim=1)).exp()


def column_l2(
    matrix: Float[Tensor, "B H Q T"], gaps: Bool[Tensor, "B Q"] | None = None
) -> Float[Tensor, "B T"]:
    """Euclidean norm of the weights that a key receives from all queries outside ``gaps``, averaged over
    heads."""
    if gaps is not None:
        matrix = matrix.masked_fill(gaps[:, None, :, None], 0.0)
    return torch.linalg.vector_norm(matrix, dim=2).mean(dim=1)


def variance(attention: Float[Tensor, "B H N"]) -> Float[Tensor, "B N"]:
    """Population variance over heads, in two passes."""
    attention = attention.float()
    return (attention - attention.mean(dim=1, keepdim=True)).square().mean(dim=1)


def mad(attention: Float[Tensor, "B H N"]) -> Float[Tensor, "B N"]:
    """Median absolute deviation over heads. The median of an even count is the mean of the middle two."""
    attention = attention.float()
    return _quantile((attention - _quantile(attention, 0.5).unsqueeze(1)).abs(), 0.5)


def iqr(attention: Float[Tensor, "B H N"]) -> Float[Tensor, "B N"]:
    """Interquartile range over heads, with linear interpolation (numpy's default quantile)."""
    attention = attention.float()
    return _quantile(attention, 0.75) - _quantile(attention, 0.25)


def mean(attention: Float[Tensor, "B H N"]) -> Float[Tensor, "B N"]:
    """Mean attention over heads."""
    return attention.float().mean(dim=1)


def mean_value_norm(
    attention: Float[Tensor, "B H N"], value_norms: Float[Tensor, "B H N"]
) -> Float[Tensor, "B N"]:
    """Mean over heads of attention times the Euclidean norm of the value vector."""
    return (attention.float() * value_norms.float()).mean(dim=1)


def random(patch_ids: Int[Tensor, "B N"], seeds: Int[Tensor, " B"]) -> Float[Tensor, "B N"]:
    """Uniform random numbers in [0, 1), a hash of the image's seed and the patch's position in the image.

    They do not depend on the batch, so an image is always pruned in the same way. They are the same at all
    stages, so all stages follow one random permutation. The hash is the finaliser of MurmurHash3 (32 bits, in
    int64 arithmetic).
    """
    bits = (patch_ids * 0x9E3779B1 + (seeds.unsqueeze(1) + 1) * 0x85EBCA77) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    # float32 holds 24 bits exactly.
    return ((bits ^ (bits >> 16)) >> 8).float() / 2**24


ACROSS_HEADS: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "variance": variance,
    "mad": mad,
    "iqr": iqr,
    "mean": mean,
}


RENYI_ORDERS: dict[Criterion, float] = {
    "renyi_half": 0.5,
    "renyi_1": 1.0,
    "renyi_2": 2.0,
    "renyi_inf": math.inf,
}
# Criteria that read the attention of all queries.
OF_THE_MATRIX: frozenset[Criterion] = frozenset((*RENYI_ORDERS, "column_l2"))
# Criteria that read no attention: the importance is known before the first stage and never changes.
OF_THE_IMAGE: frozenset[Criterion] = frozenset(("life", "random"))


def matrix_importance(
    criterion: Criterion, matrix: Float[Tensor, "B H T T"], gaps: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B T"]:
    """Importance of every token under a criterion of `OF_THE_MATRIX`. Values in ``gaps`` are undefined."""
    if criterion == "column_l2":
        return column_l2(matrix, gaps)
    return renyi(matrix, RENYI_ORDERS[criterion])


@torch.no_grad()
def matrix_importances(
    criteria: Sequence[Criterion],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    scale: float,
    gaps: Bool[Tensor, "B T"] | None,
) -> dict[Criterion, Float[Tensor, "B T"]]:
    """`matrix_importance` under each of the ``criteria``.

    On a CPU, images are computed one by one. This keeps only one image's attention matrix in memory, and the
    result does not depend on the batch.
    """
    images = [slice(None)] if q.is_cuda else [slice(image, image + 1) for image in range(len(q))]
    found: dict[Criterion, list[Tensor]] = {name: [] for name in criteria}
    for own in images:
        own_gaps = None if gaps is None else gaps[own]
        matrix = attention_matrix(q[own], k[own], scale, own_gaps)
        for name, parts in found.items():
            parts.append(matrix_importance(name, matrix, own_gaps))
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}


def importance(
    criterion: Criterion,
    attention: Float[Tensor, "B H N"],
    *,
    value_norms: Float[Tensor, "B H N"] | None,
) -> Float[Tensor, "B N"]:
    """Importance of each patch under a criterion that is neither in `OF_THE_MATRIX` nor in `OF_THE_IMAGE`;
    never negative.

    ``value_norms``, the Euclidean norms of the value vectors, are only needed for `mean_value_norm`.
    """
    if criterion == "mean_value_norm":
        assert value_norms is not None
        return mean_value_norm(attention, value_norms)
    return ACROSS_HEADS[criterion](attention)


def most_important(
    importance: Float[Tensor, "B N"], count: int, beyond: Bool[Tensor, "B count"] | None = None
) -> Int[Tensor, "B count"]:
    """Positions of the ``count`` largest values, in ascending order. Ties go to the lower position.

    If an image keeps n < ``count``, ``beyond`` is True from index n on, and the last count - n positions that
    are returned are N - 1.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)[:, :count]
    if beyond is not None:
        order = order.masked_fill(beyond, importance.shape[1] - 1)
    return order.sort(dim=1).values


def _quantile(attention: Float[Tensor, "B H N"], share: float) -> Float[Tensor, "B N"]:
    """Quantile over heads with linear interpolation."""
    ordered = _sorted_over_heads(attention)
    position = share * (len(ordered) - 1)
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return torch.lerp(ordered[lower], ordered[upper], position - lower)


def _sorted_over_heads(attention: Float[Tensor, "B H N"]) -> list[Float[Tensor, "B N"]]:
    """Sort the heads' weights in ascending order, by Batcher's odd-even merge sort over whole [B, N] planes.

    A comparator is one minimum and one maximum over contiguous memory. For the 3 to 16 heads of a ViT, this
    is exact and several times faster than torch.sort along a strided axis. On a GPU, where every minimum and
    maximum would be a kernel launch, torch.sort is used.
    """
    if attention.is_cuda:
        return list(attention.sort(dim=1).values.unbind(dim=1))
    planes = list(attention.unbind(dim=1))
    for low, high in comparators(len(planes)):
        planes[low], planes[high] = (
            torch.minimum(planes[low], planes[high]),
            torch.maximum(planes[low], planes[high]),
        )
    return planes


def comparators(count: int) -> list[tuple[int, int]]:
    """The comparators of Batcher's odd-even merge sort of ``count`` inputs (Knuth, vol. 3, algorithm
    5.2.2M)."""
    pairs = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    step = top
    while step > 0:
        span, offset, distance = top, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(count - distance) if i & step == offset]
            if span == step:
                break
            distance, span, offset = span - step, span // 2, step
        step //= 2
    return pairs
