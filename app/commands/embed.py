"""`trimvit embed`: photographs in, feature vectors out, without a server."""

import json
from collections.abc import Sequence

import numpy as np

from app.commands.embed_config import EmbedConfig
from app.commands.failures import FAILED, UsageError, complain, reports_expected_errors
from app.commands.offline import Failed, decoded_batches, load, outcomes, progress_over
from app.commands.photographs import find
from app.errors import InvalidValue
from app.inference.asks import ask_of
from app.inference.embeddings import embedding_of
from app.messages.model import ModelInfo
from models.files import write_whole
from models.names import shown


@reports_expected_errors
def embed(config: EmbedConfig, operands: Sequence[str]) -> int:
    """Write the vectors of all photographs that could be read. The exit code is 0 if all could be read, 1 if
    some could not (standard error says which), and 2 for wrong usage."""
    found = find(operands)
    for line in (*found.remarks, *found.failures):
        complain("embed", line)
    if not found.photographs:
        return FAILED
    classifier, model = load(config)
    try:
        ask = ask_of(config.options, config.settings, model, features=True)
    except InvalidValue as problem:
        raise UsageError(problem.detail) from problem

    names: list[str] = []
    vectors: list[np.ndarray] = []
    with progress_over(found.photographs, shown=True) as progress:
        for batch in decoded_batches(found.photographs, model, config):
            for outcome in outcomes(classifier, batch, model, ask):
                if isinstance(outcome, Failed):
                    complain("embed", f"{shown(str(outcome.photograph))}: {outcome.problem.detail}")
                    continue
                image, prediction = outcome
                for warning in image.seen.warnings:
                    complain("embed", f"{image.photograph}: {warning}")
                names.append(str(image.photograph))
                vectors.append(embedding_of(prediction, normalize=config.normalize))
            progress.update(len(batch))
    if vectors:
        _write(config, model, names, np.stack(vectors))
        print(f"{len(vectors)} vectors of {vectors[0].size} features in {config.output}")
    failed = len(found.photographs) - len(vectors)
    if failed:
        complain("embed", f"{failed} of {len(found.photographs)} photographs have no vector")
    return FAILED if failed or found.failures else 0


def _write(config: EmbedConfig, model: ModelInfo, names: Sequence[str], vectors: np.ndarray) -> None:
    """Raises OSError."""
    asked = config.options.model_dump(exclude_none=True, exclude_defaults=True, mode="json")
    about = {"model": model.name, "options": asked, "photographs": names}
    write_whole(config.output, lambda file: np.save(file, vectors))
    text = json.dumps(about, indent=1).encode()
    write_whole(config.output.with_suffix(".json"), lambda file: file.write(text))
