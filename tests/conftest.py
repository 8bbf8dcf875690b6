"""What every test shares."""

import gc
import os
import sys
from collections.abc import Generator, Iterator

import jaxtyping
import pillow_heif
import pytest
from hypothesis import settings
from PIL import Image

from tests.support.examples import DEFAULT, THOROUGH

# As the command line does: the tests share their cores with servers of their own. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tests start hundreds of Python processes. Where the environment forbids files of bytecode, each would
# compile torch and timm again, which is nearly half of what a server's start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No deadline: the machine may be busy, and no test here is about time. Every run draws other examples.
settings.register_profile("trimvit", deadline=None, print_blob=True, max_examples=DEFAULT)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=THOROUGH)
settings.load_profile("trimvit")


def _save_heif(image: Image.Image, file: object, _name: object) -> None:
    pillow_heif.from_pillow(image).save(file, **image.encoderinfo)


# The product decodes HEIC and has no encoder; tests write one as they write every other format.
Image.register_save("HEIF", _save_heif)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """While modules are imported and tests collected, nearly nothing is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What is there now stays: no looking for garbage in it, again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders of slow files first and those of many quick ones last, so that at the end of a run in two
    processes none waits long for the other."""
    ranks = {"contract": 0, "system": 0, "app": 2, "clients": 2, "deploy": 2}
    items.sort(key=lambda item: ranks.get(item.nodeid.split("/")[1], 1))


@pytest.fixture(scope="module")
def without_shape_checks() -> Iterator[None]:
    """For tests of whole commands on tiny networks, where checking the shapes of every call takes up to half
    of the time. The tests of what these commands call have the checks."""
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003
    yield
    jaxtyping.config.update("jaxtyping_disable", False)  # noqa: FBT003
