"""Speed and memory, measured; not installed. Run from the project's folder: `python -m benchmarks.engine`."""

import os

# As the command line does for the server; before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
