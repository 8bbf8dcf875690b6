"""The flags of a command: the fields of its settings, read from the command line and the environment."""

import os
import re
from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, NoReturn, cast

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsError

from app.nearest import did_you_mean
from app.settings.variables import variable_of
from app.wrong_values import wrong_value, wrong_values


class WrongUsage(Exception):
    """Wrong usage. The text has a line for each error."""


@dataclass(frozen=True, slots=True)
class Operands:
    """The operands of a command, besides flags. They may contain commas and quotes.

    ``number`` is argparse's nargs: "+" for one or more, "*" for any number, 1 for exactly one.
    """

    name: str
    number: str | int
    help: str


class _Joined(Action):
    """A flag that may be repeated: its values are joined by commas, as in an environment variable."""

    def __call__(self, _: ArgumentParser, namespace: Namespace, values: Any, __: str | None = None) -> None:
        """Add one more value."""
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Without this, argparse would print the usage, which lists all flags."""
        found = re.match(
            r"argument (?:-\w/)?(--[\w-]+)[^:]*: (expected .*|ignored explicit) argument", message
        )
        if found is None:
            raise WrongUsage(message.removeprefix("argument "))
        if found[2].startswith("ignored"):
            raise WrongUsage(_takes_no_value(found[1], self))
        raise WrongUsage(f"{found[1]} needs a value")


def parse(
    program: str, settings_type: type[BaseModel], operands: Operands | None, epilog: str, arguments: list[str]
) -> tuple[BaseModel, list[str]]:
    """The settings and the operands. Prints the help if it is requested. Raises WrongUsage."""
    parser = _Parser(
        prog=program,
        description=cleandoc(settings_type.__doc__ or ""),
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    repeated = {flag(name) for name in getattr(settings_type, "repeated_flags", ())}

    def add_argument(place: Any, *names: str, **options: Any) -> Action:
        if repeated.intersection(names):
            options["action"] = _Joined
        added: Action = ArgumentParser.add_argument(place, *names, **options)
        return added

    source: CliSettingsSource[Any] = CliSettingsSource(
        cast("type[BaseSettings]", settings_type),
        cli_prog_name=program,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        root_parser=parser,
        add_argument_method=add_argument,
        formatter_class=RawDescriptionHelpFormatter,
    )
    _make_readable(parser)
    if operands is not None:  # added here, because list fields of the settings are split at commas
        parser.add_argument("operands", nargs=operands.number, metavar=operands.name, help=operands.help)
    found, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        raise WrongUsage(_not_understood(rest[0], arguments, parser))
    given: list[str] = vars(found).pop("operands", [])
    return _checked(settings_type, source, found), given


def flag(field: str) -> str:
    """The flag of a field."""
    return f"--{field.replace('_', '-')}"


def _checked(settings_type: type[BaseModel], source: CliSettingsSource[Any], found: Namespace) -> BaseModel:
    def named(field: str) -> str:
        """The flag or the variable that the field's value came from."""
        if field not in vars(found) and issubclass(settings_type, BaseSettings):
            return variable_of(field, os.environ) or flag(field)
        return flag(field)

    try:
        return CliApp.run(settings_type, cli_args=found, cli_settings_source=source)
    except ValidationError as error:
        raise WrongUsage("\n".join(wrong_values(error, settings_type, named))) from error
    except SettingsError as error:
        # Lists are parsed as JSON, which fails for some values that people type (nan, a single quote).
        unread = re.search(r'(?:field "|encountered for )(\w+)', str(error))
        if unread is None:
            raise WrongUsage(str(error)) from error
        name = unread[1]
        typed = vars(found).get(name)
        typed = ",".join(map(str, typed)) if isinstance(typed, list) else typed
        raise WrongUsage(wrong_value(settings_type, name, named(name), typed)) from error


def _not_understood(argument: str, arguments: list[str], parser: ArgumentParser) -> str:
    before = arguments[arguments.index(argument) - 1] if argument in arguments[1:] else ""
    if not argument.startswith("-"):
        if _opposite(before, parser) is not None:
            return _takes_no_value(before, parser)
        return f"it takes no {argument!r}: every setting is a flag, as in {_some_flag(parser)}"
    name = argument.partition("=")[0]
    flags = [option for action in parser._actions for option in action.option_strings]
    return f"there is no flag {name}{did_you_mean(name, flags)}"


def _opposite(switch: str, parser: ArgumentParser) -> str | None:
    """--no-exact for --exact. None for what is not a switch."""
    off = f"--no-{switch.removeprefix('--')}"
    flags = {option for action in parser._actions for option in action.option_strings}
    return off if {switch, off} <= flags else None


def _takes_no_value(switch: str, parser: ArgumentParser) -> str:
    off = _opposite(switch, parser)
    return f"{switch} takes no value" + ("" if off is None else f": {switch} switches it on, {off} off")


def _some_flag(parser: ArgumentParser) -> str:
    action = next(each for each in parser._actions if each.metavar)
    return f"{action.option_strings[-1]} {str(action.metavar).upper()}"


def _make_readable(parser: ArgumentParser) -> None:
    """In the help, show lists as they are typed (4,7,10) and not in Python's form, and leave out a default of
    None."""
    parser.description = cleandoc(parser.description or "")
    for action in parser._actions:
        if isinstance(action.metavar, str):
            action.metavar = re.sub(r"tuple\[(.+),\.\.\.\]", r"\1,...", action.metavar)
            # Either a list or a single word.
            action.metavar = re.sub(r"^\{(\w+,\.\.\.),(\w+)\}$", r"\1|\2", action.metavar)
        if action.help:
            action.help = action.help.replace(" (default: None)", "")
            action.help = re.sub(
                r"\(default: \((.+?),?\)\)",
                lambda found: "(default: " + found[1].replace("'", "").replace(" ", "") + ")",
                action.help,
            )
