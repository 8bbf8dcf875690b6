"""Images and one request each -> predictions. Combines preprocessing, model and scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.cascade import margins, second_run_compute
from models.device import input_dtype
from models.families.family import Wanted
from models.finite import all_finite
from models.graphs import GraphedModel
from models.linear.int8 import Int8Linear
from models.linear.kernels import make_kernels
from models.linear.layer import replace_linears
from models.linear.mlp import mlp
from models.linear.packed import PackedLinear, PackedPatches, can_pack, packs_patches
from models.load.errors import ModelError
from models.normalise import levels_of, normalise
from models.patch_product import PatchProduct, is_a_product
from models.pruned_vit import Output, PrunedViT
from models.ragged import Tokens, on_device
from models.schedule import UNPRUNED, Criterion, Pruning, compute_of_counts
from models.scores import Scores
from models.static_attention import settle
from models.transforms import InputSpec


@runtime_checkable
class Request(Protocol):
    """The request for one image: an `ImageRequest`, or another object with these members."""

    @property
    def pruning(self) -> Pruning:
        """How to prune the image."""

    @property
    def top_k(self) -> int:
        """The number of labels."""

    @property
    def kept_patches(self) -> bool:
        """Whether to return the kept patches."""

    @property
    def margin(self) -> float | None:
        """The margin of a cascade; None for one run."""

    @property
    def logits(self) -> bool:
        """Whether to return the logits of all classes."""

    @property
    def features(self) -> bool:
        """Whether to return the feature vector."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The request for one image: how to prune it, the number of labels, whether to return the kept patches,
    the logits of all classes and the feature vector.

    With a ``margin``, the image is computed again without pruning if the probability of its first label
    exceeds that of the second by at most ``margin`` (see models.cascade).
    """

    pruning: Pruning
    top_k: int = 5
    kept_patches: bool = False
    margin: float | None = None
    logits: bool = False
    features: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    ``classes`` and ``scores`` (from 0 to 1) of the top_k labels, best first. ``kept[s]``: ascending indices,
    row by row in the patch grid, of the patches left after stage s (None if not requested).
    ``kept_counts[s]``: their number. ``keep_ratio``: the applied ratio (with `keep_mass`, the resulting
    ratio; 1 if the image was computed again without pruning). ``compute``: the share of the unpruned model's
    MACs, of both runs if there were two. ``runs``: 1 or 2. ``logits``: float32, for all classes in order.
    ``features``: the feature vector in float32, of the second run if there were two. Both are None if not
    requested.
    """

    classes: Int[np.ndarray, " top_k"]
    scores: Float[np.ndarray, " top_k"]
    kept_counts: tuple[int, ...]
    kept: tuple[Int[np.ndarray, " _"], ...] | None
    keep_ratio: float
    compute: float
    runs: int
    logits: Float[np.ndarray, " classes"] | None = None
    features: Float[np.ndarray, " features"] | None = None


