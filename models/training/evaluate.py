"""`trimvit evaluate`: measure cost and accuracy of each method at each keep ratio, on the same images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.classifier import Classifier
from models.device import choose_device, choose_dtype
from models.training.answers import Answers, Row, answers_to, methods, rows_of, settings_of
from models.training.config import EvaluateConfig
from models.training.data import spread_samples
from models.training.labelled import load_to_measure, samples_for
from models.training.loading import BrokenImages, evaluation_batches
from models.training.markdown import markdown
from models.training.outputs import check_output_file
from models.training.speed import speed_round

_TIMED_BATCHES = 2
_ROUNDS = 3


def evaluate(config: EvaluateConfig) -> list[Row]:
    """Measure a row per ratio and method; ratio 1 has a single row. Raises ModelError, BrokenImageError, and
    FolderError or ClassesError if the folder does not fit the model."""
    if config.output is not None:
        check_output_file(config.output)
    device = choose_device(config.device)
    loaded = load_to_measure(config, config.model)
    samples = spread_samples(samples_for(loaded.card, config.data), config.limit)
    classifier = Classifier(loaded.model, loaded.input, device, choose_dtype(device, config.dtype))
    reducers = config.reducers or (loaded.method.reducer,)
    settings = settings_of(config.keep_ratios, methods(config.criteria, reducers))
    broken = BrokenImages(config.broken_images)
    parts: list[Answers] = []
    timed: list[Tensor] = []
    batches = evaluation_batches(
        samples, loaded.input, broken, batch_size=config.batch_size, workers=config.workers
    )
    for batch in tqdm(batches, unit="batch", dynamic_ncols=True):
        parts.append(answers_to(classifier, batch, settings))
        if len(batch.numbers) and len(timed) < _TIMED_BATCHES:
            timed.append(torch.from_numpy(batch.pixels))
    broken.tell(of=len(samples))
    speed_round(classifier, timed[:1], settings)
    speeds = np.array([speed_round(classifier, timed, settings) for _ in range(_ROUNDS)])
    rows = rows_of(settings, Answers.joined(parts), speeds=speeds, model=loaded.name)
    return rows if 1.0 in config.keep_ratios else rows[1:]


_Column = tuple[str, Callable[[Row], str]]
_COLUMNS: tuple[_Column, ...] = (
    ("keep_ratio", lambda row: f"{row.keep_ratio:g}" if row.keep_mass is None else f"{row.keep_ratio:.2f}"),
    ("method", lambda row: row.method),
    ("top-1 %", lambda row: f"{row.top1:.2f} ± {row.top1_error:.2f}"),
    ("change", lambda row: f"{row.top1_change:+.2f} ± {row.top1_change_error:.2f}"),
    ("agreement %", lambda row: f"{row.agreement:.2f} ± {row.agreement_error:.2f}"),
    ("compute", lambda row: f"{row.compute:.3f}"),
)


def table(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table.

    The columns for model, mass, difference and speed are only included if they are needed.
    """
    columns = list(_COLUMNS)
    if any(row.keep_mass is not None for row in rows):
        columns.insert(1, ("keep_mass", lambda row: "" if row.keep_mass is None else f"{row.keep_mass:g}"))
    references = {row.reference for row in rows if row.reference is not None}
    if references:
        change = next(place for place, (title, _) in enumerate(columns) if title == "change")
        columns.insert(change + 1, (f"against {references.pop()}", _difference))
    if any(row.images_per_s is not None for row in rows):
        columns.append(("images/s", _images_per_s))
    if len({row.model for row in rows}) > 1:
        columns.insert(0, ("model", lambda row: row.model))
    return markdown([[title for title, _ in columns], *([text(row) for _, text in columns] for row in rows)])


def _difference(row: Row) -> str:
    return "" if row.difference is None else f"{row.difference:+.2f} ± {row.difference_error:.2f}"


def _images_per_s(row: Row) -> str:
    if row.images_per_s is None:
        return ""
    if row.images_per_s_low is None or row.images_per_s_high is None:
        return f"{row.images_per_s:.1f}"
    return f"{row.images_per_s:.1f} ({row.images_per_s_low:.1f} to {row.images_per_s_high:.1f})"
