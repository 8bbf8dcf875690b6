"""What every test shares."""

from hypothesis import settings

# No deadline: the machine may be busy, and no test here is about time.
settings.register_profile("trimvit", deadline=None, print_blob=True)
settings.load_profile("trimvit")
