"""What every test shares."""

import os

from hypothesis import settings

# As the command line does: the tests share their cores with servers of their own. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No deadline: the machine may be busy, and no test here is about time.
settings.register_profile("trimvit", deadline=None, print_blob=True)
settings.load_profile("trimvit")
