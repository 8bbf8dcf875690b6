"""Access to the Hugging Face hub and its local cache: check whether the hub responds, and download models in
transformers' format."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from models.load.errors import ModelError, first_line
from models.load.files import read_json, shards_in
from models.load.transformers_format.config import CONFIG, is_transformers, is_wrapper, parse
from models.load.transformers_format.preprocessor import PREPROCESSOR, PROCESSOR

log = logging.getLogger(__name__)

_ANSWERS_S = 10.0
# In transformers' order of preference.
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_INDEX_ENDING = ".index.json"


@contextmanager
def offline_unless_the_hub_answers() -> Iterator[None]:
    """Within this context, use only the local cache if the hub does not respond. The hub's own client would
    retry for a minute, even if all files are cached."""
    if constants.HF_HUB_OFFLINE:
        yield
        return
    why = _why_it_does_not_answer()
    if why is not None:
        log.warning("%s does not respond (%s); using the local cache only", constants.ENDPOINT, why)
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def transformers_folder(repository: str) -> Path | None:
    """Download a model in transformers' format, ``owner/name`` or ``owner/name@revision``, and return its
    folder in the local cache. Uses only the cache if the hub does not respond. Returns None if the repository
    is not in that format.

    Raises ModelError if files are not available, or if the model is not a supported classifier.
    """
    name, _, revision = repository.partition("@")

    def file(of: str) -> Path:
        return Path(hf_hub_download(name, of, revision=revision or None))

    with offline_unless_the_hub_answers():
        try:
            config = file(CONFIG)
        except Exception:
            # Without a config.json it is not a transformers model. Loading it with timm reports other errors.
            return None
        content = read_json(config)
        if is_transformers(content):
            assert isinstance(content, dict)
            parse(content, config)  # raises ModelError before the weights are downloaded
        elif not is_wrapper(content):
            return None
        try:
            for of in (PREPROCESSOR, PROCESSOR):
                _optional(file, of)
            weights = next((path for of in _WEIGHTS if (path := _optional(file, of))), None)
            if weights is not None and weights.name.endswith(_INDEX_ENDING):
                for shard in shards_in(weights):
                    file(shard)
        except Exception as error:
            # Downloads can fail in many ways: the network, the hub, or the files on it.
            raise _not_had(repository, error) from error
    if weights is None:
        raise _not_had(
            repository, FileNotFoundError(f"it contains none of {', '.join(_WEIGHTS)} (or the cache)")
        )
    return config.parent


def _optional(file: Callable[[str], Path], name: str) -> Path | None:
    try:
        return file(name)
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except EntryNotFoundError:
        return None


def what_to_do(error: Exception, without_the_hub: str) -> str:
    """Return advice for a failed download: how to get access if the hub denies it, otherwise how to work
    without the hub (``without_the_hub``)."""
    if isinstance(error, GatedRepoError):
        return (
            "The repository is gated: request access on its page, and set HF_TOKEN to an access token of "
            "that account"
        )
    response = getattr(error, "response", None)
    if isinstance(error, RepositoryNotFoundError) or getattr(response, "status_code", None) in (401, 403):
        return (
            "The hub has no repository of this name, or it is private: check the name, or set HF_TOKEN to "
            "an access token that can read it"
        )
    return f"If the hub cannot be reached, {without_the_hub}"


def _not_had(repository: str, error: Exception) -> ModelError:
    folder = "copy the repository's folder here and pass its path: --model /path/to/folder"
    return ModelError(
        f"the weights of hf-hub:{repository} could not be loaded: {first_line(error)} "
        f"{what_to_do(error, folder)}"
    )


def _why_it_does_not_answer() -> str | None:
    """Return why the hub does not respond, or None if it does. Runs in a thread to limit the total time: a
    host may have many addresses, and the client waits for each."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            # The library's session is configured with the proxies. Any response will do. Which exceptions it
            # raises depends on the version.
            get_session().head(constants.ENDPOINT, timeout=_ANSWERS_S)
        except Exception as error:
            outcome.append(first_line(error))
        else:
            outcome.append(None)

    asking = threading.Thread(target=ask, name="hub", daemon=True)
    asking.start()
    asking.join(_ANSWERS_S)
    return outcome[0] if outcome else f"no response within {_ANSWERS_S:g} s"
