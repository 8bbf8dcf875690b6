"""Untrusted bytes become pixels here: limits and formats, the decoder processes, their pool."""
