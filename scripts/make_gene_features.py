"""A vector for every human gene from what the Gene Ontology says of it, for perturbations that no cell has.

    python scripts/make_gene_features.py --out gene_features.npz
    python scripts/make_gene_features.py --annotations goa_human.gaf.gz --out gene_features.npz

Then `evae train prior ... perturbation_features=gene_features.npz`, `evae effects --features gene_features.npz` or
`evae evaluate --features gene_features.npz`.

Genes with the same annotations get similar vectors: a table of genes by terms, weighted by how rare a term is (tf-idf),
is cut to its strongest directions (truncated SVD). Annotations of human proteins by the Gene Ontology Consortium,
licence CC BY 4.0, https://geneontology.org, doi:10.1093/genetics/iyad031; format GAF 2.2. Negated annotations (NOT) and
those without any evidence (ND) are left out. The address was not tried: nothing was downloaded to verify it.
"""

import argparse
import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import MultiLabelBinarizer, normalize

from evae.common.files import atomic_write
from evae.common.progress import progress_bar
from evae.data.preparing.published import RemoteFile, fetch
from evae.models.contract_evae import EvaeError

ADDRESS = "https://current.geneontology.org/annotations/goa_human.gaf.gz"
SOURCE = "annotations of the Gene Ontology (CC BY 4.0)"
SYMBOL, RELATION, TERM, EVIDENCE, COLUMNS = 2, 3, 4, 6, 15  # of GAF: at least so many columns
LEAST_GENES = 3  # of a term, to say that two genes are alike


def read_annotations(path: Path) -> dict[str, set[str]]:
    """Terms of the Gene Ontology by gene symbol.

    Raises:
        EvaeError: no file of annotations.
    """
    found: dict[str, set[str]] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            if line.startswith("!") or len(fields) < COLUMNS:
                continue
            if "NOT" not in fields[RELATION].split("|") and fields[EVIDENCE] != "ND":
                found.setdefault(fields[SYMBOL], set()).add(fields[TERM])
    if not found:
        raise EvaeError(f"{path} holds no annotations in GAF 2; give goa_human.gaf.gz of {ADDRESS}.")
    return found


def gene_vectors(annotations: dict[str, Iterable[str]], n_features: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Symbols and vectors of length 1, float32 (genes, features).

    Args:
        annotations: terms by gene.
        n_features: numbers of a vector; fewer where there are fewer terms.
        seed: of the decomposition.
    """
    genes = sorted(annotations)
    table = MultiLabelBinarizer(sparse_output=True).fit_transform([sorted(annotations[gene]) for gene in genes])
    shared = np.asarray(table.sum(axis=0)).ravel() >= LEAST_GENES
    if shared.sum() < 2:
        raise EvaeError(f"no two terms are shared by {LEAST_GENES} genes; give the annotations of more genes.")
    table = TfidfTransformer().fit_transform(table[:, shared])
    n = min(n_features, min(table.shape) - 1)
    vectors = normalize(TruncatedSVD(n, random_state=seed).fit_transform(table))
    told = np.asarray(table.sum(axis=1)).ravel() > 0  # a gene whose terms are its own alone is like no other
    return [gene for gene, is_told in zip(genes, told, strict=True) if is_told], vectors[told].astype(np.float32)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    parser.add_argument("--annotations", type=Path, help="GAF file, .gaf or .gaf.gz; fetched if left out")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where a fetched file is kept")
    parser.add_argument("--features", type=int, default=128, help="numbers of a vector (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        path = args.annotations
        if path is None:
            with progress_bar(True, "B") as bar:
                path = fetch(RemoteFile("goa_human.gaf.gz", ADDRESS), args.downloads, bar)
        if not path.is_file():
            raise EvaeError(f"no such file: {path}")
        if args.out.suffix != ".npz":
            raise EvaeError(f"--out is {args.out}; name an .npz file.")
        genes, vectors = gene_vectors(read_annotations(path), args.features)
    except EvaeError as error:
        raise SystemExit(f"error: {error}") from None
    with atomic_write(args.out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, genes=np.array(genes), emb=vectors, source=np.array(f"{SOURCE}, {path.name}"))
    print(f"{len(genes):,} genes, {vectors.shape[1]} features: {args.out}")


if __name__ == "__main__":
    main()
