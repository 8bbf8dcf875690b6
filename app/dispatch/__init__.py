"""The dispatcher, the one process that owns the queue, and its client in the front ends."""
