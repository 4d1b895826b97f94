"""Files of raw counts become a dataset folder: panel, split, statistics, shuffled Parquet shards, card.

Enters: h5ad files. Leaves: a dataset folder. May import: `data`, `data.reading`, `common`, the input contract.
The public name `prepare_dataset` stands in `evae.data`.
"""
