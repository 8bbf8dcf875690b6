"""What the network is shown is what transformers' processors show it, within one level of 255 but for single
values, where torchvision rounds its weights."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from models.load import ModelError
from models.load.transformers_format.config import parse
from models.load.transformers_format.preprocessor import input_spec
from models.normalise import normalise
from models.transforms import InputSpec, photograph, to_pixels
from tests.support.examples import examples

SHIPPED = Path(__file__).parents[3] / "photographs"
SIZE = {"height": 224, "width": 224}
# Name -> the processor by torchvision, the one by Pillow, and what they are made with.
PROCESSORS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (transformers.ViTImageProcessor, ViTImageProcessorPil, {}),
    "deit": (transformers.DeiTImageProcessor, DeiTImageProcessorPil, {}),
    "deit, uneven": (
        transformers.DeiTImageProcessor,
        DeiTImageProcessorPil,
        {"size": {"height": 251, "width": 260}},
    ),
    "dinov2": (transformers.BitImageProcessor, BitImageProcessorPil, {"size": {"shortest_edge": 256}}),
    "bit": (transformers.BitImageProcessor, BitImageProcessorPil, {}),
    "clip": (transformers.CLIPImageProcessor, CLIPImageProcessorPil, {"resample": 1}),
    "siglip": (transformers.SiglipImageProcessor, SiglipImageProcessorPil, {}),
}


def config_of(size: object = 224, kind: str = "ViTForImageClassification", **more: Any) -> Any:
    content = {"architectures": [kind], "image_size": size, "patch_size": 16, **more}
    return parse(content, Path("config.json"))


def spec_of(folder: Path, processor: Any, config: Any = None) -> InputSpec:
    processor.save_pretrained(folder)
    return input_spec(folder, config or config_of())


def photographs() -> list[Path]:
    found = sorted(SHIPPED.glob("*.jpg"))
    more = os.environ.get("TRIMVIT_TEST_PHOTOGRAPHS")
    return found + sorted(Path(more).glob("*.JPEG"))[:20] if more else found


def levels(processor: Any, image: Image.Image) -> np.ndarray:
    shown = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.asarray(shown).transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("backend", [0, 1], ids=["torchvision", "pillow"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(name: str, backend: int, tmp_path: Path) -> None:
    """Of the processor by torchvision, which is the usual one, at most three values of a photograph differ by
    two levels and none by more. Pillow's goes down before it goes across where that is cheaper, and then
    differs from torchvision's, and so from ours, where the first pass overshoots."""
    of_backend, of_pillow, changes = PROCESSORS[name]
    spec = spec_of(tmp_path, of_backend(**changes))
    processor = (of_backend, of_pillow)[backend](**changes)
    assert photographs()
    for path in photographs():
        with Image.open(path) as image:
            theirs = levels(processor, photograph(image))  # upright and in sRGB, which processors leave out
        with Image.open(path) as image:
            ours = to_pixels(image, spec).astype(int)
        assert ours.shape == theirs.shape
        beyond_one = np.abs(ours - theirs) > 1
        if backend == 0:
            assert np.abs(ours - theirs).max() <= 2, path.name
            assert beyond_one.sum() <= 3, path.name
        assert beyond_one.mean() < 0.005, path.name


@pytest.mark.parametrize("name", PROCESSORS)
def test_values_are_those_of_the_processor(name: str, tmp_path: Path) -> None:
    """Rescaled and normalised, too."""
    of_backend, _, changes = PROCESSORS[name]
    changes = {**changes, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    processor = of_backend(**changes)
    spec = spec_of(tmp_path, processor)
    with Image.open(SHIPPED / "china.jpg") as image:
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        ours = normalise(torch.from_numpy(to_pixels(image, spec).copy()).unsqueeze(0), spec, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 255 / 0.4)
    assert (ours - theirs).abs().mean() < 0.1 / 255 / 0.4


@settings(max_examples=examples(20), deadline=None)
@given(
    width=st.integers(40, 90),
    height=st.integers(40, 90),
    orientation=st.integers(1, 8),
    resize=st.one_of(st.integers(31, 40), st.tuples(st.integers(31, 40), st.integers(29, 40))),
)
def test_photographs_are_cut_upright(
    width: int, height: int, orientation: int, resize: int | tuple[int, int]
) -> None:
    """Where what is cut off cannot be halved, the odd pixel is off the upright picture's right and bottom."""
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    spec = InputSpec((31, 29), (0.0,) * 3, (1.0,) * 3, "bilinear", resize=resize)
    upright = Image.fromarray(noise)
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> what undoes it
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turned[orientation]))
    stored.format = "JPEG"
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    # Rows and columns are averaged one after the other, each rounded to a level, and turned pictures in the
    # other order: either is within one level of the exact value, so they are within two of each other.
    assert np.abs(to_pixels(stored, spec).astype(int) - to_pixels(upright, spec)).max() <= 2


