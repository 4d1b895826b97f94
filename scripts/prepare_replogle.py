"""The CRISPRi screens of essential genes in four lines (Replogle et al. 2022, Nadig et al. 2025) as a dataset folder.

    python scripts/prepare_replogle.py --out data/replogle --genes PANEL.json --split SPLIT.json

K562 and RPE1 come from Figshare+ (article 20029387, CC BY 4.0), HepG2 and Jurkat from GEO (GSE264667). The published
panel and split files are read as they are (keys `genes`, `labels`); by default the 2,000 most variable genes are taken.
A symbol of the panel that two genes of a file share is refused; the message says by which Ensembl ids to name it.

Schema relied on: raw counts in `X`; `obs["gene"]` is the target, `non-targeting` the control; `var` is indexed by
Ensembl id, with the symbol in `gene_name`. Addresses, and the sizes and checksums given, are as public code states
them; nothing was downloaded to verify them. What is not known (Jurkat's size, the checksums from GEO) is stored when
a file first arrives. All cells of the four files are taken; the authors' own filter, which leaves about 0.64 M, is not
known and not applied.
"""

from evae.data.preparing.published import published_main
from evae.data.preparing.published_sets import SETS

FILES, OPTIONS = SETS["replogle"].files, SETS["replogle"].options

if __name__ == "__main__":
    published_main(FILES, __doc__, **OPTIONS)
