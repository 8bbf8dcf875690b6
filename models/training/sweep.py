"""`trimvit sweep`: methods compared over keep ratios, as a table, plots and pictures of the kept patches.

Answers are written batch by batch and timings round by round, so that the same command goes on where it
stopped; the figures are made of these files at the end.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from models.classifier import Classifier, ImageRequest
from models.device import choose_device, choose_dtype
from models.files import write_whole
from models.load import LoadedModel, ModelError
from models.pictures import cells_of, dimmed
from models.schedule import Pruning, method_name
from models.training.answers import Answers, Method, Row, answers_to, methods, rows_of, settings_of
from models.training.config import SweepConfig
from models.training.correlation import RankCorrelation, rank_correlation
from models.training.data import Sample, spread_samples
from models.training.labelled import load_to_measure, samples_for
from models.training.loading import BrokenImages, evaluation_batches
from models.training.outputs import make_output_folder
from models.training.packages import MissingPackageError
from models.training.resuming import ResumeError, check_same_run, digest_of_names
from models.training.speed import speed_round
from models.training.sweep_report import Picture, plot_figures, pruning_ratios, replace_file, write_figures

STATE = "state.json"


def sweep(config: SweepConfig) -> list[Row]:
    """Measure what the output folder does not hold yet, and write table, figures and plots.

    Raises ResumeError if the folder holds a sweep of other settings, MissingPackageError without
    matplotlib, ModelError, FolderError and ClassesError where the images do not fit a model, OutputError and
    BrokenImageError.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError("the plots need matplotlib: pip install 'trimvit[train]'")
    device = choose_device(config.device)
    dtype = choose_dtype(device, config.dtype)
    broken = BrokenImages(config.broken_images)
    pairs = methods(config.criteria, config.reducers)
    reference = _reference(config.reference, pairs)
    settings = settings_of(config.keep_ratios, pairs, config.keep_masses)
    # All models before the first hour of work: a mistake in the last one is told now.
    computing = f"{device.partition(':')[0]} {str(dtype).removeprefix('torch.')}"
    fingerprint = _fingerprint(config, computing)
    make_output_folder(config.output, config.data)
    _resume(config.output / STATE, fingerprint)

    answers: dict[str, Answers] = {}
    correlations: list[tuple[str, RankCorrelation]] = []
    pictures: dict[str, list[Picture]] = {}
    timed: dict[str, tuple[Classifier, _Few]] = {}
    for label, model in config.labelled_models.items():
        loaded = _load(config, model)
        # What a folder's names mean was told when the fingerprint was taken.
        samples = samples_for(loaded.card, config.data, tells=False)
        classifier = Classifier(loaded.model, loaded.input, device, dtype)
        images = spread_samples(samples, config.limit)
        answers[label] = _answers(config, label, classifier, settings, images, broken)
        few = _Few(config, samples, classifier, broken)
        if config.speed:
            timed[label] = classifier, few
        if loaded.model.stages.blocks:
            batches = (pixels for pixels, _ in few(config.correlation_images))
            correlations.append(
                (label, rank_correlation(classifier, batches, list(dict.fromkeys(config.criteria))))
            )
            pictures[label] = _pictures(config, classifier, loaded.labels, pairs, few)
    speeds = _speeds(config, timed, settings)
    rows = [
        row
        for label, own in answers.items()
        for row in rows_of(settings, own, reference=reference, speeds=speeds.get(label), model=label)
    ]
    write_figures(config, computing, rows, correlations)
    plot_figures(config, rows, correlations, pictures, [method_name(*pair) for pair in pairs])
    return rows


def _load(config: SweepConfig, model: str) -> LoadedModel:
    try:
        loaded = load_to_measure(config, model)
        for mass in config.keep_masses:
            loaded.model.stages.allowing(Pruning(keep_mass=mass))
    except ModelError:
        raise  # it names the model
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    return loaded