@pytest.mark.parametrize(
    ("given_", "resize", "size", "crop"),
    [
        ({"size": 224}, (224, 224), (224, 224), "squash"),
        ({"size": [224, 224]}, (224, 224), (224, 224), "squash"),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, (256, 256), (224, 224), "squash"),
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 250, "crop_size": 224},
            250,
            (224, 224),
            "center",
        ),
        (
            {"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 256}},
            256,
            (224, 224),
            "center",
        ),
        ({"feature_extractor_type": "DeiTFeatureExtractor"}, (256, 256), (224, 224), "squash"),
    ],
)
def test_older_forms_are_read(
    given_: dict[str, Any], resize: object, size: tuple[int, int], crop: str, tmp_path: Path
) -> None:
    """Numbers for sizes, and classes by their former names."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given_))
    spec = input_spec(tmp_path, config_of())
    assert (spec.resize, spec.size, spec.crop) == (resize, size, crop)


def test_a_step_that_is_null_is_left_out(tmp_path: Path) -> None:
    """As transformers' own processors do; other values that are null are their class's own."""
    kind = {"image_processor_type": "DeiTImageProcessor", "size": 224, "resample": None}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**kind, "do_normalize": None, "do_center_crop": None, "do_pad": None})
    )
    spec = input_spec(tmp_path, config_of())
    assert (spec.mean, spec.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (spec.resize, spec.size, spec.interpolation) == ((224, 224), (224, 224), "bicubic")


def test_a_class_that_is_unknown_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own steps cannot be known: LeViT's resizes the short side to 256 where its file says 224."""
    values = {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    content = {"image_processor_type": "LevitImageProcessor", **values}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    input_spec(tmp_path, config_of())
    assert "LevitImageProcessor, which is unknown here" in caplog.text


def test_a_preprocessor_within_a_processor_is_read(tmp_path: Path) -> None:
    """As it is saved beside a tokenizer."""
    values = {"image_processor": {"image_processor_type": "ViTImageProcessor", "image_mean": [0.3, 0.2, 0.1]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(values))
    assert input_spec(tmp_path, config_of()).mean == (0.3, 0.2, 0.1)


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, 0.5, 0.5),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.5, 0.5),
    ],
)
def test_any_scale_of_pixels_is_understood(
    changes: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    """What the network is given comes to the same, whatever the steps."""
    processor = transformers.ViTImageProcessor(**changes)
    spec = spec_of(tmp_path, processor)
    assert spec.mean == pytest.approx((mean,) * 3)
    assert spec.std == pytest.approx((std,) * 3)
    grey = np.full((224, 224, 3), 77, np.uint8)
    want = processor(Image.fromarray(grey), return_tensors="pt")["pixel_values"]
    got = normalise(torch.from_numpy(grey).unsqueeze(0), spec, torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"size": {"longest_edge": 300}}, "longest_edge"),
        ({"size": {"height": 224}}, "height"),
        ({"size": "large"}, "large"),
        ({"resample": 4}, "resample 4"),
        ({"do_pad": True}, "do_pad"),
        ({"do_center_crop": True, "crop_size": 256}, "black borders"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"image_mean": "grey"}, "image_mean"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"image_processor_type": "OddImageProcessor"}, "OddImageProcessor"),
    ],
)
def test_what_is_not_computed_here_is_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=said):
        input_spec(tmp_path, config_of())


def test_without_a_file_it_is_the_classs_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the network's size, and the log says so."""
    with caplog.at_level(logging.WARNING):
        spec = input_spec(tmp_path, config_of(size=96, kind="DeiTForImageClassification"))
    assert "preprocessor_config.json" in caplog.text
    assert (spec.size, spec.resize, spec.interpolation) == ((96, 96), (109, 109), "bicubic")


def test_a_network_of_a_fixed_size_decides_over_the_preprocessor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers would refuse every image; the same share of it is shown at the network's size."""
    processor = transformers.BitImageProcessor(size={"shortest_edge": 256})
    with caplog.at_level(logging.WARNING):
        spec = spec_of(tmp_path, processor, config_of(size=112))
    assert "224 x 224" in caplog.text
    assert (spec.size, spec.resize) == ((112, 112), 128)
