"""`python -m trimvit`, the same as `trimvit`."""

from trimvit import main

main()
