"""The models whose weights come with the package. Settings name them, so nothing here imports torch."""

from pathlib import Path

BUNDLED_MODEL = "trimvit-small-109"  # the default
BUNDLED_MODELS = (BUNDLED_MODEL, "trimvit-small-imagenette")
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
