"""timm's transformer blocks over the tokens of a packed batch: plain ones, and a stage's, which prunes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from timm.layers import Attention
from timm.models.vision_transformer import Block, LayerScale
from torch import Tensor, nn

from models.attention import (
    computes_parts,
    cross_attention,
    heads,
    keys_and_values,
    queries,
    self_attention,
)
from models.criteria import attention_rows, importance, most_important, most_important_of_each
from models.mlp import mlp
from models.ragged import Packing, Run, Tokens, on_device, runs_of, starts_of
from models.reducers import fuse, merge
from models.schedule import Pruning, Rows, keep_count
from models.windows import takes_windows


def plain_block(block: Block, tokens: Tokens, exact: bool) -> Tokens:
    """A block that prunes nothing; ``exact`` with timm's own kernels."""
    update = self_attention(block.attn, block.norm1(tokens.rows), tokens.packing, tokens.sizes, exact)
    return _mlp(block, _add(tokens, update, block.ls1, block.drop_path1, exact), exact)


def stage_block(
    block: Block,
    tokens: Tokens,
    prunings: Sequence[Pruning],
    ratios: list[float | None],
    rows: Rows,
    prefix: int,
    exact: bool,
) -> Tokens:
    """A block that prunes each image between its attention and its MLP.

    ``ratios[b]`` is image b's keep ratio, None where its `keep_mass` is to be turned into one here; it is
    filled in. What decides needs keys and the query of ``rows`` only, so for patches that are dropped neither
    queries nor outputs are computed: the rest is what it would be with them.
    """
    if not any(pruning.prunes for pruning in prunings):
        return plain_block(block, tokens, exact)
    attn = block.attn
    normed = block.norm1(tokens.rows)
    all_queries, source, deciding = _project(attn, normed, tokens.packing, rows)
    attention, values = _decide(attn, deciding, source, tokens, prunings, rows, prefix)
    counts = _counts(values, tokens.patches, prunings, ratios)

    # Those that are fused or merged are so after their attention: only the dropped ones are left out of it.
    dropping = [pruning.reducer == "drop" for pruning in prunings]
    selected_counts = tuple(
        count if drop else patches
        for drop, count, patches in zip(dropping, counts, tokens.patches, strict=True)
    )
    selected, index = _select(tokens, values, selected_counts, prefix)
    if index is not None:
        normed = tokens.packing.select(normed, index, selected.packing)
    if all_queries is None:
        q_rows = queries(attn, normed)
    elif index is None:
        q_rows = all_queries
    else:
        q_rows = tokens.packing.select(all_queries, index, selected.packing)
    update = cross_attention(attn, q_rows, normed, selected.packing, source, tokens.packing, tokens.sizes)
    attended = _add(selected, update, block.ls1, block.drop_path1, exact=False)
    if counts != selected_counts:

        def keys(run: Run) -> Tensor:
            """The keys of a run of ``attended``, as long here as before, averaged over heads (ToMe's)."""
            k, _ = heads(attn, source, replace(run, start=tokens.packing.starts[run.first_image]))
            return attn.k_norm(k).mean(dim=1)

        attended = _reduce(attended, keys, attention.mean(dim=1), values, counts, prunings, prefix)
    return _mlp(block, attended, exact=False)


@torch.no_grad()
def stage_importance(
    block: Block, tokens: Tokens, prunings: Sequence[Pruning], rows: Rows, prefix: int
) -> Float[Tensor, "B N"]:
    """What `stage_block` decides by: the importance of each image's patches in this block, under the
    criterion of its pruning. Where an image has fewer than N patches, negative beyond them."""
    normed = block.norm1(tokens.rows)
    _, source, deciding = _project(block.attn, normed, tokens.packing, rows)
    return _decide(block.attn, deciding, source, tokens, prunings, rows, prefix)[1]


