"""The Open Inference Protocol v2: routes, schemas, requests and tensors."""
