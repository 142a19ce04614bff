"""Architectures: configs, forward passes, tensor names, adapters, and how a Hugging Face folder is
read and written. A model is its config, network, tensors and tokenizer; `load` reads one,
`registry` knows the families.

May import: common, config, seam, data, hub.
"""
