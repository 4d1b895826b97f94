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

from evae.data.preparing.published import RemoteFile, published_main

FIGSHARE = "https://plus.figshare.com/ndownloader/files"
GEO = "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE264nnn/GSE264667/suppl"
FILES = [
    RemoteFile("K562_essential_raw_singlecell_01.h5ad", f"{FIGSHARE}/35773219",
               10_661_879_995, "4f1122ce1c7f13299a68df6459a266d3", "k562"),
    RemoteFile("rpe1_raw_singlecell_01.h5ad", f"{FIGSHARE}/35775606",
               8_700_873_216, "6a2a9d0d2bf4ec147f4d1104043b268c", "rpe1"),
    RemoteFile("GSE264667_hepg2_raw_singlecell_01.h5ad", f"{GEO}/GSE264667_hepg2_raw_singlecell_01.h5ad",
               5_614_460_941, None, "hepg2"),
    RemoteFile("GSE264667_jurkat_raw_singlecell_01.h5ad", f"{GEO}/GSE264667_jurkat_raw_singlecell_01.h5ad",
               None, None, "jurkat"),
]  # fmt: skip
OPTIONS = {"perturbation_key": "gene", "cell_type_key": "cell_line", "control": "non-targeting", "min_coverage": 0.5}

if __name__ == "__main__":
    published_main(FILES, __doc__, **OPTIONS)
