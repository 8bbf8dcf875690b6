"""The engine: one process that owns a device, the queue and the batches; and the client that asks it."""
