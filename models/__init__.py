"""The pruned vision transformer. Nothing is imported here, so that the modules without torch can be imported
without it."""
