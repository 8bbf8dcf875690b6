"""What children are told, and what they are not."""

from pathlib import Path

import pytest

from app.processes.environment import (
    PACKAGES_FOLDER,
    ProcessFiles,
    dispatcher_variables,
    environment_of,
    import_own_packages,
    leave_removed_folder,
    worker_variables,
)
from app.security.keys import KEYS_VARIABLE
from app.settings.settings import Settings


@pytest.mark.parametrize("keys", [True, False])
def test_the_keys_go_to_who_checks_them(monkeypatch: pytest.MonkeyPatch, keys: bool) -> None:
    """A worker has no use for them."""
    monkeypatch.setenv(KEYS_VARIABLE, "alice:secret")
    environment = environment_of(Settings(port=8123), "worker-3", {"OWN": "1"}, keys=keys)
    assert (KEYS_VARIABLE in environment) == keys
    assert ("secret" in str(environment)) == keys
    assert (environment["OWN"], environment["TRIMVIT_METRICS_SLOT"]) == ("1", "worker-3")
    assert Settings.model_validate_json(environment["TRIMVIT_SETTINGS"]).port == 8123


def test_a_processs_files_lie_in_the_private_folder(tmp_path: Path) -> None:
    """Each by the process's name, so that processes do not meet; the dispatcher's socket is one for all."""
    variables = worker_variables(ProcessFiles(tmp_path, "worker-1"), 1, "cpu", 2, slots=7)
    assert variables["TRIMVIT_WORKER_SOCKET"] == f"{tmp_path}/dispatcher"
    assert variables["TRIMVIT_WORKER_HEARTBEAT"] == f"{tmp_path}/worker-1.heartbeat"
    assert variables["TRIMVIT_WORKER_REASON"] == f"{tmp_path}/worker-1.reason"
    assert variables["TRIMVIT_WORKER_LEARNED"] == f"{tmp_path}/worker-1.learned"
    assert (variables["TRIMVIT_WORKER_INDEX"], variables["TRIMVIT_WORKER_SHARING"]) == ("1", "2")
    assert variables["TRIMVIT_WORKER_SLOTS"] == "7"
    told = dispatcher_variables(ProcessFiles(tmp_path, "dispatcher"))
    assert told["TRIMVIT_DISPATCHER_SOCKET"] == f"{tmp_path}/dispatcher"
    assert told["TRIMVIT_DISPATCHER_HEARTBEAT"] == f"{tmp_path}/dispatcher.heartbeat"


@pytest.mark.parametrize(
    ("import_path", "given", "told"),
    [
        (["/usr/lib/python", PACKAGES_FOLDER], {}, None),
        ([PACKAGES_FOLDER, "/usr/lib/python"], {}, PACKAGES_FOLDER),
        ([PACKAGES_FOLDER], {"PYTHONPATH": "/one:/two"}, f"{PACKAGES_FOLDER}:/one:/two"),
        ([PACKAGES_FOLDER], {"PYTHONPATH": f"/one:{PACKAGES_FOLDER}"}, f"{PACKAGES_FOLDER}:/one"),
        (["/usr/lib/python"], {"PYTHONPATH": "/one"}, "/one"),
    ],
    ids=["installed", "a checkout", "a checkout and more", "named already", "installed, and more"],
)
def test_children_import_what_this_process_does(
    import_path: list[str], given: dict[str, str], told: str | None
) -> None:
    """Never from the current folder, and from a checkout's where that is what this process runs from."""
    import_own_packages(given, import_path)
    assert given["PYTHONSAFEPATH"] == "1"
    assert given.get("PYTHONPATH") == told


def test_a_current_folder_that_was_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there is not."""
    folder = tmp_path / "release"
    folder.mkdir()
    monkeypatch.chdir(folder)
    leave_removed_folder()
    assert Path.cwd() == folder
    folder.rmdir()
    leave_removed_folder()
    assert Path.cwd() == Path("/")
