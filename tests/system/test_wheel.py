"""The built wheel in an empty environment, beside a user's own `app` and `models`."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.system.photographs import SHIPPED
from tests.system.server import running_server

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
WITHOUT_OURS = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
NOT_OURS = "raise ImportError('this is the package of a user')\n"


def run(*command: str | Path, folder: Path) -> str:
    """What it printed; fails the test with what it complained of."""
    done = subprocess.run(command, cwd=folder, env=WITHOUT_OURS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist and of the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, a user's `app` and `models`, and last on its path the libraries of this
    one, whose .pth files are not read there, so that an editable install does not count."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", folder, folder=built)
    [wheel] = built.glob("*.whl")
    run(folder / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, folder=built)
    [site_packages] = folder.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    for name in ("app", "models"):
        (site_packages / name).mkdir()
        (site_packages / name / "__init__.py").write_text(NOT_OURS)
    return folder


def test_the_wheel_holds_what_serves_and_nothing_else(built: Path) -> None:
    """One package at the top level; every file of `app` and `models` in it, page, photographs, weights and
    labels included; the sdist has the tests, too."""
    [wheel] = built.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "app", "models", "trimvit"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = {f"trimvit/{name}".replace("trimvit/trimvit/", "trimvit/") for name in listed.stdout.split()}
    assert files == expected
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "tests/system/test_wheel.py", "app/main.py", "docs/index.md"} <= packed


@pytest.mark.parametrize("how", [("bin/trimvit",), ("bin/python", "-m", "trimvit")], ids=["script", "module"])
def test_an_installed_wheel_serves_beside_a_users_own_packages(
    installed: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """All processes of the server import its own packages, although site-packages and the current folder have
    others of the same names, which stay importable for the user."""
    for name in ("app", "models", "queue"):
        (tmp_path / f"{name}.py").write_text(NOT_OURS)
    if how[0] == "bin/python":  # where Python itself looks for modules in the current folder
        (tmp_path / "queue.py").unlink()
    program = ("env", "-u", "PYTHONPATH", installed / how[0], *how[1:])
    with running_server(tmp_path, program=program, started_in=tmp_path) as server:
        answer = httpx.post(f"{server.url}/v1/classify", content=(SHIPPED / "china.jpg").read_bytes())
        assert answer.status_code == 200
        assert answer.json()["model"] == "trimvit-small-109"
        assert httpx.get(server.url, headers={"accept": "text/html"}).status_code == 200
    code = "import app"
    done = subprocess.run(
        [installed / "bin/python", "-c", code], cwd=tmp_path, env=WITHOUT_OURS, capture_output=True, text=True
    )
    assert "the package of a user" in done.stderr


def test_an_editable_install_serves_from_the_checkout(tmp_path: Path) -> None:
    """`app` and `models` are importable from anywhere, and `trimvit` runs them."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--system-site-packages", venv, folder=tmp_path)
    [site_packages] = venv.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    install = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--editable", ROOT)
    run(venv / "bin/python", "-m", "pip", *install, folder=tmp_path)
    where = run(venv / "bin/python", "-c", "import app, models; print(app.__file__)", folder=tmp_path)
    assert Path(where.strip()).parent == ROOT / "app"
    (tmp_path / "app.py").write_text(NOT_OURS)
    assert run(venv / "bin/trimvit", "--version", folder=tmp_path).startswith("trimvit ")
