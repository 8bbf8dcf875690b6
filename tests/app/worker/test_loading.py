"""What is told of a loaded model, and what the log warns of."""

import logging
from dataclasses import replace

import pytest
import torch

from app.settings.settings import Settings
from app.worker.loading import check_defaults, describe, fingerprint, load_model
from models.load import LoadedModel
from models.offered import OF_ANY_MODEL, REDUCERS_OF_ANY_MODEL
from models.schedule import CRITERIA, REDUCERS
from tests.system.small_network import save_small_network


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A small network with a cascade that does not say what it was fitted in."""
    path = tmp_path_factory.mktemp("loading") / "small.safetensors"
    save_small_network(path)
    return load_model(Settings(model=str(path)))


def fitted_in(loaded: LoadedModel, dtype: str | None) -> LoadedModel:
    assert loaded.cascade is not None
    return replace(loaded, card=replace(loaded.card, cascade=replace(loaded.cascade, dtype=dtype)))


def test_a_cascade_that_was_fitted_in_another_dtype_is_warned_of(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """With both dtypes, once; it is served all the same."""
    with caplog.at_level(logging.WARNING):
        told = describe(fitted_in(loaded, "float32"), "cpu:0", torch.bfloat16)
    (record,) = caplog.records
    assert "was fitted in float32 but is served in bfloat16" in record.getMessage()
    assert told.cascade is not None
    assert told.dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_in_its_own_dtype_or_an_unknown_one_nothing_is_said(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture, dtype: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        describe(fitted_in(loaded, dtype), "cpu:0", torch.bfloat16)
    assert caplog.records == []


def test_a_default_criterion_that_the_model_has_not_is_refused(loaded: LoadedModel) -> None:
    """The server's own, or the one of a model's own defaults; by name."""
    path = Settings().model
    check_defaults(Settings(default_criterion="life"), loaded)
    assert describe(loaded, "cpu:0", torch.float32).criteria == CRITERIA
    others = loaded.at_stages((1,))
    assert describe(others, "cpu:0", torch.float32).criteria == OF_ANY_MODEL
    own = Settings(model=f"small={path},other={path}", model_default="small.criterion=life")
    for settings in (Settings(default_criterion="life"), own):
        with pytest.raises(ValueError, match="the criterion life needs a life predictor"):
            check_defaults(settings, others)
    check_defaults(Settings(default_criterion="mad"), others)


def test_a_default_reducer_that_the_model_has_not_is_refused(loaded: LoadedModel) -> None:
    """As a criterion is."""
    check_defaults(Settings(default_reducer="pool"), loaded)
    assert describe(loaded, "cpu:0", torch.float32).reducers == REDUCERS
    others = loaded.at_stages((1,))
    assert describe(others, "cpu:0", torch.float32).reducers == REDUCERS_OF_ANY_MODEL
    with pytest.raises(ValueError, match="the reducer pool needs learned queries"):
        check_defaults(Settings(default_reducer="pool"), others)
    check_defaults(Settings(default_reducer="merge"), others)


def test_a_fingerprint_is_that_of_the_weights(loaded: LoadedModel) -> None:
    """The same twice; any number that changes, in any tensor, changes it, whatever its dtype."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    first = fingerprint(network)
    assert fingerprint(network) == first
    assert fingerprint(network.to(torch.bfloat16)) != first
    of_bfloat16 = fingerprint(network)
    with torch.no_grad():
        network[0].bias[4] += 1
    assert fingerprint(network) != of_bfloat16
    assert len({fingerprint(loaded.model.vit), first, of_bfloat16}) == 3
