"""A slow and obvious pruned network: one image at a time, float64, the attention matrix in full."""

import copy
import functools
import math
from typing import Any

import numpy as np
import torch
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.clusters import clustering_of
from models.criteria import random as random_importance
from models.life import FADING
from models.reducers import TEMPERATURE
from models.schedule import Pruning, Stages
from models.static_attention import StaticAttention


def reference(
    vit: VisionTransformer | Eva, stages: Stages, image: Tensor, pruning: Pruning
) -> tuple[np.ndarray, list[list[int]]]:
    """Logits and the patches left after each stage."""
    logits, kept = reference_logits(vit, stages, image, pruning)
    return logits.detach().numpy(), kept


def reference_logits(
    vit: VisionTransformer | Eva, stages: Stages, image: Tensor, pruning: Pruning
) -> tuple[Tensor, list[list[int]]]:
    """As `reference`, with gradients to the image."""
    vit = copy.deepcopy(vit).double()
    prefix = vit.num_prefix_tokens
    embedded, rope = vit._pos_embed(vit.patch_embed(image[None].double())), None
    if isinstance(vit, Eva):
        embedded, rope = embedded
    x = vit.norm_pre(embedded)[0]
    patches = list(range(len(x) - prefix))
    sizes = torch.ones(len(x)).double()  # by which keys are weighted
    stands_for = sizes  # by which an average is
    counts = list(stages.keep_counts(len(patches), pruning.keep_ratio))
    kept: list[list[int]] = []
    lives: list[float] = []
    for index, block in enumerate(vit.blocks):
        if pruning.criterion == "life" and index == stages.blocks[0]:
            lives = [1 / (1 + math.exp(-life)) for life in reference_lives(vit, x.detach(), prefix)]
        attn = block.attn
        normed = block.norm1(x)
        static = isinstance(attn, StaticAttention)
        if static:
            values = attn.v(normed).unflatten(-1, (attn.num_heads, attn.head_dim))
            qkv = values[:, None].expand(-1, 3, -1, -1)
        else:
            qkv = projected(attn, normed).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        clustering, of_keys, key_sizes = clustering_of(block), qkv, sizes
        if clustering is not None:
            clusters = torch.tensor(reference_clusters(clustering, normed.detach(), sizes, prefix)).double()
            source = torch.cat((normed[:prefix], clusters))
            of_keys = projected(attn, source).unflatten(-1, (3, attn.num_heads, attn.head_dim))
            key_sizes = torch.ones(len(source)).double()
        keys = []
        matrices, mixed = [], []  # matrices: as criteria read them, which do not see how much keys stand for
        for head in range(attn.num_heads):
            if static:
                matrices.append(attn.logits[head].exp() / attn.logits[head].exp().sum(dim=1, keepdim=True))
                mixed.append(matrices[-1] @ values[:, head])
                continue
            q, v = attn.q_norm(qkv[:, 0, head]), of_keys[:, 2, head]
            k = attn.k_norm(of_keys[:, 1, head])
            if rope is not None:
                of_block = rope if rope.ndim == 2 else rope[index, head]
                own = slice(prefix, prefix + len(patches))
                for one in (q,) if clustering is not None else (q, k):
                    one[own] = apply_rot_embed_cat(one[own], of_block[patches], half=attn.rotate_half)
            keys.append(k)
            logits = q @ k.T / attn.head_dim**0.5
            matrices.append(torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True))
            weighed = torch.exp(logits + key_sizes.log())
            mixed.append(weighed / weighed.sum(dim=1, keepdim=True) @ v)
        out = attn.norm(torch.cat(mixed, dim=1))
        if attn.gate is not None:
            out = out * torch.sigmoid(attn.gate(normed))
        x = x + scaled(block, 1, attn.proj(out))
        if index in stages.blocks:
            weights = torch.stack(matrices)  # [H, T, T]
            row = weights[:, 0] if stages.rows == "cls" else weights.mean(dim=1)
            row = row[:, prefix : prefix + len(patches)]
            count = counts[len(kept)]
            if pruning.reducer == "pool":
                if count < len(patches):
                    x, sizes, patches = reference_pool(block.token_pool, x, sizes, patches, count, prefix)
                    stands_for = sizes
            elif pruning.reducer == "merge":
                mean_key = torch.stack(keys).mean(0)
                x, sizes, patches = reference_merge(x, mean_key, sizes, patches, count, prefix)
                stands_for = sizes
            else:
                if lives:
                    values = [lives[patch] for patch in patches]
                elif pruning.criterion in ORDERS or pruning.criterion == "column_l2":
                    values = importance_of_all(
                        weights.detach().numpy(), prefix, len(patches), pruning.criterion
                    )
                else:
                    own = qkv[prefix:, 2].detach().numpy()
                    values = reference_importance(row.detach().numpy(), own, pruning, patches)
                places = sorted(
                    sorted(range(len(patches)), key=lambda place: (-values[place], place))[:count]
                )
                if pruning.reducer == "transform":
                    if count < len(patches):
                        mean_key = torch.stack(keys).mean(0)
                        x, sizes = reference_transform(x, mean_key, sizes, places, prefix)
                    stands_for = sizes
                else:
                    x, stands_for = dropped_or_fused(x, row, stands_for, places, prefix, pruning.reducer)
                    sizes = torch.ones(len(x)).double()
                patches = [patches[place] for place in places]
            kept.append(patches)
        x = x + scaled(block, 2, block.mlp(block.norm2(x)))
    x = vit.norm(x[None])
    if vit.attn_pool is None and vit.global_pool in ("avg", "avgmax"):
        start = 0 if getattr(vit, "pool_include_prefix", False) else prefix
        pooled = (stands_for[start:, None] * x[0, start:]).sum(dim=0) / stands_for[start:].sum()
        if vit.global_pool == "avgmax":
            pooled = (pooled + x[0, start:].amax(dim=0)) / 2
        return vit.head(vit.fc_norm(pooled[None]))[0], kept
    return vit.forward_head(x)[0], kept


