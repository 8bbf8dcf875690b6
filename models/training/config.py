"""The settings of the training commands. The command line, the resume state and the model card share them.

This file has more than 300 lines because each setting has the description that `--help` prints.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.bundled import BUNDLED_MODEL
from models.dtypes import DtypeName
from models.image_sizes import InputSize
from models.schedule import Criterion, Reducer
from models.stage_flag import BlocksFlag

Ratio = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Settings that several commands share.
BatchSize = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=0, description="Number of processes that read images.")]
Dtype = Annotated[DtypeName, Field(description="As for trimvit serve.")]
Model = Annotated[str, Field(description="Model reference, as for trimvit serve.")]
InputSizeFlag = Annotated[InputSize, Field(description="As for trimvit serve.")]
StagesFlag = Annotated[BlocksFlag, Field(description="Blocks that prune, as for trimvit serve.")]
PacaBlocksFlag = Annotated[
    BlocksFlag,
    Field(
        description="Blocks in which tokens attend to learned clusters of the patches (PaCa), such as 1,2,3, "
        "or every for all blocks that do not prune. Default: none."
    ),
]
Architecture = Annotated[
    str | None, Field(description="timm architecture of a file that does not contain its name.")
]
Reducers = Annotated[
    tuple[Reducer, ...],
    Field(
        min_length=1,
        description="Reducers, each combined with each criterion. merge and pool use none and are measured "
        "once.",
    ),
]
BrokenPolicy = Annotated[
    Literal["skip", "stop"],
    Field(description="What to do with an image that cannot be read: skip it and report it, or stop."),
]
Labels = Annotated[
    Path | None,
    Field(description="Labels of a checkpoint that has none, in class order, as for trimvit serve."),
]
Limit = Annotated[int | None, Field(ge=1, description="Maximum number of images, spread over the folder.")]


class TrainConfig(BaseModel):
    """Fine-tune a pretrained ViT on a folder of images (one sub-folder per class) with pruning enabled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="Folder with one sub-folder of training images per class.")
    output: Path = Field(description="Folder for the checkpoint, the resume state and the log.")
    architecture: str = Field("vit_small_patch14_dinov2", description="timm name of the network.")
    weights: Path | None = Field(
        None, description="Weights file to start from. Default: timm's, from the hub."
    )
    labels: Path | None = Field(
        None, description="JSON file that maps folder names to labels. Default: the folder names."
    )
    image_size: int = Field(224, gt=0, description="Side of the input in pixels.")
    patch_stride: int | None = Field(
        None,
        ge=1,
        description="Distance between neighboring patches in pixels. If it is smaller than the patch size, "
        "patches overlap and there are more of them. Default: the patch size.",
    )
    stages: StagesFlag = None
    trained: Literal["all", "head"] = Field(
        "all",
        description="What to train: the whole network, or only its head (a linear probe).",
    )
    frozen_blocks: int = Field(
        0,
        ge=0,
        description="Number of first blocks that are not trained, together with the embeddings before "
        "them. No gradients are computed for them, so a step takes less time.",
    )
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(64, ge=1, description="Images per step, over all processes.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Number of parts into which a process splits its images of a step, to use less memory "
        "(gradient accumulation).",
    )
    cached_views: int = Field(
        0,
        ge=0,
        description="Number of random views (crop, flip, colors) of an image, which repeat after so many "
        "epochs. What is not trained, the first blocks and the teacher, is computed once for each view and "
        "cached in the output folder during the run. Default: new views in every epoch, no cache.",
    )
    optimizer: str = Field("adamw", description="One of timm's optimizers, such as adamw, lamb or sgd.")
    schedule: Literal["cosine", "tanh", "poly"] = Field(
        "cosine", description="Learning rate schedule, one of timm's."
    )
    learning_rate: float = Field(
        1.5e-4, gt=0, allow_inf_nan=False, description="Peak learning rate of the last layer."
    )
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="Factor of the learning rate from one block to the block before it."
    )
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False)
    warmup_share: float = Field(
        0.1, ge=0, lt=1, description="Share of all steps in which the learning rate rises (warm-up)."
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth rate of the last block.")
    min_crop: float = Field(
        0.35, gt=0, le=1, description="Smallest share of the image area in a random crop."
    )
    auto_augment: str | None = Field(
        None,
        description="timm's RandAugment, AutoAugment or AugMix instead of color jitter, such as "
        "rand-m9-mstd0.5-inc1.",
    )
    erasing: float = Field(0.0, ge=0, le=1, description="Probability of random erasing.")
    mixup: float = Field(0.0, ge=0, allow_inf_nan=False, description="Alpha of mixup; 0: none.")
    cutmix: float = Field(0.0, ge=0, allow_inf_nan=False, description="Alpha of CutMix; 0: none.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average (EMA) of the weights. If given, the average is "
        "validated and saved. Default: no average.",
    )
    validation_data: Path | None = Field(
        None,
        description="Folder of labelled images for validation after each epoch. The best model is saved. "
        "Default: no validation; the model after the last step is saved.",
    )
    validation_keep_ratios: tuple[Ratio, ...] = Field(
        (1.0, 0.7, 0.5),
        min_length=1,
        description="Keep ratios for validation, with the first criterion. The best model has the highest "
        "mean accuracy over them.",
    )
    min_keep_ratio: Ratio = Field(
        0.3, description="Lowest keep ratio; each step draws one between the lowest and the highest."
    )
    max_keep_ratio: Ratio = Field(
        1.0, description="Highest keep ratio. If both are equal, all steps use this ratio."
    )
    criteria: tuple[Criterion, ...] = Field(
        ("variance",), min_length=1, description="Criteria to draw from, one per step."
    )
    life: bool = Field(
        default=False,
        description="Give the network a life predictor, which the criterion life needs, and train it in the "
        "steps that draw this criterion. Without --criteria, all steps do.",
    )
    paca_blocks: PacaBlocksFlag = None
    paca_clusters: int | None = Field(
        None, ge=1, description="Number of clusters in each of the --paca-blocks. Default: 49."
    )
    static_blocks: int = Field(
        0,
        ge=0,
        description="Number of first blocks with static attention (DGSSA): the same weights for every image, "
        "which begin as the mean attention over training images. They must come before the first block that "
        "prunes.",
    )
    reducers: tuple[Reducer, ...] = Field(
        ("drop",),
        min_length=1,
        description="Reducers to draw from, one per step. pool gives the blocks that prune learned queries "
        "and trains them.",
    )
    teacher: Path | None = Field(
        None,
        description="Checkpoint of the same architecture as the teacher for distillation, without pruning.",
    )
    distillation: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Weight of the teacher relative to the labels. Only used with --teacher.",
    )
    seed: int = Field(0, ge=-(2**63), lt=2**63, examples=[1])
    device: str = Field(
        "auto",
        description="Device: auto (the first GPU, or the CPU), cpu or cuda:N. With several processes "
        "(torchrun), each uses the GPU of its local rank.",
    )
    track: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="Also log to TensorBoard (in the output folder) or Weights & Biases."
    )
    bf16: bool = Field(default=True, description="Mixed precision: bfloat16 with float32 master weights.")
    workers: Workers = 1
    broken_images: BrokenPolicy = "skip"
    save_every: int = Field(50, ge=1, description="Number of steps between saved resume states.")

    @model_validator(mode="before")
    @classmethod
    def _life_alone(cls, values: Any) -> Any:
        """With ``life`` and no explicit criteria, use the criterion life, so that steps train the
        predictor."""
        if isinstance(values, dict) and values.get("life") is True and "criteria" not in values:
            return {**values, "criteria": ("life",)}
        return values

    @model_validator(mode="after")
    def _life_is_trained(self) -> "TrainConfig":
        if self.life and "life" not in self.criteria:
            raise ValueError(
                "--life adds a predictor, which is only trained in steps with the criterion life: add life "
                "to "
                "--criteria"
            )
        if "life" in self.criteria and not self.life:
            raise ValueError("the criterion life needs a life predictor: add --life")
        if self.life and set(self.reducers) == {"pool"}:
            raise ValueError(
                "--life adds a predictor, which is not trained in steps with the reducer pool: add another "
                "reducer to --reducers"
            )
        return self

    @model_validator(mode="after")
    def _clusters_somewhere(self) -> "TrainConfig":
        if self.paca_clusters is not None and self.paca_blocks is None:
            raise ValueError("--paca-clusters has no effect without --paca-blocks: give both, or neither")
        return self

    @model_validator(mode="after")
    def _cached_as_it_is(self) -> "TrainConfig":
        if self.cached_views and (self.mixup or self.cutmix or self.erasing):
            raise ValueError(
                "--cached-views cannot be used with --mixup, --cutmix and --erasing, which change a view at "
                "each step"
            )
        return self

    @model_validator(mode="after")
    def _ratios_in_order(self) -> "TrainConfig":
        if self.min_keep_ratio > self.max_keep_ratio:
            raise ValueError("--min-keep-ratio must be at most --max-keep-ratio")
        return self

    @model_validator(mode="after")
    def _whole_parts(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided into {self.accumulate} equal parts"
            )
        return self


