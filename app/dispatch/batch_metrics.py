"""Metrics of the batches that workers have computed."""

from collections.abc import Sequence
from typing import get_args

from prometheus_client import Counter, Histogram, Summary

from app.dispatch.fleet import Computing
from app.messages.image import Ask, Lowered, Prediction
from app.messages.model import ModelInfo
from app.messages.to_dispatcher import Done
from app.telemetry import metrics, tallies
from app.telemetry.tallies import CounterTally, HistogramTally
from models.schedule import Reducer, compute, macs, tokens_after

_WRITE_EVERY_S = 0.25
_MOST_SIZES = 64  # batch sizes that are counted separately, because each is a label value
_MOST_REMEMBERED = 4096  # a limit is needed, because clients choose the ratios


class BatchMetrics:
    """Counts batches, and writes the counts into the metrics from time to time."""

    def __init__(self) -> None:
        self._all: list[CounterTally | HistogramTally] = []
        self._batches = {form: self._counter(metrics.BATCHES.labels(form)) for form in ("dense", "ragged")}
        # All series exist from the start, so that the first event shows as a rise.
        self._lowered = {
            reason: self._counter(metrics.LOWERED.labels(reason)) for reason in get_args(Lowered)
        }
        self._images = self._histogram(metrics.BATCH_IMAGES)
        self._tokens = self._histogram(metrics.BATCH_TOKENS)
        self._fill = self._histogram(metrics.BATCH_FILL)
        self._seconds = self._histogram(metrics.BATCH_SECONDS)
        self._error = self._histogram(metrics.PREDICTION_ERROR)
        self._ratio = self._histogram(metrics.APPLIED_KEEP_RATIO)
        self._kept = self._counter(metrics.PATCHES_KEPT)
        self._pruned = self._counter(metrics.PATCHES_PRUNED)
        self._unpruned_macs = self._counter(metrics.COMPUTE_UNPRUNED)
        self._saved_macs = self._counter(metrics.COMPUTE_SAVED)
        self._second_runs = self._counter(metrics.SECOND_RUNS)
        self._second_macs = self._counter(metrics.COMPUTE_SECOND_RUNS)
        self._by_model: dict[tuple[str, int], HistogramTally] = {}  # by model and images
        self._unwritten_since: float | None = None
        self._model: ModelInfo | None = None
        self._macs = 0  # MACs of an unpruned image
        self._lengths: dict[tuple[float, Reducer], tuple[int, ...]] = {}

    def due(self, *, idle: bool) -> float | None:
        """When to write. None if there is nothing to write. While no image is open, it is so soon that a
        client that has all answers finds all of them counted (app.telemetry.tallies)."""
        if self._unwritten_since is None:
            return None
        return self._unwritten_since + (tallies.LATEST_S / 2 if idle else _WRITE_EVERY_S)

    def write(self) -> None:
        """Write the counts into the metrics."""
        if self._unwritten_since is not None:
            for tally in self._all:
                tally.write()
            self._unwritten_since = None

    def count(
        self,
        model: ModelInfo,
        batch_tokens: int,
        computing: Computing,
        done: Done,
        error: float | None,
        now: float,
    ) -> None:
        """Count a batch. ``batch_tokens``: the size of a full batch. ``error``: the relative error of its
        predicted time; None if there was no prediction."""
        answered = [
            (order.ask, found)
            for order, found in zip(computing.orders, done.results, strict=True)
            if isinstance(found, Prediction)
        ]
        if not answered:
            return
        if self._unwritten_since is None:
            self._unwritten_since = now
        if model is not self._model:
            self._remember(model)
        tokens = computing.batch.tokens
        self._images.observe(len(answered))
        self._tokens.observe(tokens)
        self._fill.observe(tokens / batch_tokens)
        self._seconds.observe(done.seconds)
        self._of_model(model.name, len(answered)).observe(done.seconds)
        if error is not None:
            self._error.observe(abs(error))
        self._count_images(model, answered)
        for reason in computing.lowered:
            if reason is not None:
                self._lowered[reason].add()

    def _of_model(self, model: str, images: int) -> HistogramTally:
        size = images if images <= _MOST_SIZES else 0
        if (tally := self._by_model.get((model, size))) is None:
            child = metrics.MODEL_BATCH_SECONDS.labels(model, str(size) if size else "more")
            tally = self._by_model[model, size] = self._histogram(child)
        return tally

    def _counter(self, counter: Counter) -> CounterTally:
        tally = CounterTally(counter)
        self._all.append(tally)
        return tally

    def _histogram(self, histogram: Histogram | Summary) -> HistogramTally:
        tally = HistogramTally(histogram)
        self._all.append(tally)
        return tally

    def _count_images(self, model: ModelInfo, answered: Sequence[tuple[Ask, Prediction]]) -> None:
        arch, stages = model.architecture, model.method.stages
        all_kept, saved, second_runs, again = 0, 0.0, 0, 0.0
        lengths = set()
        for ask, found in answered:
            pruning = ask.pruning
            self._ratio.observe(found.keep_ratio)
            all_kept += found.kept_counts[-1] if found.kept_counts else arch.patches
            first_run = found.compute
            if found.runs == 2:
                first_run = compute(arch, stages, pruning.keep_ratio, pruning.reducer)
                second_runs += 1
                again += found.compute - first_run
            saved += max(0.0, 1 - first_run)  # `pool` and `transform` may cost more than they save
            ratio = pruning.keep_ratio if pruning.keep_mass is None else found.keep_ratio
            lengths.add(self._lengths.get((ratio, pruning.reducer)) or self._find(ratio, pruning.reducer))
        self._batches["dense" if len(lengths) == 1 else "ragged"].add()
        self._kept.add(all_kept)
        self._pruned.add(arch.patches * len(answered) - all_kept)
        self._unpruned_macs.add(self._macs * len(answered))
        self._saved_macs.add(self._macs * saved)
        self._second_runs.add(second_runs)
        self._second_macs.add(self._macs * again)

    def _remember(self, model: ModelInfo) -> None:
        arch, stages = model.architecture, model.method.stages
        self._model, self._lengths = model, {}
        self._macs = macs(arch, stages, (arch.patches,) * len(stages.blocks))

    def _find(self, ratio: float, reducer: Reducer) -> tuple[int, ...]:
        """The tokens of an image after each stage of its first run."""
        assert self._model is not None
        arch = self._model.architecture
        if len(self._lengths) >= _MOST_REMEMBERED:
            self._lengths.clear()
        counts = self._model.method.stages.keep_counts(arch.patches, ratio)
        lengths = self._lengths[ratio, reducer] = tokens_after(arch, counts, reducer)
        return lengths
