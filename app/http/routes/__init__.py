"""The routes, one file for each interface that clients know."""