class EvaluateConfig(BaseModel):
    """Measure top-1, agreement with the unpruned model, compute and images/s on a folder of labelled
    images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(
        description="Folder with one sub-folder of images per class, named by the model's labels."
    )
    model: Model = BUNDLED_MODEL
    architecture: Architecture = None
    labels: Labels = None
    patch_stride: int | None = Field(
        None,
        ge=1,
        description="Distance between neighboring patches in pixels, at most the patch size. Default: that "
        "of the checkpoint, or the patch size.",
    )
    input_size: InputSizeFlag = None
    stages: StagesFlag = None
    keep_ratios: tuple[Ratio, ...] = Field((1.0, 0.9, 0.7, 0.5, 0.3), min_length=1)
    criteria: tuple[Criterion, ...] = Field(("variance", "mad", "mean", "random"), min_length=1)
    reducers: Annotated[tuple[Reducer, ...], Field(min_length=1)] | None = Field(
        None,
        description="Reducers, each combined with each criterion. merge and pool use none and are measured "
        "once. Default: that of the checkpoint.",
    )
    batch_size: BatchSize = 32
    limit: Limit = None
    device: str = "auto"
    dtype: Dtype = "auto"
    workers: Workers = 1
    broken_images: BrokenPolicy = "skip"
    output: Path | None = Field(None, description="Also write the table as JSON to this file.")


class HeadConfig(BaseModel):
    """Fit a linear head on the features of a frozen network: a classifier in minutes.

    `trimvit serve --model MODEL --head OUTPUT` serves it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="Folder with one sub-folder of images per class.")
    output: Path = Field(description="Safetensors file for the head.")
    model: Model = BUNDLED_MODEL
    architecture: Architecture = None
    labels: Path | None = Field(None, description="JSON file that maps folder names to labels.")
    patch_stride: int | None = Field(None, ge=1, description="As for trimvit serve.")
    input_size: InputSizeFlag = None
    keep_ratio: Ratio = Field(
        1.0, description="Keep ratio of the features. A head that is fitted at 1 also works at lower ratios."
    )
    batch_size: BatchSize = 32
    device: str = "auto"
    dtype: Dtype = "auto"
    workers: Workers = 1
    broken_images: BrokenPolicy = "skip"