def reference_clusters(clustering: Any, x: Tensor, sizes: Tensor, prefix: int) -> list[list[float]]:
    """The clusters of one image's tokens behind its prefix, a number at a time, from their normed rows and
    how often each token counts. The network is in float64."""

    def product(weights: list[float], values: list[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    first, second = clustering.mlp.fc1, clustering.mlp.fc2
    rows, weights = x[prefix:].tolist(), []
    for row in rows:
        of_units = zip(first.weight.tolist(), first.bias.tolist(), strict=True)
        inner = [product(own, row) + shift for own, shift in of_units]
        inner = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in inner]
        weights.append([math.exp(product(own, inner)) for own in second.weight.tolist()])
    clusters = []
    for cluster in range(clustering.clusters):
        shares = [own[cluster] * size for own, size in zip(weights, sizes[prefix:].tolist(), strict=True)]
        mean = [product(shares, [row[place] for row in rows]) / sum(shares) for place in range(len(rows[0]))]
        centre = sum(mean) / len(mean)
        deviation = math.sqrt(sum((value - centre) ** 2 for value in mean) / len(mean) + 1e-6)
        gains, shifts = clustering.norm.weight.tolist(), clustering.norm.bias.tolist()
        clusters.append(
            [
                gain * (value - centre) / deviation + shift
                for gain, value, shift in zip(gains, mean, shifts, strict=True)
            ]
        )
    return clusters


def reference_lives(vit: Any, x: Tensor, prefix: int) -> list[float]:
    """Of each patch, from the tokens of one image, a number at a time: in deviations from the mean."""
    predictor = vit.life
    gain, shift = predictor.norm.weight.tolist(), predictor.norm.bias.tolist()
    tokens = []
    for row in x.tolist():
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row) + 1e-6)
        scaled = [(value - mean) / deviation for value in row]
        tokens.append([a * value + b for a, value, b in zip(gain, scaled, shift, strict=True)])
    whole = [sum(token[place] for token in tokens) / len(tokens) for place in range(len(gain))]
    found = []
    for token in tokens[prefix:]:
        total = 0.0
        for unit, out in enumerate(predictor.out.weight[0].tolist()):
            value = predictor.own.bias[unit].item()
            value += sum(w * t for w, t in zip(predictor.own.weight[unit].tolist(), token, strict=True))
            value += sum(w * t for w, t in zip(predictor.whole.weight[unit].tolist(), whole, strict=True))
            total += out * value * (1 + math.erf(value / math.sqrt(2))) / 2
        found.append(total)
    mean = sum(found) / len(found)
    deviation = math.sqrt(sum((life - mean) ** 2 for life in found) / len(found) + 1e-12)
    return [(life - mean) / deviation for life in found]


