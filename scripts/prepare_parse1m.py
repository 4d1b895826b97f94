"""Donor 1 of the ten million PBMC under 90 cytokines (Parse Biosciences) as a dataset folder.

    python scripts/prepare_parse1m.py --out data/parse1m --genes PANEL.json --split SPLIT.json

One file of 227 GB with all twelve donors; the cells of `Donor1` (1,267,690 published) are taken. The published panel
and split files are read as they are; by default the 2,000 most variable genes are taken.

Schema relied on: raw counts in `X`; obs `donor`, `cytokine` (control `PBS`), `cell_type`; genes by symbol. Address and
size are as public code states them; nothing was downloaded to verify them, and the spelling `Donor1` and that `X` holds
the raw counts are unverified: where they are otherwise, the error says what the file has. The checksum is stored when
the file first arrives.
"""

from evae.data.preparing.published import published_main
from evae.data.preparing.published_sets import SETS

FILES, OPTIONS = SETS["parse1m"].files, SETS["parse1m"].options

if __name__ == "__main__":
    published_main(FILES, __doc__, **OPTIONS)
