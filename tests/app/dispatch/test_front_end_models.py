"""Which models a front end knows, and when it has left one."""

import contextlib

import msgspec
import pytest

from app.dispatch.front_end_models import FrontEndModels
from app.errors import NotFound
from tests.app.fakes import LARGER, MODEL


def known() -> tuple[FrontEndModels, list[str]]:
    left: list[str] = []
    models = FrontEndModels(left.append)
    models.told([MODEL, LARGER])
    return models, left


def test_a_model_is_left_when_its_last_request_has_ended() -> None:
    """Two of them, of which one fails."""
    models, left = known()
    with models.using(LARGER):
        with contextlib.suppress(RuntimeError), models.using(LARGER):
            models.told([MODEL])
            raise RuntimeError
        assert list(models.now) == ["toy"]
        assert left == []
        assert models.named("larger") is LARGER
    assert left == ["larger"]
    assert models.named("larger") is None


def test_a_model_without_requests_is_left_at_once() -> None:
    models, left = known()
    with models.using(MODEL):
        models.told([MODEL])
        assert left == ["larger"]


def test_a_request_that_comes_too_late_is_refused() -> None:
    """Also where another model has the name by now."""
    models, left = known()
    models.told([MODEL])
    with pytest.raises(NotFound, match="unloaded while the request was arriving"), models.using(LARGER):
        pass
    models.told([MODEL, msgspec.structs.replace(LARGER, labels=tuple("abcdefg"))])
    with pytest.raises(NotFound), models.using(LARGER):
        pass
    assert left == ["larger"]


def test_a_model_that_is_told_again_is_not_left() -> None:
    """As by a successor of the dispatcher; and it stays the same object."""
    models, left = known()
    with models.using(LARGER):
        models.told([MODEL])
        models.told([MODEL, LARGER])
    assert left == []
    models.told([MODEL, msgspec.structs.replace(LARGER)])
    assert models.now["larger"] is LARGER


def test_a_model_is_the_same_on_another_device() -> None:
    """A worker that was replaced may compute elsewhere: requests go on."""
    models, left = known()
    models.told([MODEL, msgspec.structs.replace(LARGER, device="cuda:1")])
    with models.using(LARGER):
        assert models.weight("larger") > 1
    assert left == []
