"""The command line: flags, usage errors, help."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import pytest
from pydantic import BaseModel, Field

from app import cli
from app.cli import main
from app.command_table import COMMANDS, Command
from app.commands.bench import BenchConfig
from app.commands.classify_config import ClassifyConfig
from app.commands.models import ModelsConfig
from app.processes.supervisor import CannotStart
from app.settings.flags import Operands
from app.settings.settings import Settings
from models.training.config import CalibrateConfig, EvaluateConfig, SweepConfig, TrainConfig
from tests.app.settings.test_settings import BAD, SAMPLES

Run = Callable[..., tuple[int, list[BaseModel]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line with actions that only take down their settings; gives back the exit code and
    these settings."""
    monkeypatch.setenv("COLUMNS", "100")  # the width of the help
    taken: list[BaseModel] = []

    def recording(command: Command) -> Command:
        settings_type, _ = command.load()

        def act(settings: BaseModel, _: list[str] | None = None) -> int:
            taken.append(settings)
            return 0

        return replace(command, load=lambda: (settings_type, act))

    monkeypatch.setattr(cli, "COMMANDS", {name: recording(command) for name, command in COMMANDS.items()})

    def run(*arguments: str) -> tuple[int, list[BaseModel]]:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, taken

    return run


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_setting_is_a_flag_of_serve(run: Run, name: str) -> None:
    """--some-setting VALUE sets it, and nothing else; what is on or off has no value."""
    text, value = SAMPLES[name]
    typed = [flag(name)] if value is True else [flag(name), text]
    assert run("serve", *typed) == (0, [Settings(**{name: value})])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, (_, value) in SAMPLES.items() if value is not True])
def test_a_flag_may_be_joined_to_its_value(run: Run, name: str) -> None:
    """--some-setting=VALUE is the same."""
    text, value = SAMPLES[name]
    assert run("serve", f"{flag(name)}={text}") == (0, [Settings(**{name: value})])  # type: ignore[arg-type]


