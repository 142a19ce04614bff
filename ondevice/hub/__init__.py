"""The Hugging Face Hub: the client behind one small class, pulling, and models by their name
there. What is sent to it is decided in `publishing`.

May import: common, config, seam, data.
"""