def _project(
    attn: Attention, normed: Tensor, packing: Packing, rows: Rows
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The queries of all rows (None where only those that decide are computed), all keys and values, and the
    queries that decide."""
    if rows == "all" or not computes_parts(attn):
        all_queries, source = attn.qkv(normed).tensor_split((attn.num_heads * attn.head_dim,), dim=-1)
        return all_queries, source, all_queries if rows == "all" else _first_rows(all_queries, packing)
    source = keys_and_values(attn, normed)
    with torch.no_grad():
        return None, source, queries(attn, _first_rows(normed, packing))


def _mlp(block: Block, tokens: Tokens, exact: bool) -> Tokens:
    update = mlp(block.mlp, block.norm2(tokens.rows), exact)
    return _add(tokens, update, block.ls2, block.drop_path2, exact)


def _add(tokens: Tokens, update: Tensor, scale: nn.Module, drop_path: nn.Module, exact: bool) -> Tokens:
    """The tokens with their rows' update, scaled and, in training, now and then dropped."""
    if isinstance(scale, LayerScale) and not (exact or scale.training or torch.is_grad_enabled()):
        # One operation, which rounds once.
        return tokens.with_rows(torch.addcmul(tokens.rows, update, scale.gamma))
    return tokens.with_rows(tokens.rows + _drop_path(drop_path, scale(update), tokens.packing))


def _drop_path(drop_path: nn.Module, update: Tensor, packing: Packing) -> Tensor:
    return update if isinstance(drop_path, nn.Identity) else packing.map_runs(drop_path, update)


def _first_rows(rows: Tensor, packing: Packing) -> Tensor:
    """The first row (CLS) of each image: [B, D]."""
    if len(packing.runs) == 1:
        return packing.runs[0].dense(rows)[:, 0]
    return rows.index_select(0, on_device(packing.starts, rows.device))


@torch.no_grad()
def _decide(
    attn: Attention,
    deciding: Tensor,
    source: Tensor,
    tokens: Tokens,
    prunings: Sequence[Pruning],
    rows: Rows,
    prefix: int,
) -> tuple[Float[Tensor, "B H N"], Float[Tensor, "B N"]]:
    """Attention weights and importance of all patches, N being the most that an image has.

    Where an image has fewer, its attention is 0 and its importance negative. Attention is computed over the
    runs; all that follows is for the whole batch at once, each image in rows of its own, so that it is the
    same alone and in any batch.
    """
    criteria = [pruning.criterion for pruning in prunings]
    runs = list(runs_of(tokens.packing.lengths, tokens.patches))
    attention, norms = [], []
    for run in runs:
        patches = slice(prefix, prefix + tokens.patches[run.first_image])
        k, v = heads(attn, source, run)
        if rows == "all":
            (q,) = heads(attn, deciding, run)
        else:
            own = deciding[run.first_image : run.first_image + run.images]
            q = own.view(run.images, 1, attn.num_heads, attn.head_dim).transpose(1, 2)
        weights = attention_rows(attn.q_norm(q), attn.k_norm(k), attn.scale, rows)
        attention.append(weights[:, :, patches])
        if "mean_value_norm" in criteria:
            norms.append(torch.linalg.vector_norm(v[:, :, patches].float(), dim=-1))
    padded = _padded(attention)
    value_norms = _padded(norms) if norms else None
    most = padded.shape[2]
    patch_ids = seeds = None
    if "random" in criteria:
        sizes = [run.images * tokens.patches[run.first_image] for run in runs]
        ids = zip(tokens.patch_ids.split(sizes), runs, strict=True)
        patch_ids = _padded([own.view(run.images, -1) for own, run in ids])
        seeds = on_device([pruning.seed for pruning in prunings], padded.device)
    values = padded.new_empty((len(prunings), most))
    for criterion in dict.fromkeys(criteria):
        images = [image for image, own in enumerate(criteria) if own == criterion]
        if len(images) == len(prunings):
            values = importance(criterion, padded, value_norms=value_norms, patch_ids=patch_ids, seeds=seeds)
            break
        own = on_device(images, padded.device)
        values[own] = importance(
            criterion,
            padded[own],
            value_norms=None if value_norms is None else value_norms[own],
            patch_ids=None if patch_ids is None else patch_ids[own],
            seeds=None if seeds is None else seeds[own],
        )
    if min(tokens.patches) < most:
        places = torch.arange(most, device=values.device)
        missing = places >= on_device(tokens.patches, values.device).unsqueeze(1)
        values = values.masked_fill(missing, -1.0)
    return padded, values


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Parts that differ in their last dimension, under each other, with zeros where one is shorter."""
    if len(parts) == 1:
        return parts[0]
    images = sum(len(part) for part in parts)
    most = max(part.shape[-1] for part in parts)
    padded = parts[0].new_zeros((images, *parts[0].shape[1:-1], most))
    first = 0
    for part in parts:
        padded[first : first + len(part), ..., : part.shape[-1]] = part
        first += len(part)
    return padded


def _counts(
    values: Float[Tensor, "B N"],
    patches: Sequence[int],
    prunings: Sequence[Pruning],
    ratios: list[float | None],
) -> tuple[int, ...]:
    """How many patches each image keeps here. For `keep_mass` the device is asked, once for all images."""
    open_images = [image for image, ratio in enumerate(ratios) if ratio is None]
    if open_images:
        own = values[on_device(open_images, values.device)].double().clamp(min=0)
        share = own.sort(dim=1, descending=True).values.cumsum(dim=1) / own.sum(dim=1, keepdim=True)
        masses = np.array([prunings[image].keep_mass for image in open_images], np.float64)
        wanted = on_device(masses, values.device).unsqueeze(1)
        # Rounding must not ask for a patch more than there is.
        held = (share < wanted - 1e-9).sum(dim=1).tolist()
        for image, count in zip(open_images, held, strict=True):
            ratios[image] = min(count + 1, patches[image]) / patches[image]
    return tuple(
        keep_count(count, 1.0 if ratio is None else ratio)
        for count, ratio in zip(patches, ratios, strict=True)
    )


def _select(
    tokens: Tokens, values: Float[Tensor, "B N"], counts: tuple[int, ...], prefix: int
) -> tuple[Tokens, Int[Tensor, " kept"] | None]:
    """Only the ``counts[b]`` most important patches of each image, and the flat numbers of their rows (None
    where all are kept)."""
    if counts == tokens.patches:
        return tokens, None
    device = values.device
    most = max(counts)
    if min(counts) == most:
        positions = most_important(values, most)
    else:
        positions = most_important_of_each(values, on_device(counts, device), most)
    index, patch_index, lengths = _rows_that_stay(tokens, positions, counts, prefix)
    packing = Packing(lengths, rounded=takes_windows(tokens.rows))
    selected = Tokens(
        tokens.packing.select(tokens.rows, index, packing),
        packing,
        counts,
        tokens.patch_ids.index_select(0, patch_index),
        None if tokens.sizes is None else tokens.sizes.index_select(0, index),
    )
    return selected, index


def _rows_that_stay(
    tokens: Tokens, positions: Int[Tensor, "B most"], counts: tuple[int, ...], prefix: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept_patches"], tuple[int, ...]]:
    """The flat numbers of the tokens and of the patches that stay, and how many tokens each image has then,
    if the first ``counts[b]`` patches of ``positions`` stay."""
    device, most = positions.device, positions.shape[1]
    if len(counts) == 1 and tokens.packing.lengths[0] == prefix + tokens.patches[0]:
        # What follows comes to the same for an image alone without a fused token, in three times the time.
        own = positions[0]
        return torch.cat((torch.arange(prefix, device=device), own + prefix)), own, (prefix + most,)
    kept, patches = np.array(counts)[:, None], np.array(tokens.patches)[:, None]
    fused = np.array(tokens.packing.lengths)[:, None] - prefix - patches
    columns = [torch.arange(prefix, device=device).expand(len(counts), -1), prefix + positions]
    if fused.any():
        columns.append(on_device(prefix + patches, device) + torch.arange(int(fused.max()), device=device))
    place = np.arange(sum(column.shape[1] for column in columns))
    there = (place < prefix + kept) | ((place >= prefix + most) & (place < prefix + most + fused))
    index = _entries(_counted_on(torch.cat(columns, dim=1), tokens.packing.lengths), there)
    patch_index = _entries(_counted_on(positions, tokens.patches), np.arange(most) < kept)
    return index, patch_index, tuple((prefix + kept + fused)[:, 0].tolist())


def _counted_on(table: Int[Tensor, "B width"], lengths: Sequence[int]) -> Int[Tensor, "B width"]:
    """Places in each image as places in a batch of images of these lengths."""
    return table + starts_of(lengths, table.device).unsqueeze(1)


def _entries(table: Int[Tensor, "B width"], there: np.ndarray) -> Int[Tensor, " entries"]:
    """The entries of a table that are ``there`` [B, width], flat. The host knows which, so nothing waits."""
    if there.all():
        return table.flatten()
    return table.flatten().index_select(0, on_device(np.flatnonzero(there), table.device))


def _reduce(
    tokens: Tokens,
    keys: Callable[[Run], Tensor],
    attention: Float[Tensor, "B N"],
    values: Float[Tensor, "B N"],
    counts: tuple[int, ...],
    prunings: Sequence[Pruning],
    prefix: int,
) -> Tokens:
    """Fuse or merge, where that is asked for, until ``counts[b]`` patches are left.

    ``keys`` gives the keys [images, tokens, K] of a run, which `merge` compares.
    """
    reducers = [pruning.reducer for pruning in prunings]
    sizes = tokens.sizes
    if sizes is None:
        sizes = torch.ones(sum(tokens.packing.lengths), device=tokens.rows.device)
    rows, patch_ids, new_sizes, lengths = [], [], [], []
    first_patch = 0
    for run in runs_of(tokens.packing.lengths, list(zip(tokens.patches, counts, reducers, strict=True))):
        patches, count = tokens.patches[run.first_image], counts[run.first_image]
        own = slice(run.first_image, run.first_image + run.images)
        ids = tokens.patch_ids[first_patch : first_patch + run.images * patches].view(run.images, patches)
        first_patch += run.images * patches
        before, middle, after = run.dense(tokens.rows).tensor_split((prefix, prefix + patches), dim=1)
        own_sizes = run.dense(sizes.unsqueeze(1)).squeeze(2)
        middle_sizes = own_sizes[:, prefix : prefix + patches]
        if count < patches and reducers[run.first_image] == "merge":
            compared = keys(run)[:, prefix : prefix + patches]
            middle, middle_sizes, positions = merge(middle, compared, middle_sizes, count)
        elif count < patches:
            positions = most_important(values[own, :patches], count)
            fused = fuse(middle, attention[own, :patches], positions)
            middle = torch.take_along_dim(middle, positions.unsqueeze(2), dim=1)
            middle_sizes = middle_sizes[:, :count]
            after = torch.cat((after, fused), dim=1)
        else:
            positions = torch.arange(patches, device=ids.device).expand(run.images, -1)
        rows.append(torch.cat((before, middle, after), dim=1))
        patch_ids.append(ids.gather(1, positions).flatten())
        others = torch.ones((run.images, prefix + after.shape[1]), device=sizes.device)
        new_sizes.append(torch.cat((others[:, :prefix], middle_sizes, others[:, prefix:]), dim=1).flatten())
        lengths += [rows[-1].shape[1]] * run.images
    packing = Packing(tuple(lengths), rounded=takes_windows(tokens.rows))
    merged = tokens.sizes is not None or "merge" in reducers
    return Tokens(
        packing.pack(rows),
        packing,
        counts,
        torch.cat(patch_ids),
        torch.cat(new_sizes) if merged else None,
    )