def test_a_flag_goes_before_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was typed is meant."""
    monkeypatch.setenv("TRIMVIT_PORT", "1111")
    monkeypatch.setenv("TRIMVIT_HOST", "::1")
    code, (settings,) = run("serve", "--port", "2222")
    assert code == 0
    assert settings == Settings(port=2222, host="::1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stages", "4,7,10"],
        ["--stages=4,7,10"],
        ["--stages", "[4,7,10]"],
        ["--stages", "4", "--stages", "7,10"],
    ],
    ids=" ".join,
)
def test_stages_may_be_typed_in_the_natural_way(run: Run, arguments: list[str]) -> None:
    """A list with commas; JSON and a flag for each block work as well."""
    _, (settings,) = run("serve", *arguments)
    assert isinstance(settings, Settings)
    assert settings.stages == (4, 7, 10)


@pytest.mark.parametrize("command", ["serve", "classify", "evaluate"])
def test_every_block_may_be_a_stage(run: Run, command: str) -> None:
    """By one word, for whoever serves or measures."""
    more = {"classify": ["photo.jpg"], "evaluate": ["--data", "images"]}.get(command, [])
    _, (settings, *_) = run(command, "--stages", "every", *more)
    assert settings.stages == "every"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "text", "words"), BAD)
@pytest.mark.parametrize("by_environment", [False, True], ids=["flag", "environment"])
def test_a_bad_value_exits_with_2_and_says_what_is_allowed(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    words: str,
    by_environment: bool,
) -> None:
    """The flag, what was given, and what may be; wherever it was given."""
    if by_environment:
        monkeypatch.setenv(f"TRIMVIT_{name.upper()}", text)
    code, taken = run("serve") if by_environment else run("serve", f"{flag(name)}={text}")
    assert (code, taken) == (2, [])
    told = capsys.readouterr()
    assert told.out == ""
    given = f"TRIMVIT_{name.upper()}" if by_environment else flag(name)
    (line,) = told.err.splitlines()
    assert line.startswith((f"trimvit serve: {given} must be ", f"trimvit serve: {given}: "))
    assert "; got " in line
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--keep-ratio", "0.5"], "no flag --keep-ratio; did you mean --default-keep-ratio?"),
        (["serve", "--por", "80"], "trimvit serve: there is no flag --por; did you mean --port?"),
        (["serve", "--por=80"], "trimvit serve: there is no flag --por; did you mean --port?"),
        (["serve", "--zebra"], "trimvit serve: there is no flag --zebra\n"),
        (["serve", "extra"], "trimvit serve: it takes no 'extra'"),
        (["serve", "--port"], "trimvit serve: --port needs a value\n"),
        (
            ["serve", "--exact=maybe"],
            "trimvit serve: --exact takes no value: --exact switches it on, --no-exact off\n",
        ),
        (
            ["train", "--bf16", "false"],
            "trimvit train: --bf16 takes no value: --bf16 switches it on, --no-bf16 off\n",
        ),
        (["classify", "a.jpg", "--json=yes"], "trimvit classify: --json takes no value"),
        (
            ["evaluate", "--data=d", "--keep-ratios=nan"],
            "--keep-ratios must be a list of numbers above 0 and",
        ),
        (["evaluate", "--data=d", "--keep-ratios=0.5,nan"], "such as 1.0,0.9,0.7,0.5,0.3; got '0.5,nan'\n"),
        (["evaluate", "--data=d", "--criteria='mad"], "--criteria must be a list of 'variance', "),
        (["train", "--data=d", "--output=o", f"--seed={10**30}"], "--seed must be a whole number from -"),
        (["train", "--data=d", "--output=o", "--mixup=inf"], "--mixup must be a number of at least 0"),
        (
            ["train", "--data=d", "--output=o", "--drop-path=1"],
            "of at least 0 and below 1, such as 0.5; got '1'",
        ),
        (["classify"], "trimvit classify: the following arguments are required: PHOTO\n"),
        (["classify", "a.jpg", "--dtype=bf16"], "; got 'bf16'; did you mean 'bfloat16'?"),
        (["classify", "a.jpg", "--keep-ratio=0,5"], "; got '0,5'; did you mean 0.5?"),
        (["train", "--output", "x"], "trimvit train: --data is missing\n"),
        (["evaluate"], "trimvit evaluate: --data is missing\n"),
        (["sweep", "--data=d"], "trimvit sweep: --output is missing\n"),
        (["average", "--models=a", "--output=o"], "a mean needs at least two checkpoints"),
        (["--port", "80"], "trimvit: --port must come after a command, as in trimvit serve --port 8000\n"),
        (["sweep", "--data=d", "--output=o", "--models=a/m.pth,b/m.pth"], "two models are labelled 'm'"),
        (
            ["train", "--data=d", "--output=o", "--criteria=mad,entropy"],
            "--criteria must be a list of 'variance', ",
        ),
        (
            ["train", "--data=d", "--output=o", "--min-keep-ratio=0.9", "--max-keep-ratio=0.5"],
            "trimvit train: --min-keep-ratio must be at most --max-keep-ratio\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Unknown, shortened, missing and contradictory flags are told on standard error."""
    assert run(*arguments) == (2, [])
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) <= 2


