"""What every room may use: atomic writes, failures of the Hub in words, progress, prefetch, the look of figures.

Nothing here knows of cells, models or datasets. May import: the input contract of `evae.models`, for `EvaeError`.
"""