class _Few:
    """A few images spread over the folder, in this process; what is broken is left out."""

    def __init__(
        self, config: SweepConfig, samples: Sequence[Sample], classifier: Classifier, broken: BrokenImages
    ) -> None:
        self._config = config
        self._samples = samples
        self._classifier = classifier
        self._broken = broken

    def __call__(
        self, images: int, batch_size: int | None = None
    ) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Pixels and classes, a batch at a time."""
        batches = evaluation_batches(
            spread_samples(self._samples, images),
            self._classifier.spec,
            self._broken,
            batch_size=batch_size or self._config.batch_size,
            workers=0,
        )
        for batch in batches:
            if len(batch.numbers):
                yield torch.from_numpy(batch.pixels), batch.truth.tolist()


def _reference(wanted: str | None, pairs: Sequence[Method]) -> Method:
    """Raises ValueError for a method that is not swept."""
    by_name = {method_name(*pair): pair for pair in pairs}
    if wanted is None:
        return by_name.get("variance", pairs[0])
    if wanted not in by_name:
        raise ValueError(
            f"the reference {wanted!r} must be one of the measured methods: {', '.join(by_name)}"
        )
    return by_name[wanted]


def _fingerprint(config: SweepConfig, computing: str) -> dict[str, object]:
    """What must not change between the parts of one sweep: settings, weights and images. How many processes
    read and how often is measured may. Raises ModelError, FolderError and ClassesError for a model that does
    not fit the folder."""
    left_out = {"data", "labels", "broken_images"}
    left_out |= {"output", "workers", "device", "dtype", "reference", "models", "speed", "speed_rounds"}
    left_out |= {"correlation_images", "picture_images"}
    if config.stages is None:  # sweeps that began before there was a choice go on
        left_out.add("stages")
    weights, images = {}, {}
    for label, model in config.labelled_models.items():
        loaded = _load(config, model)
        samples = samples_for(loaded.card, config.data)
        weights[label] = _weights_digest(loaded.model.vit)
        images[label] = digest_of_names((path for path, _ in samples), config.data)
    return {
        **config.model_dump(mode="json", exclude=left_out),
        "models": weights,
        "images": images,
        "computing": computing,
    }


def _weights_digest(network: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _resume(path: Path, fingerprint: Mapping[str, object]) -> None:
    """Raises ResumeError if the state is of other settings; writes it if there is none."""
    if not path.exists():
        replace_file(path, json.dumps(fingerprint, indent=1) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResumeError(f"{path} cannot be read ({error}); choose another output folder") from error
    check_same_run(path.parent, there, fingerprint)


def _answers(
    config: SweepConfig,
    label: str,
    classifier: Classifier,
    settings: Sequence[Pruning],
    samples: Sequence[Sample],
    broken: BrokenImages,
) -> Answers:
    """The answers to all images: those that are there, and the rest computed and written batch by batch."""
    folder = config.output / "answers" / label
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    first = 0  # number of the next batch's first image, broken or not
    while (path := folder / f"{first:08}.npz").exists():
        with np.load(path) as arrays:
            parts.append(Answers(**arrays))
        first += config.batch_size
    batches = evaluation_batches(
        samples,
        classifier.spec,
        broken,
        batch_size=config.batch_size,
        workers=config.workers,
        first=min(first, len(samples)),
    )
    progress = tqdm(
        batches,
        initial=len(parts),
        total=len(parts) + len(batches),
        desc=f"{label}: answers",
        unit="batch",
        dynamic_ncols=True,
    )
    for batch in progress:
        part = answers_to(classifier, batch, settings)
        write_whole(folder / f"{first:08}.npz", partial(_save_answers, part))
        parts.append(part)
        first += config.batch_size
    broken.tell(of=len(samples))
    return Answers.joined(parts)


def _save_answers(answers: Answers, file: BinaryIO) -> None:
    np.savez(file, **asdict(answers))


def _speeds(
    config: SweepConfig, models: Mapping[str, tuple[Classifier, _Few]], settings: Sequence[Pruning]
) -> dict[str, np.ndarray]:
    """Images/s [rounds, settings] of each model, of what goes by ratio, and nan for the rest. In a round all
    models have their turn, so a machine that slows down slows them all alike. Each turn is written when it is
    over; turns that are there are not measured again."""
    by_ratio = [setting.keep_mass is None for setting in settings]
    own = [setting for setting, is_by_ratio in zip(settings, by_ratio, strict=True) if is_by_ratio]
    batches: dict[str, list[torch.Tensor]] = {}
    turns = [(index, label) for index in range(config.speed_rounds) for label in models]
    open_ = [turn for turn in turns if not _turn_path(config.output, *turn).exists()]
    for label, (classifier, few) in models.items():
        _turn_path(config.output, 0, label).parent.mkdir(parents=True, exist_ok=True)
        if any(label == its for _, its in open_):
            batches[label] = [pixels for pixels, _ in few(config.batch_size * config.speed_batches)]
            speed_round(classifier, batches[label][:1], own)
    for index, label in tqdm(open_, desc="speed", unit="turn", dynamic_ncols=True, disable=not open_):
        measured = [round(speed, 3) for speed in speed_round(models[label][0], batches[label], own)]
        replace_file(_turn_path(config.output, index, label), json.dumps(measured))
    speeds = {}
    for label in models:
        speeds[label] = np.full((config.speed_rounds, len(settings)), np.nan)
        paths = (_turn_path(config.output, index, label) for index in range(config.speed_rounds))
        speeds[label][:, by_ratio] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return speeds


def _turn_path(output: Path, index: int, label: str) -> Path:
    """Where a model's turn in a round is written."""
    return output / "speed" / label / f"{index:04}.json"


def _pictures(
    config: SweepConfig,
    classifier: Classifier,
    labels: Sequence[str],
    pairs: Sequence[Method],
    few: _Few,
) -> list[Picture]:
    """A few images spread over the folder, with what every method leaves of them at every ratio."""
    pictures: list[Picture] = []
    if config.picture_images == 0:
        return pictures
    grid, patch = classifier.model.arch.grid, classifier.model.vit.patch_embed.proj
    for pixels, truth in few(config.picture_images, batch_size=1):
        seen = pixels[0].numpy()
        kept = []
        for criterion, reducer in pairs:
            requests = [
                ImageRequest(Pruning(ratio, criterion, reducer, seed=len(pictures)), 1, kept_patches=True)
                for ratio in pruning_ratios(config)
            ]
            predictions = classifier.classify(pixels.expand(len(requests), -1, -1, -1), requests)
            left = [prediction.kept[-1] for prediction in predictions if prediction.kept]
            kept.append([dimmed(cells_of(own, grid), seen, patch.kernel_size, patch.stride) for own in left])
        pictures.append(Picture(labels[truth[0]], seen, kept))
    return pictures