def test_an_unknown_command_exits_with_2_and_names_the_nearest(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says how all are listed."""
    assert run("server") == (2, [])
    assert capsys.readouterr().err == (
        "trimvit: unknown command 'server'; did you mean serve?\n'trimvit --help' lists the commands\n"
    )


def test_the_version_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """As every command line tells it."""
    assert run("--version") == (0, [])
    assert capsys.readouterr().out == f"trimvit {version('trimvit')}\n"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]], ids=str)
def test_help_lists_the_commands(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Without a command, too."""
    assert run(*arguments) == (0, [])
    told = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in told
        assert command.summary in told


@pytest.mark.parametrize(
    ("command", "settings_type"),
    [
        ("serve", Settings),
        ("train", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("sweep", SweepConfig),
        ("calibrate", CalibrateConfig),
        ("classify", ClassifyConfig),
        ("models", ModelsConfig),
        ("bench", BenchConfig),
    ],
)
def test_help_of_a_command_lists_its_flags_readably(
    run: Run, capsys: pytest.CaptureFixture[str], command: str, settings_type: type[BaseModel]
) -> None:
    """Every flag with its meaning; lists as they are typed; no Python in it."""
    assert run(command, "--help") == (0, [])
    told = capsys.readouterr().out
    flat = " ".join(told.split())
    assert told.startswith(f"usage: trimvit {command} ")
    for name, field in settings_type.model_fields.items():
        assert flag(str(field.validation_alias or name)) in told
        if field.description:
            assert " ".join(field.description.split()).split("-")[0] in flat
    assert "tuple" not in told
    assert "None" not in told
    assert "((" not in told


def test_help_shows_how_lists_are_typed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The metavar and the default of a list have commas and no brackets; a word may stand in its place."""
    run("serve", "--help")
    assert "--stages int,...|every" in capsys.readouterr().out
    run("evaluate", "--help")
    told = capsys.readouterr().out
    assert "--keep-ratios float,..." in told
    assert "(default: 1.0,0.9,0.7,0.5,0.3)" in told
    assert "(default: variance,mad,mean,random)" in told


def test_train_and_evaluate_take_lists_with_commas(run: Run) -> None:
    """As serve does."""
    _, (config,) = run("evaluate", "--data=d", "--keep-ratios=1,0.5", "--criteria=mad,random")
    assert isinstance(config, EvaluateConfig)
    assert config.keep_ratios == (1.0, 0.5)
    assert config.criteria == ("mad", "random")


def test_sweep_takes_models_with_labels(run: Run) -> None:
    """Several with commas, each with a label or without."""
    _, (config,) = run(
        "sweep", "--data=d", "--output=o", "--models", "tuned=run/m.pth,other.pth", "--no-speed"
    )
    assert isinstance(config, SweepConfig)
    assert config.labelled_models == {"tuned": "run/m.pth", "other": "other.pth"}
    assert not config.speed


def test_a_server_that_cannot_start_exits_with_1_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A taken port is no traceback."""

    def cannot(settings: Settings) -> int:
        raise CannotStart(f"cannot listen on {settings.host} port {settings.port}: Address already in use")

    monkeypatch.setattr("app.processes.supervisor.serve", cannot)
    monkeypatch.setattr("app.telemetry.logs.configure_logging", lambda *_: None)
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--port", "4711"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err == (
        "trimvit serve: cannot listen on 127.0.0.1 port 4711: Address already in use\n"
    )


@pytest.mark.parametrize(("command", "kernels"), [("train", "256"), ("evaluate", "4096")])
def test_training_keeps_fewer_kernels_than_what_repeats_its_shapes(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, kernels: str
) -> None:
    """The environment that oneDNN reads."""
    environment = {"COLUMNS": "100"}
    monkeypatch.setattr(os, "environ", environment)
    assert run(command, "--data", "photographs", *(("--output", "run") if command == "train" else ()))[0] == 0
    assert environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kernels


def test_the_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serve gives back is what the shell sees."""
    monkeypatch.setattr("app.processes.supervisor.serve", lambda _: 7)
    monkeypatch.setattr("app.telemetry.logs.configure_logging", lambda *_: None)
    with pytest.raises(SystemExit) as exit_:
        main(["serve"])
    assert exit_.value.code == 7


def test_operands_are_taken_as_they_were_typed_and_flags_may_stand_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flag's lists are split at commas; names are not."""
    taken: list[object] = []

    class Flags(BaseModel):
        """Flags."""

        several: tuple[int, ...] = Field(())

    def act(settings: Flags, operands: list[str]) -> int:
        taken.extend([settings.several, operands])
        return 0

    command = Command("try", lambda: (Flags, act), Operands("NAME", "*", "Any name."), "example: try it")
    monkeypatch.setitem(COMMANDS, "try", command)
    with pytest.raises(SystemExit) as exit_:
        main(["try", "a,b", "--several", "1,2", '"c"', "--", "--several"])
    assert exit_.value.code == 0
    assert taken == [(1, 2), ["a,b", '"c"', "--several"]]


@pytest.mark.parametrize("command", ["classify", "models", "bench"])
def test_help_teaches_by_examples_that_parse(
    run: Run, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Every example of the help is a command line that is understood."""
    run(command, "--help")
    lines = [line.split("      ")[0] for line in capsys.readouterr().out.splitlines()]
    examples = [line.partition(f"trimvit {command}")[2] for line in lines if f"  trimvit {command}" in line]
    assert len(examples) >= 3
    for example in examples:
        assert run(*shlex.split(f"{command} {example.partition(' > ')[0]}"))[0] == 0, example


def test_an_interrupted_command_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As shells have it, and without a trace."""

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.processes.supervisor.serve", interrupted)
    monkeypatch.setattr("app.telemetry.logs.configure_logging", lambda *_: None)
    with pytest.raises(SystemExit) as exit_:
        main(["serve"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "trimvit serve: interrupted\n"


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "trimvit: interrupted\n"), (signal.SIGTERM, 143, "")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_ends_the_import_of_the_command_line_without_a_trace(
    number: signal.Signals, code: int, said: str
) -> None:
    """Ctrl-C in the first second prints one line, also where the caller's mask blocks it."""
    program = f"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT, signal.SIGTERM}})
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "app.command_table":
            os.kill(os.getpid(), {number.value})
sys.meta_path.insert(0, Interrupting())
from trimvit import main
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", said)
