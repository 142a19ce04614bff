"""From files to token ids and batches: readers, forms of rows, chat templates, tokenizers,
packing, mixing. Knows no model, no stage and no array library.

May import: common, config, seam.
"""
