"""`trimvit COMMAND ...`: each command's flags are the fields of its settings."""

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsError

from app.settings import Settings

USAGE_ERROR = 2


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command: what it is for, and how to get its settings and its action (imported when used)."""

    summary: str
    load: Callable[[], tuple[type[BaseModel], Callable[[Any], int]]]


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


COMMANDS = {
    "serve": Command("start the inference server", _serve),
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
    """The console script. Exit codes: 0 done, 1 failed, 2 wrong usage."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        sys.exit(0)
    if name not in COMMANDS:
        print(f"trimvit: there is no command {name!r}\n\n{_usage()}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    # How long an idle OpenMP thread spins before it sleeps (docs/design/0003). Read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    settings_type, run = COMMANDS[name].load()
    sys.exit(run(_parse(name, settings_type, rest)))


def _parse(name: str, settings_type: type[BaseModel], arguments: list[str]) -> BaseModel:
    source: CliSettingsSource[Any] = CliSettingsSource(
        cast("type[BaseSettings]", settings_type),
        cli_prog_name=f"trimvit {name}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    _make_readable(source.root_parser)
    try:
        return CliApp.run(settings_type, cli_args=arguments, cli_settings_source=source)
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