class Classifier:
    """A model on its device and in its dtype. Several threads may classify with it at the same time.

    The model is changed in place. In int8, the linear layers of the blocks compute in int8, and everything
    else, such as the patch embedding and the head, in the CPU's default dtype. On a GPU, each thread should
    have its own stream. ``graphs``: run small batches as CUDA graphs (models.graphs). ``exact``: see
    `PrunedViT`. ``scores``: how logits become scores.
    """

    def __init__(
        self,
        model: PrunedViT,
        spec: InputSpec,
        device: str,
        dtype: torch.dtype,
        *,
        graphs: bool = False,
        exact: bool = False,
        scores: Scores = "softmax",
    ) -> None:
        blocks = model.family.blocks
        parts = {
            f"{block}.attn.{name}": parts
            for block in _blocks_in_parts(model)
            for name, parts in model.family.parts_asked(blocks[block].attn).items()
        }
        if dtype == torch.int8:
            replace_linears(blocks, Int8Linear, parts)
        settle(tuple(blocks))
        self._between = input_dtype(device, dtype)
        self.model = model.to(device=device, dtype=self._between).eval()
        self.model.exact = exact
        _refuse_overflow(self.model, self._between)
        if device == "cpu" and can_pack(self._between):
            replace_linears(blocks, PackedLinear, parts)
            if packs_patches(model.vit.patch_embed):
                model.packed_patches = PackedPatches(model.vit.patch_embed.proj)
        if torch.device(device).type == "cuda" and is_a_product(model.vit.patch_embed):
            model.packed_patches = PatchProduct(model.vit.patch_embed.proj)
        self.spec = spec
        self._scores = scores
        self._levels = levels_of(spec, torch.device(device))
        self.device = device
        self.dtype = dtype
        self._graphs = GraphedModel(self.model) if graphs else None
        self._forward: Callable[[Tensor, Sequence[Pruning]], Output] = self._graphs or self.model
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)  # so that any stream may read the weights

    @torch.inference_mode()
    def make_kernels(self, most_rows: int, enough_s: float) -> None:
        """Create the linear layers' kernels for pruned batches of up to ``most_rows`` rows in advance.

        Stops after ``enough_s`` seconds. Does nothing if a new number of rows is not slow (see
        `Way.rounding`).
        """
        like = next(self.model.parameters())
        if self.model.blocks_for(like).way.rounding:
            # All blocks are alike, except static ones, which only see unpruned images. Only stages and blocks
            # with clusters compute parts of the projection.
            model, paca, in_parts = self.model, self.model.arch.paca, _blocks_in_parts(self.model)
            block = model.family.blocks[in_parts[0] if in_parts else -1]
            wanted: tuple[Wanted, ...] = ("qkv", "q", "kv") if in_parts else ("qkv",)
            projections: list[Callable[[Tensor], object]] = [
                partial(model.family.project, block.attn, wanted=one) for one in wanted
            ]
            if paca is not None:
                projections.append(partial(mlp, model.family.blocks[paca.blocks[0]].clusters.mlp))
            make_kernels(block, projections, like, most_rows, enough_s)

    @torch.inference_mode()
    def capture_graphs(self, criterion: Criterion) -> None:
        """Capture the calling thread's CUDA graphs for ragged batches pruned by ``criterion``.

        Does nothing without ``graphs``. Other threads should not compute while one captures.
        """
        if self._graphs is not None:
            black = torch.zeros((1, *self.spec.size, 3), dtype=torch.uint8)
            self._graphs.warm_up(self._inputs(black), criterion)

    @torch.inference_mode()
    def classify(
        self, pixels: UInt8[Tensor, "B height width 3"], requests: Sequence[Request]
    ) -> list[Prediction]:
        """Return one prediction per image, in order.

        A ``top_k`` above the number of classes returns all classes; a model without a head returns none.
        """
        if len(pixels) != len(requests):
            raise ValueError(f"{len(pixels)} images, but {len(requests)} requests")
        inputs = self._inputs(pixels)
        prunings = [request.pruning for request in requests]
        if all(request.margin is None for request in requests):
            output = self._forward(inputs, prunings)
            first, again = output, frozenset[int]()
        else:
            first, output, again = self._cascade(inputs, requests)
        most = min(max(request.top_k for request in requests), self.model.vit.num_classes)
        scores, classes = self._best(output.logits, most)
        of_all = output.logits.float().cpu().numpy() if any(each.logits for each in requests) else None
        features = self._features(output, requests)
        kept = output.kept.on_host() if any(request.kept_patches for request in requests) else []
        counts_of_first = [tuple(counts) for counts in first.kept.counts.T.tolist()]
        counts_of_last = [tuple(counts) for counts in output.kept.counts.T.tolist()]
        arch, stages = self.model.arch, self.model.stages
        predictions = []
        for image, request in enumerate(requests):
            counts = counts_of_first[image]
            ratio, share = (
                request.pruning.keep_ratio,
                compute_of_counts(arch, stages, counts, request.pruning.reducer),
            )
            if request.pruning.keep_mass is not None and counts:
                ratio = counts[0] / arch.patches
            if image in again:
                ratio, share = 1.0, share + second_run_compute(arch, stages)
            predictions.append(
                Prediction(
                    classes=classes[image, : request.top_k],
                    scores=scores[image, : request.top_k],
                    kept_counts=counts_of_last[image],
                    kept=kept[image] if request.kept_patches else None,
                    keep_ratio=ratio,
                    compute=share,
                    runs=2 if image in again else 1,
                    logits=of_all[image] if of_all is not None and request.logits else None,
                    features=features.get(image),
                )
            )
        return predictions

    @torch.inference_mode()
    def compare(
        self, pixels: UInt8[Tensor, "B height width 3"], prunings: Sequence[Sequence[Pruning]]
    ) -> list[Output]:
        """Compute the same images under several prunings, one output for each entry of ``prunings``
        [settings][B]. Everything before the first stage is computed only once."""
        tokens = self.begin(pixels)
        return [self.model.finish(tokens, of_images) for of_images in prunings]

    @torch.inference_mode()
    def begin(self, pixels: UInt8[Tensor, "B height width 3"]) -> Tokens:
        """Compute the tokens before the first stage (see `PrunedViT.begin`)."""
        return self.model.begin(self._inputs(pixels))

    def scores_of(self, logits: Float[Tensor, "B classes"]) -> Float[Tensor, "B classes"]:
        """Convert logits to scores from 0 to 1: a softmax over all classes, or a sigmoid per class."""
        logits = logits.float()
        return logits.sigmoid() if self._scores == "sigmoid" else logits.softmax(dim=1)

    def _best(
        self, logits: Float[Tensor, "B classes"], most: int
    ) -> tuple[Float[np.ndarray, "B most"], Int[np.ndarray, "B most"]]:
        """The scores and indices of the ``most`` best classes, best first."""
        if most == 0:
            nothing = np.empty((len(logits), 0))
            return nothing, nothing.astype(int)
        best = self.scores_of(logits).topk(most, dim=1)
        return best.values.cpu().numpy(), best.indices.cpu().numpy()

    def _features(
        self, output: Output, requests: Sequence[Request]
    ) -> dict[int, Float[np.ndarray, " features"]]:
        """The feature vectors of the images that request one, by index. Only these leave the device."""
        asked = [image for image, request in enumerate(requests) if request.features]
        if not asked:
            return {}
        pooled = output.pooled
        if len(asked) < len(requests):
            pooled = pooled[on_device(asked, pooled.device)]
        found = self.model.family.features(pooled).float().cpu().numpy()
        return dict(zip(asked, found, strict=True))

    def _inputs(self, pixels: UInt8[Tensor, "B height width 3"]) -> Float[Tensor, "B channels height width"]:
        return normalise(on_device(pixels, torch.device(self.device)), self.spec, self._between, self._levels)

    def _cascade(self, inputs: Tensor, requests: Sequence[Request]) -> tuple[Output, Output, frozenset[int]]:
        """Run the cascade. Returns the output of the first run, the same output with uncertain images
        replaced by their unpruned second run, and the indices of these images."""
        tokens = self.model.begin(inputs)
        first = self.model.finish(tokens, [request.pruning for request in requests])
        margin = margins(self.scores_of(first.logits).cpu().numpy())
        again = [
            image
            for image, request in enumerate(requests)
            if request.margin is not None and request.pruning.prunes and margin[image] <= request.margin
        ]
        if not again:
            return first, first, frozenset()
        second = self.model.finish(tokens.of_images(again), [UNPRUNED] * len(again))
        logits, pooled = first.logits.clone(), first.pooled.clone()
        places = on_device(again, logits.device)
        logits[places], pooled[places] = second.logits, second.pooled
        return first, Output(logits, first.kept.replaced(again, second.kept), pooled), frozenset(again)


def _blocks_in_parts(model: PrunedViT) -> tuple[int, ...]:
    """The blocks that compute queries separately from keys and values: stages, and blocks with clusters."""
    paca = model.arch.paca
    return (*model.stages.blocks, *(() if paca is None else paca.blocks))


def _refuse_overflow(model: PrunedViT, dtype: torch.dtype) -> None:
    """Raise ModelError for weights that are finite in float32 but overflow in ``dtype``."""
    for name, tensor in model.vit.state_dict().items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise ModelError(
                f"{name} has values outside the range of {str(dtype).removeprefix('torch.')} "
                f"({torch.finfo(dtype).max:g}); choose --dtype bfloat16 or float32"
            )
