"""Shared memory of clients on this machine: images are read from it, and outputs written there."""
