"""The flags of `trimvit embed`."""

from pathlib import Path

from pydantic import Field, model_validator

from app.commands.fields import same_as
from app.commands.offline_config import OfflineConfig
from app.inference.options import EmbedOptions


class EmbedConfig(OfflineConfig):
    """Write the feature vectors of photographs into a file, without a server.

    Each PHOTO may be a file or a folder of images. The vectors are those of POST /v1/embed."""

    output: Path = Field(
        description="File for the vectors: a NumPy .npy file, float32 [photographs, features]. A file with "
        "the same name and the extension .json lists the photographs in the order of the rows, "
        "and how they were pruned."
    )
    normalize: bool = same_as(EmbedOptions, "normalize")

    @model_validator(mode="after")
    def _can_be_meant(self) -> "EmbedConfig":
        _ = self.options
        if self.output.suffix != ".npy":
            raise ValueError(f"--output must end in .npy, such as features.npy; got {self.output.name}")
        if not self.output.parent.is_dir():
            raise ValueError(f"the folder {self.output.parent} of --output does not exist")
        return self

    @property
    def options(self) -> EmbedOptions:
        """The options of each image. Raises ValueError as `pruned` does."""
        return self.pruned(EmbedOptions, normalize=self.normalize)
