"""What every room may use: atomic writes, digests, numbers as text and as plain values, failures of the Hub in words,
progress, prefetch, one look for figures and pages.

Nothing here knows of cells, models or datasets. May import: the input contract of `evae.models`, for `EvaeError`.
"""
