"""The command `trimvit`, and what keeps its packages apart from others of the same names.

The packages `app` and `models` lie beside this file in an installed wheel, not at the top level of
site-packages, where they would take the place of a user's own `app`. In a checkout they lie beside this
folder.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
PACKAGES = str(_HERE if (_HERE / "app").is_dir() else _HERE.parent)
"""The folder that `app` and `models` are imported from."""


def main() -> None:
    """The console script. Ends with the exit code of the command (app.cli)."""
    # First on the path, so that no other `app` is found. Children get it in PYTHONPATH
    # (app.processes.environment).
    sys.path.insert(0, PACKAGES)
    from app.cli import main as command

    command()
