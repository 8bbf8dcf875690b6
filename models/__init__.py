"""The pruned vision transformer. This package imports nothing, so modules that do not need torch can be
imported without it."""
