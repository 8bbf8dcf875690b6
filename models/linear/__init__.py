"""Linear layers with a common protocol (layer.py): plain, packed and int8; and the MLP and kernels built on
them."""