def reference_fading(
    vit: Any, stages: Stages, image: Tensor, keep_ratio: float
) -> tuple[Tensor, list[list[float]]]:
    """Logits of a training step by `life`, with gradients to the network, which is in float64; and the
    weights of the patches behind each stage. For networks whose head reads a CLS token or an average of
    patches."""
    prefix = vit.num_prefix_tokens
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None].double())))[0]
    patches = len(x) - prefix
    counts = list(stages.keep_counts(patches, keep_ratio))
    weights = torch.ones(len(x)).double()
    behind = []
    for index, block in enumerate(vit.blocks):
        if index == stages.blocks[0]:
            lives = vit.life(x[None], prefix)[0]  # in float32: that it is right is another test's business
        attn = block.attn
        qkv = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        mixed = []
        for head in range(attn.num_heads):
            q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            shares = weights * torch.exp(q @ k.T / attn.head_dim**0.5)
            mixed.append(shares / shares.sum(dim=1, keepdim=True) @ v)
        x = x + attn.proj(torch.cat(mixed, dim=1))
        x = x + block.mlp(block.norm2(x))
        if index in stages.blocks:
            count = counts[len(behind)]
            longest = sorted(lives.tolist(), reverse=True)
            own = []
            for life in lives:
                if count == patches:
                    own.append(torch.tensor(1.0).double())
                else:
                    quantile = (longest[count - 1] + longest[count]) / 2
                    own.append(1 / (1 + torch.exp(-(life.double() - quantile) / FADING)))
            weights = torch.cat((torch.ones(prefix).double(), torch.stack(own)))
            behind.append([float(weight.detach()) for weight in own])
    x = vit.norm(x)
    if vit.global_pool == "avg":
        of_patches = weights[prefix:, None]
        x = (of_patches * x[prefix:]).sum(dim=0) / of_patches.sum()
    else:
        x = x[0]
    return vit.head(vit.fc_norm(x)), behind


def projected(attn: Any, normed: Tensor) -> Tensor:
    """Queries, keys and values of all heads, side by side."""
    if attn.qkv is None:
        return torch.cat([layer(normed) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)], dim=-1)
    qkv: Tensor = attn.qkv(normed)
    if getattr(attn, "q_bias", None) is not None:
        qkv = qkv + torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    return qkv


def scaled(block: Any, part: int, update: Tensor) -> Tensor:
    """By LayerScale, if there is one."""
    if hasattr(block, "ls1"):
        scale: nn.Module = getattr(block, f"ls{part}")
        return scale(update)
    gamma = getattr(block, f"gamma_{part}")
    return update if gamma is None else update * gamma


def dropped_or_fused(
    x: Tensor, row: Tensor, stands_for: Tensor, places: list[int], prefix: int, reducer: str
) -> tuple[Tensor, Tensor]:
    """Tokens, and how many patches each stands for; the patches at ``places`` stay. ``row``: the attention
    [heads, patches] that patches get."""
    patches = row.shape[1]
    dropped = [place for place in range(patches) if place not in places]
    fused = x[prefix + patches :]
    stands_for = torch.cat((torch.ones(prefix + len(places)), stands_for[prefix + patches :]))
    if reducer == "fuse" and dropped:
        share = row.mean(dim=0) / row.mean(dim=0)[dropped].sum()
        lost = sum(share[place] * x[prefix + place] for place in dropped)
        fused = torch.cat((fused, lost[None]))
        stands_for = torch.cat((stands_for, torch.tensor([float(len(dropped))])))
    return torch.cat((x[:prefix], x[[prefix + place for place in places]], fused)), stands_for


def reference_merge(
    x: Tensor, keys: Tensor, sizes: Tensor, patches: list[int], count: int, prefix: int
) -> tuple[Tensor, Tensor, list[int]]:
    """ToMe's rounds of bipartite matching, a pair at a time: tokens, sizes and patches left."""
    tokens = list(zip(x[prefix:], keys[prefix:], sizes[prefix:], patches, strict=True))
    while len(tokens) > count:
        matches = []
        for odd in range(1, len(tokens), 2):
            evens = torch.stack([token[1] for token in tokens[::2]])
            likeness = torch.cosine_similarity(tokens[odd][1], evens, dim=-1).tolist()
            best = max(range(len(likeness)), key=likeness.__getitem__)
            matches.append((likeness[best], odd, 2 * best))
        matches = sorted(matches, key=lambda match: (-match[0], match[1]))[: len(tokens) - count]
        groups: dict[int, list[int]] = {}
        for _, odd, even in matches:
            groups.setdefault(even, [even]).append(odd)
        gone = {odd for _, odd, _ in matches}
        merged = []
        for place in range(len(tokens)):
            if place in gone:
                continue
            members = [tokens[member] for member in groups.get(place, [place])]
            size = sum(member[2] for member in members)
            merged.append(
                (
                    sum(member[0] * member[2] for member in members) / size,
                    sum(member[1] * member[2] for member in members) / size,
                    size,
                    tokens[place][3],
                )
            )
        tokens = merged
    rows = torch.cat((x[:prefix], torch.stack([token[0] for token in tokens])))
    new_sizes = torch.cat((sizes[:prefix], torch.stack([token[2] for token in tokens])))
    return rows, new_sizes, [token[3] for token in tokens]