class SweepConfig(BaseModel):
    """Compare pruning methods over keep ratios on a folder of labelled images: table, plots, pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(
        description="Folder with one sub-folder of images per class, named by the models' labels."
    )
    output: Path = Field(
        description="Folder for the results. If the command is interrupted, run it again to resume."
    )
    models: tuple[str, ...] = Field(
        (BUNDLED_MODEL,),
        min_length=1,
        description="Model references, as for trimvit serve, with optional labels: LABEL=REFERENCE.",
    )
    architecture: str | None = Field(
        None, description="timm architecture of files that do not contain its name."
    )
    labels: Labels = None
    patch_stride: int | None = Field(
        None,
        ge=1,
        description="Distance between neighboring patches in pixels, at most the patch size, for all "
        "models. Default: that of each checkpoint, or the patch size.",
    )
    input_size: InputSizeFlag = None
    stages: StagesFlag = None
    keep_ratios: tuple[Ratio, ...] = Field((0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), min_length=1)
    criteria: tuple[Criterion, ...] = Field(
        ("variance", "mad", "iqr", "mean", "mean_value_norm", "random"), min_length=1
    )
    reducers: Reducers = ("drop",)
    keep_masses: tuple[Ratio, ...] = Field(
        (),
        description="Values of keep_mass to measure in addition to the ratios. Not available with merge "
        "and pool.",
    )
    reference: str | None = Field(
        None,
        description="Method that the others are compared with. Default: variance if it is measured, "
        "otherwise the first.",
    )
    batch_size: BatchSize = 32
    limit: Limit = None
    device: str = "auto"
    dtype: Dtype = "auto"
    workers: Workers = 1
    broken_images: BrokenPolicy = "skip"
    speed: bool = Field(
        default=True, description="Also measure images/s (for keep ratios, not for keep_mass)."
    )
    speed_rounds: int = Field(
        5, ge=1, description="Number of measuring rounds. Each round measures every setting once."
    )
    speed_batches: int = Field(2, ge=1, description="Batches per setting in a round.")
    correlation_images: int = Field(
        64, ge=1, description="Number of images for the rank correlation of the criteria."
    )
    picture_images: int = Field(2, ge=0, description="Number of images for the pictures of kept patches.")

    @property
    def labelled_models(self) -> dict[str, str]:
        """The model references by label. The default label is the last part of the reference."""
        return dict(map(_labelled, self.models))

    @model_validator(mode="after")
    def _one_label_each(self) -> "SweepConfig":
        labels = [_labelled(text)[0] for text in self.models]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two models are labelled {label!r}; write LABEL=REFERENCE")
            if not re.fullmatch(r"\w[\w.+-]*", label):
                raise ValueError(
                    f"the label {label!r} must be letters, digits, _, ., + and -, and begin with one of the "
                    "first three; write LABEL=REFERENCE"
                )
        return self


def _labelled(text: str) -> tuple[str, str]:
    label, equals, reference = text.partition("=")
    if equals and "/" not in label:
        return label, reference
    return text.rsplit("/", 1)[-1].removesuffix(".safetensors").removesuffix(".pth"), text


class CalibrateConfig(BaseModel):
    """Fit a cascade on images without labels: a cheap first run, then the unpruned model for uncertain
    images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(
        description="Folder of images, which may have subfolders. The model must not have been trained on "
        "them."
    )
    output: Path = Field(description="Safetensors file to write: the model with the cascade.")
    model: Model = BUNDLED_MODEL
    architecture: Architecture = None
    agreement: float = Field(
        0.995,
        gt=0,
        lt=1,
        description="Required share of new images that get the same label as from the unpruned model.",
    )
    keep_ratios: tuple[Ratio, ...] = Field(
        (0.3, 0.4, 0.5, 0.6, 0.7),
        min_length=1,
        description="Keep ratios to try for the first run. The cheapest cascade is chosen.",
    )
    criteria: tuple[Criterion, ...] | None = Field(
        None, min_length=1, description="Likewise. Default: that of the checkpoint."
    )
    reducers: tuple[Reducer, ...] | None = Field(
        None, min_length=1, description="Likewise. Default: that of the checkpoint."
    )
    batch_size: BatchSize = 32
    limit: Limit = None
    device: str = "auto"
    dtype: Dtype = "auto"
    workers: Workers = 1
    broken_images: BrokenPolicy = "skip"


class AverageConfig(BaseModel):
    """Average the weights of several checkpoints, from runs that started from each other or from the same
    weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[Path, ...] = Field(min_length=1, description="Checkpoints of `trimvit train`.")
    output: Path = Field(description="Safetensors file to write.")
    backbones: tuple[Path, ...] = Field(
        (), description="Further checkpoints, of which all but the head is used. Their labels may differ."
    )
    weights: tuple[Weight, ...] | None = Field(
        None,
        description="Weight of each checkpoint in the mean, relative to the others: those of --models, then "
        "those of --backbones. Default: equal weights.",
    )

    @model_validator(mode="after")
    def _several_with_a_weight_each(self) -> "AverageConfig":
        count = len(self.models) + len(self.backbones)
        if count < 2:
            raise ValueError("a mean needs at least two checkpoints: add one to --models or to --backbones")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"--weights needs one value per checkpoint: {count}, got {len(self.weights)}")
        return self
