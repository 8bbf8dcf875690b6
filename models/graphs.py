"""CUDA graphs of the forward pass of small batches.

Such a pass is limited by launching its hundreds of kernels; a graph needs one launch. If all images are
pruned in the same way, a graph is captured for this pruning and number of images (rounded up to a power of
two) after a few requests. Until then, and if the capture fails, the batch is computed eagerly. Other batches
use the graphs of ragged_graphs.py, which are captured during the warm-up. Everything else is left to the
model itself: large batches, `keep_mass` (reads lengths from the device), `random` (a seed for each image).
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from models.kept import Kept
from models.pruned_vit import Output, PrunedViT
from models.ragged_graphs import Capture, RaggedGraphs, Tables
from models.schedule import Criterion, Pruning

log = logging.getLogger(__name__)

MOST_IMAGES = 32
GRAPHS = 16
ASKED_BEFORE = 3


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured graph. ``replay`` computes ``tables`` (logits, input of the head, `Kept.ids`) from the
    content of ``pixels``. ``kept`` is that of the captured pass; only its ``ids`` change."""

    pixels: Tensor
    tables: Tables
    replay: Callable[[], None]
    kept: Kept


@dataclass(slots=True)
class _Shape:
    """A batch shape: how often it was requested, its graph once captured, and whether the capture failed."""

    asked: int = 0
    graph: _Graph | None = None
    failed: bool = False


class _OfThread(threading.local):
    """A thread's graphs. They share one memory pool, which is safe as long as no two are replayed at once.
    So each thread, with its own stream, has its own graphs, and outputs are copied before the next replay."""

    def __init__(self) -> None:
        self.shapes: OrderedDict[tuple[int, Pruning], _Shape] = OrderedDict()
        self.capture: Capture | None = None
        self.ragged: RaggedGraphs | None = None


class GraphedModel:
    """Called like the model, and returns the same, from CUDA graphs where possible. In inference mode only.

    ``new_capture`` creates the object that captures a thread's graphs, once per thread.
    """

    def __init__(self, model: PrunedViT, new_capture: Callable[[], Capture] | None = None) -> None:
        self._model = model
        self._new_capture = new_capture or CudaCapture
        self._of_thread = _OfThread()

    def warm_up(self, like: Float[Tensor, "_ C height width"], criterion: Criterion) -> None:
        """Capture this thread's graphs of ragged batches pruned by ``criterion``, for such images."""
        self._of_thread.ragged = RaggedGraphs(self._model, criterion, self._capture_of_thread())
        self._of_thread.ragged.warm_up(like)

    def __call__(self, pixels: Float[Tensor, "B C height width"], prunings: Sequence[Pruning]) -> Output:
        """Compute the output like `PrunedViT`, from a graph if there is one."""
        images = len(pixels)
        if len(prunings) != images or images > MOST_IMAGES:
            return self._model(pixels, prunings)
        alike = {replace(pruning, seed=0) for pruning in prunings}
        if len(alike) != 1:
            ragged = self._of_thread.ragged
            output = None if ragged is None else ragged.compute(pixels, prunings)
            return self._model(pixels, prunings) if output is None else output
        (pruning,) = alike
        if pruning.keep_mass is not None or pruning.criterion == "random":
            return self._model(pixels, prunings)
        graph = self._graph(pixels, pruning)
        if graph is None:
            return self._model(pixels, prunings)
        # The other rows hold images of an earlier batch. Images do not affect each other.
        graph.pixels[:images].copy_(pixels)
        graph.replay()
        logits, pooled, ids = graph.tables
        kept = Kept(ids.clone(), graph.kept.starts[:, :images], graph.kept.counts[:, :images])
        return Output(logits[:images].clone(), kept, pooled[:images].clone())

    def _graph(self, pixels: Tensor, pruning: Pruning) -> _Graph | None:
        """This thread's graph for such a batch, captured now if it has been requested often enough."""
        shapes = self._of_thread.shapes
        images = 1 << (len(pixels) - 1).bit_length()
        shape = shapes.setdefault((images, pruning), _Shape())
        shapes.move_to_end((images, pruning))
        if len(shapes) > GRAPHS:
            shapes.popitem(last=False)
        shape.asked += 1
        if shape.graph is None and not shape.failed and shape.asked > ASKED_BEFORE:
            try:
                shape.graph = self._capture(pixels, images, pruning)
            except RuntimeError:
                log.exception(
                    "cannot capture a CUDA graph for %d images of %s, computing them eagerly", images, pruning
                )
                shape.failed = True
        return shape.graph

    def _capture(self, pixels: Tensor, images: int, pruning: Pruning) -> _Graph:
        static = pixels.new_zeros((images, *pixels.shape[1:]))

        kept: list[Kept] = []

        def forward() -> Tables:
            output = self._model(static, [pruning] * images)
            kept[:] = [output.kept]
            return output.logits, output.pooled, output.kept.ids

        replay, tables = self._capture_of_thread()(forward)
        return _Graph(static, tables, replay, kept[0])

    def _capture_of_thread(self) -> Capture:
        if self._of_thread.capture is None:
            self._of_thread.capture = self._new_capture()
        return self._of_thread.capture


class CudaCapture:
    """Captures on the calling thread's current stream, which must not be the default one."""

    # PyTorch allows one capture at a time in a process.
    _one_at_a_time = threading.Lock()

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], Tables]) -> tuple[Callable[[], None], Tables]:
        """Capture ``forward``. Returns a function that replays it in the same memory, and its outputs."""
        with self._one_at_a_time:
            for _ in range(2):  # the first calls initialize libraries, which cannot be captured
                forward()
            graph = torch.cuda.CUDAGraph()
            # Other threads continue to allocate and copy on their own streams.
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",
            ):
                tables = forward()
            return graph.replay, tables
