"""The pruned vision transformer. Imports nothing here, so that the torch-free parts stay torch-free."""
