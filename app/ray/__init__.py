"""TrimViT on a Ray cluster: the same HTTP interface, dispatcher and worker, as replicas of Ray Serve.

Only this package imports ray (extra `ray`).
"""
