"""The worker: a process that owns one device and its model, and computes batches."""
