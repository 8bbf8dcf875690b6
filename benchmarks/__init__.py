"""Speed and memory, measured; not installed. Run from the project's folder: `python -m benchmarks.engine`."""

import os

# As the command line does for the server; before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
