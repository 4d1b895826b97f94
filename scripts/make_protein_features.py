"""A vector for every gene from the sequence of its protein, by a protein language model such as ESMC or ESM2.

    python scripts/make_protein_features.py proteins.fasta --model biohub/ESMC-300M --out protein_features.npz
    python scripts/make_protein_features.py proteins.fasta --model facebook/esm2_t6_8M_UR50D --out protein_features.npz

Then `evae train prior ... perturbation_features=protein_features.npz`, and `--features` of `evae effects` and `evae
evaluate`. The sequences are yours to name: UniProt's reference proteome, Ensembl's pep.all.fa, or records called by
gene symbols. The gene is what stands behind GN= (UniProt) or gene_symbol: (Ensembl), else the first word of a record's
name. Of several proteins of a gene the longest is taken. A vector is the mean of the last hidden states over the
amino acids, markers of begin and end left out. Model, revision and FASTA file are named in the table, and so in the
checkpoint and its card. A cached model needs no network (HF_HUB_OFFLINE=1). ESMC needs transformers 5.
"""

import argparse
import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evae.common.files import atomic_write
from evae.common.hub import explain_hub_errors
from evae.common.messages import first_line
from evae.common.progress import progress_bar
from evae.inference.devices import choose_device
from evae.models.contract_evae import EvaeError, near_matches

GENE = re.compile(r"(?:\bGN=|\bgene_symbol:)(\S+)")
RESIDUES = 1_022  # ESM2 was trained on no longer ones
NEVER_TRAINED = "pooler."  # transformers adds such a layer to ESM2, which no checkpoint has and nothing here reads


def read_proteins(path: Path) -> dict[str, str]:
    """The longest sequence of every gene of a FASTA file, upper case, without a stop (*) at its end.

    Raises:
        EvaeError: no such file, or no FASTA.
    """
    if not path.is_file():
        raise EvaeError(f"no such file: {path}")
    found: dict[str, str] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        records = lines.read().split(">")
    if records[0].strip() or len(records) < 2:
        raise EvaeError(f"{path} is no FASTA file: its first line must begin with '>'.")
    for record in records[1:]:
        head, _, body = record.partition("\n")
        named = GENE.search(head)
        gene = named.group(1) if named else (head.split() or [""])[0]
        # lower case marks masked stretches; tokenizers of proteins take it for unknown
        sequence = "".join(body.split()).upper().rstrip("*")
        if not gene or not sequence.isalpha():
            raise EvaeError(f"the record '>{head[:40]}' of {path} is no protein with a name; mend or leave it out.")
        if len(sequence) > len(found.get(gene, "")):
            found[gene] = sequence
    return found


def load_model(name: str, revision: str | None, device: torch.device) -> tuple[Any, Any, str]:
    """Tokenizer, model and what they are called, with the commit of a model of the Hub.

    Raises:
        EvaeError: no such model, or none of proteins.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # the layers that are left out are no news
    try:
        with explain_hub_errors(name, "model", revision):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            model, told = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, EvaeError):
            raise
        raise EvaeError(
            f"the model {name} cannot be loaded ({first_line(error)}); give a Hub id or folder of ESM2 or ESMC, and "
            "for ESMC a transformers that has it."
        ) from None
    lacking = sorted(key for key in told["missing_keys"] if not key.startswith(NEVER_TRAINED))
    if lacking:
        raise EvaeError(f"{name} has no weights for {lacking[0]} and {len(lacking) - 1} more; give a whole checkpoint.")
    commit = getattr(model.config, "_commit_hash", None)
    called = f"{name} at {commit[:12]}" if commit else Path(name).name
    return tokenizer, model.to(device).float().eval(), called


@torch.inference_mode()
def protein_vectors(
    tokenizer: Any, model: Any, proteins: Mapping[str, str], residues: int, batch_size: int, progress: bool = True
) -> dict[str, np.ndarray]:
    """Means of the last hidden states over amino acids by gene, float32 (width,); of long proteins the first ones.

    Args:
        tokenizer, model: see `load_model`.
        proteins: sequences by gene.
        residues: so many amino acids of a protein are read at most.
        batch_size: proteins at a time.
        progress: whether a bar is shown.

    Raises:
        EvaeError: a protein that the tokenizer does not know letter by letter, so that it is none of proteins.
    """
    order = sorted(proteins, key=lambda gene: len(proteins[gene]))  # alike lengths together: little padding
    found: dict[str, np.ndarray] = {}
    with progress_bar(progress, "proteins") as bar:
        advance = bar.start("reading proteins", len(order))
        for start in range(0, len(order), batch_size):
            genes = order[start : start + batch_size]
            texts = [proteins[gene][:residues] for gene in genes]
            batch = tokenizer(texts, padding=True, return_special_tokens_mask=True, return_tensors="pt")
            batch = batch.to(model.device)
            inside = (batch["attention_mask"] * (1 - batch["special_tokens_mask"])).unsqueeze(-1)
            for gene, text, n in zip(genes, texts, inside.sum((1, 2)).tolist(), strict=True):
                if n != len(text):
                    raise EvaeError(f"the model reads {n} of {len(text)} amino acids of {gene}; give one of proteins.")
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            means = (states * inside).sum(1) / inside.sum(1)
            found |= dict(zip(genes, means.float().cpu().numpy(), strict=True))
            advance(len(genes))
    return {gene: found[gene] for gene in proteins}


def wanted_proteins(proteins: dict[str, str], genes: str | None, path: Path) -> dict[str, str]:
    """Those of some genes, separated by commas; all if None."""
    names = list(proteins) if genes is None else [name.strip() for name in genes.split(",") if name.strip()]
    for name in names:
        if name not in proteins:
            raise EvaeError(f"{path} has no protein of '{name}'. {near_matches(name, list(proteins))}")
    return {name: proteins[name] for name in names}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", type=Path, help="FASTA file of proteins, .gz or not")
    parser.add_argument("--model", required=True, help="Hub id or folder of a protein language model")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    parser.add_argument("--genes", help="these genes only, separated by commas")
    parser.add_argument("--residues", type=int, default=RESIDUES, help="read at most (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="proteins at a time (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one")
    args = parser.parse_args(argv)
    try:
        if args.out.suffix != ".npz":
            raise EvaeError(f"--out is {args.out}; name an .npz file.")
        proteins = wanted_proteins(read_proteins(args.sequences), args.genes, args.sequences)
        tokenizer, model, called = load_model(args.model, args.revision, choose_device(args.device))
        vectors = protein_vectors(tokenizer, model, proteins, args.residues, args.batch_size)
    except EvaeError as error:
        raise SystemExit(f"error: {error}") from None
    source = f"mean last hidden state of {called} over the proteins of {args.sequences.name}"
    table = np.stack(list(vectors.values()))
    with atomic_write(args.out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, genes=np.array(list(vectors)), emb=table, source=np.array(source))
    cut = sum(len(text) > args.residues for text in proteins.values())
    print(f"{len(table):,} genes, {table.shape[1]} features, {cut:,} cut at {args.residues:,} amino acids: {args.out}")


if __name__ == "__main__":
    main()
