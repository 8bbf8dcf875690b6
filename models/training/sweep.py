"""`trimvit sweep`: compare methods over keep ratios, as a table, plots and pictures of the kept patches.

Predictions are written per batch and timings per round, so that the same command resumes where it stopped.
The reports are created from these files at the end.
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
    """Measure whatever is missing in the output folder, and write the table, figures and plots.

    Raises ResumeError if the folder has a sweep with other settings, MissingPackageError without matplotlib,
    FolderError or ClassesError if the images do not fit a model, ModelError, OutputError and
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
    # The fingerprint loads all models first, so that an error in the last one is reported immediately.
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
        # Remarks about the folders were already logged for the fingerprint.
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
        raise  # the message already names the model
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    return loaded


class _Few:
    """Reads a few images spread over the folder, in this process. Broken images are skipped."""

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
        """Yield pixels and classes per batch."""
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
    """Return the reference method. Raises ValueError if it is not measured."""
    by_name = {method_name(*pair): pair for pair in pairs}
    if wanted is None:
        return by_name.get("variance", pairs[0])
    if wanted not in by_name:
        raise ValueError(
            f"the reference {wanted!r} must be one of the measured methods: {', '.join(by_name)}"
        )
    return by_name[wanted]


def _fingerprint(config: SweepConfig, computing: str) -> dict[str, object]:
    """Return everything that must not change when a sweep is resumed: settings, weights and images. The
    number of reader processes and of measuring rounds may change. Raises ModelError, FolderError and
    ClassesError if a model does not fit the folder."""
    left_out = {"data", "labels", "broken_images"}
    left_out |= {"output", "workers", "device", "dtype", "reference", "models", "speed", "speed_rounds"}
    left_out |= {"correlation_images", "picture_images"}
    if config.stages is None:  # sweeps that were started before this setting existed can still be resumed
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
    """Return the SHA-256 of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _resume(path: Path, fingerprint: Mapping[str, object]) -> None:
    """Check the state file, or write it if there is none. Raises ResumeError if it is from other settings."""
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
    """Return the predictions for all images. Saved batches are read; the rest are computed and saved."""
    folder = config.output / "answers" / label
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    first = 0  # index of the next batch's first image, broken or not
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
    """Measure images/s [rounds, settings] of each model, for settings with a ratio; NaN for the others.

    All models take turns within a round, so that a slowdown of the machine affects them equally. Each turn is
    saved when it ends; saved turns are not measured again.
    """
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
    """Return the path of the file for a model's turn in a round."""
    return output / "speed" / label / f"{index:04}.json"


def _pictures(
    config: SweepConfig,
    classifier: Classifier,
    labels: Sequence[str],
    pairs: Sequence[Method],
    few: _Few,
) -> list[Picture]:
    """Choose a few images spread over the folder, and show which patches every method keeps at every
    ratio."""
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
