"""Load classifiers saved by Hugging Face transformers as timm networks.

`config` determines the network, `weights` maps the tensors, `preprocessor` describes the input.
"""
