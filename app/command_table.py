"""The commands: what each is for, its settings, and its action, which is imported when it is used."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.commands.failures import FAILED, WRONG_USAGE, complain
from app.settings.combinations import contradictions, defaults_of_unknown_models
from app.settings.flags import Operands
from app.settings.settings import Settings
from app.settings.variables import remarks


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its purpose, its settings and its action, which are imported when it is used.

    The action of a command with operands takes them as its second argument. ``epilog`` is the end of the
    help: examples, exit codes.
    """

    summary: str
    load: Callable[[], tuple[type[BaseModel], Callable[..., int]]]
    operands: Operands | None = None
    epilog: str = ""


def _tell_of_variables(settings_type: type[Settings]) -> None:
    from app.ray.settings import RaySettings

    others = {} if settings_type is RaySettings else {"trimvit ray": frozenset(RaySettings.model_fields)}
    for remark in remarks(os.environ, frozenset(settings_type.model_fields), others):
        logging.getLogger("app").warning("%s", remark)


def _serve() -> tuple[type[BaseModel], Callable[[Any], int]]:
    def run(settings: Settings) -> int:
        if not _is_linux("serve"):
            return FAILED
        from app.processes.supervisor import CannotStart, serve
        from app.telemetry.logs import configure_logging

        if wrong := list(contradictions(settings)):
            return complain("serve", "\ntrimvit serve: ".join(wrong), WRONG_USAGE)
        configure_logging(settings.log_level, "supervisor", settings.log_format)
        _tell_of_variables(Settings)
        try:
            return serve(settings)
        except CannotStart as error:
            return complain("serve", error)

    return Settings, run


def _ray() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from app.ray.settings import RaySettings

    def run(settings: RaySettings) -> int:
        if not _is_linux("ray"):
            return FAILED
        from app.telemetry.logs import configure_logging

        if wrong := list(defaults_of_unknown_models(settings)):
            return complain("ray", "\ntrimvit ray: ".join(wrong), WRONG_USAGE)
        configure_logging(settings.log_level, "ray", settings.log_format)
        _tell_of_variables(RaySettings)
        try:
            from app.ray.command import run
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            return complain("ray", "Ray is not installed; pip install 'trimvit[ray]'")
        return run(settings)

    return RaySettings, run


def _is_linux(command: str) -> bool:
    """Whether a server can run here; says what to do if it cannot."""
    system = str(sys.platform)  # typed as str, because mypy assumes the developer's platform
    if system.startswith("linux"):
        return True
    advice = "run it in Docker or, on Windows, in WSL; trimvit classify needs no server"
    complain(command, f"the server needs Linux, but this is {system}: {advice}")
    return False


def _train() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import train
    from models.training.config import TrainConfig

    return TrainConfig, train


def _average() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import average
    from models.training.config import AverageConfig

    return AverageConfig, average


def _evaluate() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import evaluate
    from models.training.config import EvaluateConfig

    return EvaluateConfig, evaluate


def _sweep() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import sweep
    from models.training.config import SweepConfig

    return SweepConfig, sweep


def _head() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import head
    from models.training.config import HeadConfig

    return HeadConfig, head


def _calibrate() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import calibrate
    from models.training.config import CalibrateConfig

    return CalibrateConfig, calibrate


def _classify() -> tuple[type[BaseModel], Callable[..., int]]:
    from app.commands.classify import classify
    from app.commands.classify_config import ClassifyConfig

    return ClassifyConfig, classify


def _embed() -> tuple[type[BaseModel], Callable[..., int]]:
    from app.commands.embed import embed
    from app.commands.embed_config import EmbedConfig

    return EmbedConfig, embed


def _models() -> tuple[type[BaseModel], Callable[..., int]]:
    from app.commands.models import ModelsConfig, models

    return ModelsConfig, models


def _bench() -> tuple[type[BaseModel], Callable[..., int]]:
    from app.commands.bench import BenchConfig, bench

    return BenchConfig, bench


COMMANDS = {
    "serve": Command("start the inference server", _serve),
    "ray": Command("serve as replicas on a Ray cluster (extra ray)", _ray),
    "classify": Command(
        "classify photographs without a server",
        _classify,
        Operands(
            "PHOTO", "+", "Image file, folder of images (with its sub-folders), or - for standard input."
        ),
        """examples:
  trimvit classify holiday.jpg --keep-ratio 0.5
  trimvit classify holiday.jpg --compute 0.6 --mask seen.png      the kept patches as a picture
  trimvit classify photographs/ --top-k 1 --json > labels.jsonl   a line of JSON for each photograph
  curl -s https://example.org/cat.jpg | trimvit classify -

exit codes:
  0  every photograph was answered
  1  some were not (standard error says which and why), or the model cannot be loaded
  2  wrong usage: nothing was done""",
    ),
    "embed": Command(
        "write the feature vectors of photographs into a file",
        _embed,
        Operands("PHOTO", "+", "Image file, or folder of images (with its sub-folders)."),
        """examples:
  trimvit embed photographs/ --output features.npy
  trimvit embed photographs/ --output features.npy --normalize --keep-ratio 0.7
  trimvit embed photographs/ --output features.npy --model vit_small_patch16_dinov3.lvd1689m

exit codes:
  0  every photograph has a vector
  1  some have none (standard error says which and why), or the model cannot be loaded
  2  wrong usage: nothing was done""",
    ),
    "models": Command(
        "list the models that can be served here, and what an image costs with each",
        _models,
        Operands(
            "PATTERN", "*", "Names of timm models (* and ? stand for any letters), or .safetensors files."
        ),
        """Without a PATTERN: the bundled model, and those whose weights are in the hub's local cache. Others
are downloaded when they are first used. No weights are read to say what a model costs.

examples:
  trimvit models
  trimvit models "deit*" "vit_small*"
  trimvit models "*" --json                     every model of timm that can be pruned
  trimvit models run/model.safetensors --keep-ratios 1,0.9,0.8""",
    ),
    "bench": Command(
        "send load to a running server and measure its latency and throughput",
        _bench,
        Operands("URL", 1, "Address of the server, for example http://127.0.0.1:8000."),
        """A closed loop (--concurrency) sends an image when another one is answered. It measures the maximum
throughput. An open loop (--rate) sends at random times, independently of the server. It measures the latency
that users see, from the time at which each image was due, so that a stalled server cannot hide it.

examples:
  trimvit bench http://127.0.0.1:8000 --concurrency 16 --keep-ratios 0.5
  trimvit bench http://127.0.0.1:8000 --rate 40 --keep-ratios 0.3,0.5,1 --duration-s 60 --plot latency.png
  trimvit bench http://127.0.0.1:8000 --rate 40 --photographs folder --query "criterion=mad" --json
  trimvit bench http://127.0.0.1:8000 --model large                 one of a server's models

exit codes:
  0  every image was labelled
  1  some were not (the report says why), or the server cannot be reached
  2  wrong usage""",
    ),
    "train": Command("fine-tune a pretrained ViT with pruning on a folder of images", _train),
    "head": Command("fit a linear head on a network's features: a classifier in minutes", _head),
    "average": Command("write the mean of several checkpoints' weights", _average),
    "evaluate": Command(
        "measure accuracy, agreement, cost and speed over keep ratios and methods", _evaluate
    ),
    "sweep": Command("compare methods over keep ratios: table, plots, pictures of kept patches", _sweep),
    "calibrate": Command(
        "fit a cascade: a cheap run first, the unpruned model where it is unsure", _calibrate
    ),
}
