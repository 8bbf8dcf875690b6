"""What is counted of a batch that a worker has computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.messages.image import Ask, Fault, Lowered, Prediction
from app.messages.model import ModelInfo
from app.telemetry import metrics
from models.schedule import compute, keep_counts, macs, tokens_after


@dataclass(frozen=True, slots=True)
class Computed:
    """One image of it: what was asked, what came out, and why its ratio was lowered, if it was."""

    ask: Ask
    result: Prediction | Fault
    lowered: Lowered | None


def count_batch(
    info: ModelInfo, batch_tokens: int, tokens: int, seconds: float, images: Sequence[Computed]
) -> None:
    """Count a batch of so many ``tokens``, of which ``batch_tokens`` would have filled it."""
    answered = [(image.ask, image.result) for image in images if isinstance(image.result, Prediction)]
    if not answered:
        return
    lengths = {_lengths(info, ask, prediction) for ask, prediction in answered}
    metrics.BATCHES.labels("dense" if len(lengths) == 1 else "ragged").inc()
    metrics.BATCH_IMAGES.observe(len(answered))
    metrics.BATCH_TOKENS.observe(tokens)
    metrics.BATCH_FILL.observe(tokens / batch_tokens)
    metrics.BATCH_SECONDS.observe(seconds)
    arch, stages = info.architecture, info.method.stages
    unpruned = macs(arch, stages, (arch.patches,) * len(stages.blocks))
    all_kept, saved, second_runs, again = 0, 0.0, 0, 0.0
    for ask, prediction in answered:
        metrics.APPLIED_KEEP_RATIO.observe(prediction.keep_ratio)
        all_kept += prediction.kept_counts[-1] if prediction.kept_counts else arch.patches
        first_run = prediction.compute
        if prediction.runs == 2:
            first_run = compute(arch, stages, ask.pruning.keep_ratio, ask.pruning.reducer)
            second_runs += 1
            again += prediction.compute - first_run
        saved += 1 - first_run
    metrics.PATCHES_KEPT.inc(all_kept)
    metrics.PATCHES_PRUNED.inc(arch.patches * len(answered) - all_kept)
    metrics.COMPUTE_UNPRUNED.inc(unpruned * len(answered))
    metrics.COMPUTE_SAVED.inc(unpruned * saved)
    if second_runs:
        metrics.SECOND_RUNS.inc(second_runs)
        metrics.COMPUTE_SECOND_RUNS.inc(unpruned * again)
    for image in images:
        if image.lowered is not None:
            metrics.LOWERED.labels(image.lowered).inc()


def _lengths(info: ModelInfo, ask: Ask, prediction: Prediction) -> tuple[int, ...]:
    """Tokens of an image after each stage of its first run."""
    ratio = ask.pruning.keep_ratio if ask.pruning.keep_mass is None else prediction.keep_ratio
    arch = info.architecture
    counts = keep_counts(arch.patches, ratio, len(info.method.stages.blocks))
    return tokens_after(arch, counts, ask.pruning.reducer)