def reference_transform(
    x: Tensor, keys: Tensor, sizes: Tensor, places: list[int], prefix: int
) -> tuple[Tensor, Tensor]:
    """Means of all patches by their likeness to those at ``places``, one mean at a time: tokens and sizes. In
    logarithms: weights are too small for float64."""
    tokens, own_sizes = x[prefix:], sizes[prefix:]
    logs = []
    for place in places:
        likeness = torch.cosine_similarity(keys[prefix + place], keys[prefix:], dim=-1)
        own = own_sizes.log() + likeness / TEMPERATURE
        logs.append(own - own.logsumexp(0))
    of_all = torch.stack(logs).logsumexp(0)
    means = [(own.exp()[:, None] * tokens).sum(0) for own in logs]
    left = [(own_sizes * (own - of_all).exp()).sum() for own in logs]
    rows = torch.cat((x[:prefix], torch.stack(means)))
    return rows, torch.cat((sizes[:prefix], torch.stack(left)))


def reference_pool(
    pool: Any, x: Tensor, sizes: Tensor, patches: list[int], count: int, prefix: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Means of all patches by learned queries, one mean at a time: tokens, sizes and the queries' places."""
    tokens, own_sizes = x[prefix:], sizes[prefix:]
    keys = []
    for token, place in zip(tokens, patches, strict=True):
        centred = token - token.mean()
        keys.append(pool.key @ (centred / (centred.square().mean() + 1e-6).sqrt()) + pool.positions[place])
    chosen = sorted(reference_order(*pool.grid)[:count])
    weights = []
    for place in chosen:
        shares = own_sizes * torch.exp(torch.stack(keys) @ pool.queries[place])
        weights.append(shares / shares.sum())
    of_all = torch.stack(weights).sum(0)
    pooled = [(own[:, None] * tokens).sum(0) for own in weights]
    left = [(own_sizes * own / of_all).sum() for own in weights]
    rows = torch.cat((x[:prefix], torch.stack(pooled)))
    return rows, torch.cat((sizes[:prefix], torch.stack(left))), chosen


@functools.cache
def reference_order(rows: int, columns: int) -> tuple[int, ...]:
    """From the middle on, always the place that is farthest from the nearest one before it."""
    places = [(row, column) for row in range(rows) for column in range(columns)]
    order = [(rows // 2, columns // 2)]
    while len(order) < len(places):
        order.append(
            max(
                (place for place in places if place not in order),
                key=lambda place: min(math.dist(place, other) for other in order),
            )
        )
    return tuple(row * columns + column for row, column in order)


ORDERS: dict[str, float] = {"renyi_half": 0.5, "renyi_1": 1, "renyi_2": 2, "renyi_inf": math.inf}


def importance_of_all(weights: np.ndarray, prefix: int, patches: int, criterion: str) -> list[float]:
    """Of the patches, from the weights [H, T, T] of all queries, a number at a time."""
    importance = []
    for patch in range(prefix, prefix + patches):
        if criterion == "column_l2":
            norms = [math.hypot(*head[:, patch].tolist()) for head in weights]
            importance.append(sum(norms) / len(norms))
        else:
            entropies = [entropy(head[patch].tolist(), ORDERS[criterion]) for head in weights]
            importance.append(math.exp(-sum(entropies) / len(entropies)))
    return importance


def entropy(distribution: list[float], order: float) -> float:
    """Renyi's, as textbooks write it."""
    if order == 1:
        return -sum(p * math.log(p) for p in distribution if p > 0)
    if order == math.inf:
        return -math.log(max(distribution))
    return math.log(sum(p**order for p in distribution)) / (1 - order)


def reference_importance(
    row: np.ndarray, values: np.ndarray, pruning: Pruning, patches: list[int]
) -> list[float]:
    """Of the patches left, from their attention [H, N] and value vectors [N, H, D]."""
    if pruning.criterion == "random":
        return random_importance(torch.tensor([patches]), torch.tensor([pruning.seed]))[0].tolist()
    importance = []
    for patch in range(row.shape[1]):
        heads = row[:, patch]
        importance.append(
            {
                "variance": np.mean((heads - heads.mean()) ** 2),
                "mad": np.median(np.abs(heads - np.median(heads))),
                "iqr": np.subtract(*np.percentile(heads, [75, 25])),
                "mean": np.mean(heads),
                "mean_value_norm": np.mean(heads * np.sqrt((values[patch] ** 2).sum(axis=-1))),
            }[pruning.criterion]
        )
    return importance
