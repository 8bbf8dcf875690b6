"""The Hugging Face hub and its local cache: whether the hub responds, and the files of a model in
transformers' format as a folder."""

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
# As transformers prefers them.
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_INDEX_ENDING = ".index.json"


@contextmanager
def offline_unless_the_hub_answers() -> Iterator[None]:
    """Use only the local cache if the hub does not respond. Its own client would retry for a minute, even if
    everything that is needed is in the cache."""
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
    """The folder of the local cache with a model that transformers saved, ``owner/name`` or
    ``owner/name@revision``, downloaded where the hub answers; None if it is not in that format.

    Raises ModelError if its files cannot be had, or it is no classifier that can be served.
    """
    name, _, revision = repository.partition("@")

    def file(of: str) -> Path:
        return Path(hf_hub_download(name, of, revision=revision or None))

    with offline_unless_the_hub_answers():
        try:
            config = file(CONFIG)
        except Exception:
            # Without one it is not transformers'; what else is wrong is found where timm looks.
            return None
        content = read_json(config)
        if is_transformers(content):
            assert isinstance(content, dict)
            parse(content, config)  # refused before its weights are downloaded
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
            # Of files on the hub, and of the way to it, anything can be wrong.
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
    """Advice for the error of a download: what to do if the hub refuses it, and otherwise how to do without
    the hub."""
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
    """Why the hub does not respond; None if it does. The total time is limited: a host may have many
    addresses that do not respond, and each is waited for."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            # Its session knows the endpoint and the proxies. Any answer will do; errors differ between
            # versions.
            get_session().head(constants.ENDPOINT, timeout=_ANSWERS_S)
        except Exception as error:
            outcome.append(first_line(error))
        else:
            outcome.append(None)

    asking = threading.Thread(target=ask, name="hub", daemon=True)
    asking.start()
    asking.join(_ANSWERS_S)
    return outcome[0] if outcome else f"no response within {_ANSWERS_S:g} s"
