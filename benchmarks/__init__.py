"""Speed and memory, measured; not installed. Run from the project's folder: `python -m benchmarks.engine`."""

import os

from app.processes.libraries import tune_libraries
from benchmarks.jaxtyping_stub import install_jaxtyping_stub

# The command line does the same for the server. This must run before torch is imported.
tune_libraries(os.environ)
install_jaxtyping_stub()
