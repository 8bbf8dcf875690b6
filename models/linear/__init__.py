"""Linear layers of one protocol (layer.py): plain, packed, int8; and what is made of them."""
