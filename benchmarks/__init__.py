"""Speed and memory, measured; not installed. Run from the project's folder: `python -m benchmarks.engine`."""

import os

from app.processes.environment import tune_libraries

# As the command line does for the server; before torch is imported.
tune_libraries(os.environ)
