"""One dial: a recipe scaled to a time. How large a model, which vocabulary, how many steps of each
stage, so that the whole road is done then; divided anew at each stage's end.

May import: common, config, seam, data, models, runs, datasets, planning.
"""
