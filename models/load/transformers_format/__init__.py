"""Classifiers that Hugging Face's transformers saved, as networks of timm's.

`config` says which network it is, `weights` maps the tensors, `preprocessor` says what it sees.
"""
