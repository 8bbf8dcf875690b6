"""`trimvit COMMAND ...`: each command's flags are the fields of its settings."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from setproctitle import getproctitle

from app.command_table import COMMANDS
from app.commands.failures import FAILED, INTERRUPTED, TERMINATED, WRONG_USAGE, complain
from app.commands.streams import forget_output, open_standard_streams, use_utf8
from app.nearest import did_you_mean
from app.processes.environment import import_own_packages, leave_removed_folder
from app.processes.libraries import tune_libraries
from app.settings.flags import WrongUsage, parse

# Of standard output, if the error has no file name.
_OUTPUT_FAILS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)


def _end_on_sigterm() -> None:
    """End on SIGTERM until the supervisor handles the signal. Process 1 of a container would otherwise ignore
    it."""

    def end(*_: object) -> None:
        sys.exit(TERMINATED)

    signal.signal(signal.SIGTERM, end)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if arguments is None:
        use_utf8()
    open_standard_streams()
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = name if name in COMMANDS else ""
    try:
        code = _run(name, rest)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = complain(command, "interrupted", INTERRUPTED)
    except BrokenPipeError:  # for example if `| head` has read enough
        forget_output()
        code = FAILED
    except OSError as error:
        if error.errno not in _OUTPUT_FAILS or error.filename is not None:
            raise
        forget_output()
        code = complain(command, f"cannot write the output: {error.strerror}")
    sys.exit(code)


def _run(name: str, arguments: list[str]) -> int:
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name in ("-V", "--version"):
        print(f"trimvit {version('trimvit')}")
        return 0
    if name not in COMMANDS:
        wrong = f"unknown command {name!r}{did_you_mean(name, COMMANDS)}"
        if name.startswith("-"):
            wrong = f"{name} must come after a command, as in trimvit serve --port 8000"
        return complain("", f"{wrong}\n'trimvit --help' lists the commands", WRONG_USAGE)
    leave_removed_folder()
    getproctitle()  # finds the memory of the title by the environment, which the next lines move
    tune_libraries(os.environ, trains=name == "train")
    import_own_packages(os.environ, sys.path)
    if not sys.stderr.isatty():  # progress bars are only for terminals
        os.environ.setdefault("TQDM_DISABLE", "1")
    if name == "serve" or os.getpid() == 1:
        _end_on_sigterm()
    command = COMMANDS[name]
    settings_type, run = command.load()
    try:
        settings, operands = parse(
            f"trimvit {name}", settings_type, command.operands, command.epilog, arguments
        )
    except WrongUsage as error:
        for line in str(error).splitlines():
            complain(name, line, WRONG_USAGE)
        return WRONG_USAGE
    except SystemExit as end:  # --help was given
        return int(end.code or 0)
    return run(settings) if command.operands is None else run(settings, operands)


def _usage() -> str:
    commands = "\n".join(f"  {name:<11}{command.summary}" for name, command in COMMANDS.items())
    hint = "'trimvit COMMAND --help' lists the options of one."
    return f"usage: trimvit COMMAND [options]\n\ncommands:\n{commands}\n\n{hint}"


if __name__ == "__main__":
    main()
