"""Applies reducers run by run, where a run is neighbouring images that are reduced alike."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.criteria import most_important
from models.plan import Group
from models.ragged import Run, runs_of
from models.reducers import fuse, merge, transform
from models.reduction.reducible import Reduced, Reducible


def reduced_by_runs(batch: Reducible) -> Reduced:
    """Reduce the whole batch, run by run."""
    tokens, stage = batch.tokens, batch.stage
    alike = list(zip(stage.selected_patches, stage.counts, stage.reducers, strict=True))
    parts = [_reduced_run(batch, run) for run in runs_of(tokens.packing.lengths, alike)]
    rows = stage.after.pack([part.rows for part in parts])
    return Reduced(rows, torch.cat([part.ids for part in parts]), torch.cat([part.sizes for part in parts]))


def _reduced_run(batch: Reducible, run: Run) -> Reduced:
    """Reduce one run. The rows of the result are dense."""
    stage, prefix, first = batch.stage, batch.prefix, run.first_image
    patches, count, reducer = stage.selected_patches[first], stage.counts[first], stage.reducers[first]
    middle = slice(prefix, prefix + patches)
    before, rows, after = run.dense(batch.tokens.rows).tensor_split((prefix, middle.stop), dim=1)
    sizes_before, sizes, sizes_after = (
        run.dense(batch.sizes.unsqueeze(1)).squeeze(2).tensor_split((prefix, middle.stop), dim=1)
    )
    ids = run.dense(batch.tokens.ids.unsqueeze(1)).squeeze(2)[:, middle]
    if count < patches and reducer == "merge":
        rows, sizes, places = merge(rows, _compared(batch, run, patches), sizes, count)
        ids = ids.gather(1, places)
    elif count < patches and reducer == "transform":
        places = _most_important(batch, run, patches, count)
        rows, sizes = transform(rows, _compared(batch, run, patches), sizes, places)
        ids = ids.gather(1, places)
    elif count < patches and reducer == "pool":
        assert batch.pool is not None
        rows, sizes, ids = batch.pool(rows, sizes, ids, count)
    elif count < patches:
        places = _most_important(batch, run, patches, count)
        fused = fuse(rows, batch.weights[run.of_images, :patches], places)
        rows = torch.take_along_dim(rows, places.unsqueeze(2), dim=1)
        sizes, ids = sizes[:, :count], ids.gather(1, places)
        after = torch.cat((after, fused), dim=1)
        sizes_after = F.pad(sizes_after, (0, 1), value=patches - count)
    return Reduced(
        torch.cat((before, rows, after), dim=1),
        F.pad(ids, (prefix, after.shape[1]), value=-1).flatten(),  # only patches have a place
        torch.cat((sizes_before, sizes, sizes_after), dim=1).flatten(),
    )


def _most_important(batch: Reducible, run: Run, patches: int, count: int) -> Tensor:
    return most_important(batch.values[run.of_images, :patches], count)


def _compared(batch: Reducible, run: Run, patches: int) -> Tensor:
    """The keys [images, patches, K] of a run's patches."""
    as_they_came = Run(run.first_image, run.images, batch.stage.before.starts[run.first_image], run.tokens)
    return batch.keys(Group(as_they_came, patches))[:, batch.prefix : batch.prefix + patches]
