"""The published data sets: which files they are, how they are labelled, and what was held out of them.

Addresses, and the sizes and checksums given, are as public code states them; nothing was downloaded to verify them,
except the gene panels and splits. Where a size or checksum is not known, that of the file that first arrives is kept.
The panels and splits are those of scLDM (github.com/czi-ai/scldm, MIT licence), which the published numbers are on.
"""

from dataclasses import dataclass
from typing import Any

from evae.data.preparing.published import RemoteFile


@dataclass(frozen=True)
class PublishedSet:
    """One published data set.

    Attributes:
        title: for people.
        files: what to fetch.
        licence: of the files, as far as it is known.
        options: of `prepare_dataset`.
        split: the file of the published panel (key `genes`) and of what is held out (key `labels`); None without one.
    """

    title: str
    files: list[RemoteFile]
    licence: str
    options: dict[str, Any]
    split: RemoteFile | None = None


_FIGSHARE = "https://plus.figshare.com/ndownloader/files"
_GEO = "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE264nnn/GSE264667/suppl"
_PARSE = "https://parse-wget.s3.us-west-2.amazonaws.com/10m"
_SPLITS = "https://raw.githubusercontent.com/czi-ai/scldm/0e03e404b096636a59493803d0bdc28ead9a3520/metadata"

SETS = {
    "replogle": PublishedSet(
        "CRISPRi of essential genes in K562, RPE1, HepG2 and Jurkat (Replogle et al. 2022, Nadig et al. 2025)",
        [
            RemoteFile("K562_essential_raw_singlecell_01.h5ad", f"{_FIGSHARE}/35773219",
                       10_661_879_995, "4f1122ce1c7f13299a68df6459a266d3", "k562"),
            RemoteFile("rpe1_raw_singlecell_01.h5ad", f"{_FIGSHARE}/35775606",
                       8_700_873_216, "6a2a9d0d2bf4ec147f4d1104043b268c", "rpe1"),
            RemoteFile("GSE264667_hepg2_raw_singlecell_01.h5ad", f"{_GEO}/GSE264667_hepg2_raw_singlecell_01.h5ad",
                       5_614_460_941, None, "hepg2"),
            RemoteFile("GSE264667_jurkat_raw_singlecell_01.h5ad", f"{_GEO}/GSE264667_jurkat_raw_singlecell_01.h5ad",
                       None, None, "jurkat"),
        ],
        "CC BY 4.0 (K562, RPE1: Figshare+ 20029387); HepG2, Jurkat: GEO GSE264667, no licence stated",
        {"perturbation_key": "gene", "cell_type_key": "cell_line", "control": "non-targeting", "min_coverage": 0.5},
        RemoteFile("replogle_test.json", f"{_SPLITS}/replogle_test.json",
                   42_718, "1f19300eed14fc877079d44e29e223fe"),
    ),
    "parse1m": PublishedSet(
        "PBMC of one donor under 90 cytokines (Parse Biosciences)",
        [RemoteFile("Parse_10M_PBMC_cytokines.h5ad", f"{_PARSE}/Parse_10M_PBMC_cytokines.h5ad", 227_497_986_816)],
        "see Parse Biosciences' terms",
        {"perturbation_key": "cytokine", "cell_type_key": "cell_type", "control": "PBS", "where": {"donor": "Donor1"}},
        RemoteFile("parse1m_test.json", f"{_SPLITS}/parse1m_test.json",
                   38_576, "edc8b60c37f79124411aac6cb30ad981"),
    ),
    "telohaec": PublishedSet(
        "CRISPRi reversion screen of TeloHAEC cells under IL-1b + TNFa",
        [RemoteFile("telohaec.h5ad", "")],
        "not known",
        {"perturbation_key": "gene_target", "cell_type_key": "condition", "control": "SAFE_TARGET"},
    ),
}  # fmt: skip
