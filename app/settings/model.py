"""Settings of the served models, and the defaults of requests."""

from typing import ClassVar

from pydantic import BaseModel, Field, field_validator

from app.settings.own_defaults import NO_DEFAULTS, OwnDefaults, own_defaults
from app.settings.served_models import ServedModel, loadable_models, served_models
from app.settings.types import File
from models.bundled import BUNDLED_MODEL
from models.image_sizes import InputSize
from models.schedule import Criterion, Method, Reducer, Rows
from models.stage_flag import BlocksFlag


class ModelSettings(BaseModel):
    """Settings of the served models, and the defaults of requests."""

    repeated_flags: ClassVar[frozenset[str]] = frozenset({"model", "loadable", "model_default"})

    model: str = Field(
        BUNDLED_MODEL,
        description="Name of a bundled model, of a timm model (weights from the hub) or of a repository "
        "OWNER/NAME on the hub, or path of a file or folder that timm, transformers or a "
        "training script saved. trimvit-small-109 has 109 classes, trimvit-small-imagenette has ten, "
        "deit_small_patch16_224.fb_in1k has a thousand. To serve several models, give each as "
        "NAME=REFERENCE, separated by commas or with the flag repeated; the first is the "
        "default.",
    )
    model_repository: bool = Field(
        False,  # noqa: FBT003
        description="Allows clients to list, load and unload models while serving (Triton's model "
        "repository, POST /v2/repository/...). Only models that --model and --loadable name "
        "can be loaded. With API keys, loading and unloading needs a key marked admin.",
    )
    loadable: str | None = Field(
        None,
        description="Model that can be loaded while serving, as NAME=REFERENCE. Separate several by "
        "commas, or repeat the flag. Needs --model-repository.",
    )
    architecture: str | None = Field(
        None, description="timm architecture of weights that do not contain its name."
    )
    patch_stride: int | None = Field(
        None,
        ge=1,
        description="Distance between neighboring patches in pixels, at most the patch size. Default: that "
        "of the checkpoint, or the patch size.",
    )
    input_size: InputSize = Field(
        None,
        description="Input size of the network in pixels: 224, or height x width such as 224x448. The "
        "position embedding is resampled. Default: that of the checkpoint.",
    )
    labels: File | None = Field(
        None, description="File with the labels in class order: one per line, or JSON (a list or a map)."
    )
    head: File | None = Field(
        None,
        description="Safetensors file with a classification head for the network: `weight` and `bias` (as "
        "written by trimvit head), or `class_embeddings` (zero-shot), with `labels`.",
    )
    stages: BlocksFlag = Field(
        None,
        description="Blocks in which patches are pruned, counted from 1, or `every`: the same number of "
        "patches in every block (ToMe's schedule, with the reducer merge). Default: those of "
        "the checkpoint, or 4, 7, 10 of 12.",
    )
    rows: Rows | None = Field(
        None,
        description="Attention rows that the criterion reads: cls, or all (the mean over all queries). "
        "Default: that of the checkpoint, or cls if the model has a CLS token.",
    )
    default_keep_ratio: float = Field(
        1.0, gt=0, le=1, description="Keep ratio of requests that do not specify one. 1 prunes nothing."
    )
    default_criterion: Criterion | None = Field(
        None,
        description="Criterion of requests that do not specify one. Default: that of the checkpoint, or "
        "variance.",
    )
    default_reducer: Reducer | None = Field(
        None,
        description="Reducer of requests that do not specify one. Default: that of the checkpoint, or drop.",
    )
    model_default: str | None = Field(
        None,
        description="Default of one model in place of --default-OPTION, as NAME.OPTION=VALUE, such as "
        "small.keep_ratio=0.5. OPTION is keep_ratio, criterion, reducer or deadline_ms. Separate several by "
        "commas, or repeat the flag.",
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

    @field_validator("model_default")
    @classmethod
    def _are_defaults(cls, given: str | None) -> str | None:
        if given is not None:
            own_defaults(given)
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
        """Every model that may be loaded while serving, by name. It includes the default one, which is never
        unloaded."""
        listed = (*self.models[1:], *self.loadable_models)
        return {model.name: model for model in listed if model.name is not None}

    def own_defaults(self, name: str | None) -> OwnDefaults:
        """The defaults that ``model_default`` sets for the model of that name."""
        if self.model_default is None or name is None:
            return NO_DEFAULTS
        return own_defaults(self.model_default).get(name, NO_DEFAULTS)

    def method_of(self, name: str | None, checkpoint: Method) -> Method:
        """The criterion and reducer of images that name none: the default of the model of that name, else
        that of the server, else that of its checkpoint."""
        own = self.own_defaults(name)
        return Method(
            checkpoint.stages,
            own.criterion or self.default_criterion or checkpoint.criterion,
            own.reducer or self.default_reducer or checkpoint.reducer,
        )
