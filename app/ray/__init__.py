"""TrimViT on a Ray cluster: the same HTTP interface and the same engine, as replicas of Ray Serve.

Only this package imports ray (extra `ray`).
"""
