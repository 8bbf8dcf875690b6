"""Which models are served, and what images get that ask for nothing."""

from typing import ClassVar

from pydantic import BaseModel, Field, field_validator

from app.settings.served_models import ServedModel, loadable_models, served_models
from app.settings.types import File
from models.image_sizes import InputSize
from models.schedule import Criterion, Reducer, Rows
from models.stage_flag import BlocksFlag

BUNDLED_MODEL = "trimvit-small-imagenette"


class ModelSettings(BaseModel):
    """Which models are served, and what images get that ask for nothing."""

    repeated_flags: ClassVar[frozenset[str]] = frozenset({"model", "loadable"})

    model: str = Field(
        BUNDLED_MODEL,
        description="Bundled name, timm name (weights from the hub), OWNER/NAME on the hub, or the path of a "
        "file or folder that timm, transformers or a training script saved. The bundled model knows ten "
        "classes; deit_small_patch16_224.fb_in1k knows a thousand. Several as NAME=REFERENCE, with the flag "
        "given again or commas between them; the first is the default.",
    )
    model_repository: bool = Field(
        False,  # noqa: FBT003
        description="List, load and unload models while serving, by POST /v2/repository/... (Triton's model "
        "repository). What may be loaded is what --model and --loadable name. With API keys only those "
        "marked admin may load and unload.",
    )
    loadable: str | None = Field(
        None,
        description="NAME=REFERENCE of a model that may be loaded while serving, with the flag given again "
        "or commas between several. It takes --model-repository.",
    )
    architecture: str | None = Field(
        None, description="timm architecture of weights that do not name their own."
    )
    patch_stride: int | None = Field(
        None,
        ge=1,
        description="Pixels from one patch to the next, at most the patch size. Default: the checkpoint's, "
        "else the patch size.",
    )
    input_size: InputSize = Field(
        None,
        description="Pixels that the network sees: 224, or height x width as 224x448. The position embedding "
        "is resampled. Default: the checkpoint's.",
    )
    labels: File | None = Field(
        None, description="File of labels in class order: one a line, or JSON (a list or a map)."
    )
    head: File | None = Field(
        None,
        description="Safetensors file of a head that is put on the network: `weight` and `bias` (as trimvit "
        "head writes), or `class_embeddings` (zero-shot), with `labels`.",
    )
    stages: BlocksFlag = Field(
        None,
        description="Blocks that prune, counted from 1, or `every`: a few patches in every block, as many in "
        "each (ToMe's way, with the reducer merge). Default: the checkpoint's, else 4, 7, 10 of 12.",
    )
    rows: Rows | None = Field(
        None,
        description="Attention rows that decide. Default: the checkpoint's, else CLS where there is one.",
    )
    default_keep_ratio: float = Field(
        1.0, gt=0, le=1, description="Ratio of images that ask for none. 1 prunes nothing."
    )
    default_criterion: Criterion | None = Field(
        None, description="Criterion of images that ask for none. Default: the checkpoint's, else variance."
    )
    default_reducer: Reducer | None = Field(
        None, description="Reducer of images that ask for none. Default: the checkpoint's, else drop."
    )

    @field_validator("model")
    @classmethod
    def _can_be_taken_apart(cls, given: str) -> str:
        served_models(given)
        return given

    @field_validator("loadable")
    @classmethod
    def _are_named(cls, given: str | None) -> str | None:
        if given is not None:
            loadable_models(given)
        return given

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models that ``model`` names, the default one first."""
        return served_models(self.model)

    @property
    def loadable_models(self) -> tuple[ServedModel, ...]:
        """The models that ``loadable`` names."""
        return () if self.loadable is None else loadable_models(self.loadable)

    @property
    def listed_models(self) -> dict[str, ServedModel]:
        """By its name, every model that may be loaded while serving: the default one is never unloaded."""
        listed = (*self.models[1:], *self.loadable_models)
        return {model.name: model for model in listed if model.name is not None}
