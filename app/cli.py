"""`trimvit COMMAND ...`: each command's flags are the fields of its settings."""

import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsError

from app.environment import tune_libraries
from app.settings import Settings

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(frozen=True, slots=True)
class Operands:
    """What a command takes beside flags, as it is typed: names with commas or quotes, too.

    ``number`` is argparse's nargs: "+" for one or more, "*" for any number, 1 for exactly one.
    """

    name: str
    number: str | int
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command: what it is for, and how to get its settings and its action (imported when used).

    The action of a command with operands takes them as its second argument. ``epilog`` ends the help:
    examples, exit codes.
    """

    summary: str
    load: Callable[[], tuple[type[BaseModel], Callable[..., int]]]
    operands: Operands | None = None
    epilog: str = ""


def _serve() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from app.logs import configure_logging
    from app.supervisor import CannotStart, serve

    def run(settings: Settings) -> int:
        configure_logging(settings.log_level, "supervisor", settings.log_format)
        try:
            return serve(settings)
        except CannotStart as error:
            print(f"trimvit serve: {error}", file=sys.stderr)
            return 1

    return Settings, run


def _ray() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from app.logs import configure_logging
    from app.ray.settings import RaySettings

    def run(settings: RaySettings) -> int:
        configure_logging(settings.log_level, "ray")
        try:
            from app.ray.command import run
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            print("trimvit ray: Ray is not installed; pip install 'trimvit[ray]'", file=sys.stderr)
            return 1
        return run(settings)

    return RaySettings, run


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


def _calibrate() -> tuple[type[BaseModel], Callable[[Any], int]]:
    from models.training.command import calibrate
    from models.training.config import CalibrateConfig

    return CalibrateConfig, calibrate


def _classify() -> tuple[type[BaseModel], Callable[..., int]]:
    from app.commands.classify import ClassifyConfig, classify

    return ClassifyConfig, classify


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
        "label photographs without a server",
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
        "load a running server and measure its latency and throughput",
        _bench,
        Operands("URL", 1, "Address of the server, for example http://127.0.0.1:8000."),
        """A closed loop (--concurrency) sends an image when one is answered: how much can the server do?
An open loop (--rate) sends at random times, whatever the server does: what would its users see? Latency is
then measured from the time at which an image was due, so a server that stalls cannot hide it.

examples:
  trimvit bench http://127.0.0.1:8000 --concurrency 16 --keep-ratios 0.5
  trimvit bench http://127.0.0.1:8000 --rate 40 --keep-ratios 0.3,0.5,1 --duration-s 60 --plot latency.png
  trimvit bench http://127.0.0.1:8000 --rate 40 --photographs folder --query "criterion=mad" --json

exit codes:
  0  every image was labelled
  1  some were not (the report says why), or the server cannot be reached
  2  wrong usage""",
    ),
    "train": Command("fine-tune a pretrained ViT with pruning on a folder of images", _train),
    "average": Command("write the mean of several checkpoints' weights", _average),
    "evaluate": Command(
        "measure accuracy, agreement, cost and speed over keep ratios and methods", _evaluate
    ),
    "sweep": Command("compare methods over keep ratios: table, plots, pictures of kept patches", _sweep),
    "calibrate": Command(
        "fit a cascade: a cheap run first, the unpruned model where it is unsure", _calibrate
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        sys.exit(0)
    if name not in COMMANDS:
        print(f"trimvit: there is no command {name!r}\n\n{_usage()}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    tune_libraries(os.environ)
    if not sys.stderr.isatty():  # a progress bar is for who watches
        os.environ.setdefault("TQDM_DISABLE", "1")
    command = COMMANDS[name]
    settings_type, run = command.load()
    settings, operands = _parse(name, command, settings_type, rest)
    try:
        sys.exit(run(settings) if command.operands is None else run(settings, operands))
    except KeyboardInterrupt:
        print(f"trimvit {name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `| head` has read enough; what Python has still to write must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parse(
    name: str, command: Command, settings_type: type[BaseModel], arguments: list[str]
) -> tuple[BaseModel, list[str]]:
    source: CliSettingsSource[Any] = CliSettingsSource(
        cast("type[BaseSettings]", settings_type),
        cli_prog_name=f"trimvit {name}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    parser = source.root_parser
    _make_readable(parser)
    parser.epilog = command.epilog
    operands: list[str] = []
    parsed: list[str] | Namespace = arguments
    if command.operands is not None:
        # Not a field of the settings, whose lists are split at commas.
        takes = command.operands
        parser.add_argument("operands", nargs=takes.number, metavar=takes.name, help=takes.help)
        found = parser.parse_intermixed_args(arguments)
        operands = found.operands
        del found.operands
        parsed = found
    try:
        return CliApp.run(settings_type, cli_args=parsed, cli_settings_source=source), operands
    except ValidationError as error:
        for fault in error.errors():
            message = fault["msg"].removeprefix("Value error, ")
            if fault["loc"]:  # of a list, the flag rather than the place
                flag = str(fault["loc"][0]).replace("_", "-")
                given = "" if fault["type"] == "missing" else f" (got {fault['input']!r})"
                message = f"--{flag}: {message}{given}"
            print(f"trimvit {name}: {message}", file=sys.stderr)
    except SettingsError as error:
        print(f"trimvit {name}: {error}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _make_readable(parser: ArgumentParser) -> None:
    """In the help, lists as they are typed (4,7,10) and not as Python has them, and no default of None."""
    parser.description = cleandoc(parser.description or "")
    for action in parser._actions:
        if isinstance(action.metavar, str):
            action.metavar = re.sub(r"tuple\[(.+),\.\.\.\]", r"\1,...", action.metavar)
        if action.help:
            action.help = action.help.replace(" (default: None)", "")
            action.help = re.sub(
                r"\(default: \((.+?),?\)\)",
                lambda found: "(default: " + found[1].replace("'", "").replace(" ", "") + ")",
                action.help,
            )


def _usage() -> str:
    commands = "\n".join(f"  {name:<11}{command.summary}" for name, command in COMMANDS.items())
    hint = "'trimvit COMMAND --help' lists the options of one."
    return f"usage: trimvit COMMAND [options]\n\ncommands:\n{commands}\n\n{hint}"


if __name__ == "__main__":
    main()
