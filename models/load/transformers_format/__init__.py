"""Classifiers that Hugging Face's transformers saved, as timm's networks.

`config` says which network it is, `weights` maps the tensors, `preprocessor` describes its input.
"""
