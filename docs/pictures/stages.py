"""Draws stages.png: a photograph and what is left of it after each stage. Run from the project's folder:

python docs/pictures/stages.py tests/photographs/china.jpg docs/pictures/stages.png
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest
from models.load import load
from models.pictures import cells_of, dimmed
from models.transforms import to_pixels

KEEP_RATIO = 0.5
GAP, CAPTION = 12, 30


def main(photograph: Path, output: Path) -> None:
    loaded = load(BUNDLED_MODEL)
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    pixels = to_pixels(Image.open(photograph), loaded.input)
    request = ImageRequest(loaded.method.pruning(KEEP_RATIO), top_k=1, kept_patches=True)
    (prediction,) = classifier.classify(torch.from_numpy(pixels.copy()).unsqueeze(0), [request])
    arch, stages = loaded.model.arch, loaded.model.stages
    projection = loaded.model.vit.patch_embed.proj
    panels = [(Image.fromarray(pixels), f"{arch.patches} patches")]
    assert prediction.kept is not None
    for block, kept in zip(stages.blocks, prediction.kept, strict=True):
        picture = dimmed(cells_of(kept, arch.grid), pixels, projection.kernel_size, projection.stride)
        panels.append((Image.fromarray(picture), f"block {block + 1}: {len(kept)} left"))
    height, width, _ = pixels.shape
    drawing = Image.new("RGB", (len(panels) * (width + GAP) + GAP, height + GAP + CAPTION), "white")
    draw = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(16)
    for index, (panel, caption) in enumerate(panels):
        left = GAP + index * (width + GAP)
        drawing.paste(panel, (left, GAP))
        draw.text((left, height + GAP + 4), caption, fill="black", font=font)
    drawing.save(output, optimize=True)
    label = loaded.labels[int(prediction.classes[0])]
    print(f"{label} {prediction.scores[0]:.3f} at keep ratio {KEEP_RATIO}, compute {prediction.compute:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
