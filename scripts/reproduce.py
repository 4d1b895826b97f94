# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["evae"]
# ///
"""A published benchmark from the download to the Hub, in one command.

    bash scripts/reproduce.sh replogle --push NAME/replogle-ar
    bash scripts/reproduce.sh replogle --rehearse

Fetches the files (sizes and checksums are checked), prepares them with the published gene panel and split, trains
tokenizer and prior with `accelerate launch` on all GPUs, predicts what is held out, evaluates it under both protocols,
writes the model card with the published numbers beside the own ones, and pushes. `telohaec` trains nothing: it ranks
the knock-downs of the reversion screen with a tokenizer of one of the other two. A stopped run goes on when the
same command is given again. `--rehearse` goes the whole way in minutes, with a thousand simulated cells in files of
the same layout.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from evae.common.progress import progress_bar
from evae.data.preparing.published import RemoteFile, fetch, prepare_published
from evae.data.preparing.published_sets import SETS, PublishedSet
from evae.models.contract_evae import EvaeError

SHORT = ["max_steps=12", "warmup_steps=2", "eval_every=6", "save_every=12", "log_every=6"]  # of a rehearsal
MODELS = ("ar", "mdlm", "flow")


def main(argv: list[str] | None = None) -> None:
    """Read the options and go the way of the set."""
    args = _options(argv)
    out = args.out or Path("runs") / (f"{args.set}-rehearsal" if args.rehearse else args.set)
    downloads = out / "downloads" if args.rehearse else args.downloads
    published = _rehearsal().rehearsed(args.set, out / "simulated") if args.rehearse else SETS[args.set]
    _say_plan(published, args)
    if args.dry_run:
        return
    try:
        if args.set == "telohaec":
            _screen(args, published, out, downloads)
        else:
            _benchmark(args, published, out, downloads)
    except EvaeError as error:
        raise SystemExit(f"error: {error}") from None


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETS), help="which benchmark")
    parser.add_argument("--rehearse", action="store_true", help="with simulated cells in files of the same layout")
    parser.add_argument("--out", type=Path, help="folder of all that is made (default: runs/SET)")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where the files are kept")
    parser.add_argument("--model", choices=MODELS, default="ar", help="the prior (default: %(default)s)")
    parser.add_argument("--preset", help="of both trainings: base, or paper for the published sizes (default: base)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--url", help="telohaec: address of its h5ad file, of which no public one is known")
    parser.add_argument("--tokenizer", help="telohaec: folder or Hub id of the encoder")
    parser.add_argument("--push", metavar="NAME/MODEL", help="put the model on the Hub")
    parser.add_argument("--dataset", metavar="NAME/DATASET", help="with --push: Hub id of the prepared dataset")
    parser.add_argument("--private", action="store_true", help="make what is pushed private")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    args = parser.parse_args(argv)
    if args.set == "telohaec":
        if args.push:
            parser.error("telohaec trains no model, so there is nothing to push")
        if not args.dry_run and not args.tokenizer:
            parser.error("telohaec needs --tokenizer: a trained one, as of `reproduce.sh parse1m`")
        if not (args.url or args.rehearse or args.dry_run):
            parser.error("no public address of the telohaec file is known; give it with --url")
    if args.dataset and not args.push:
        parser.error("--dataset goes with --push")
    return args


def _say_plan(published: PublishedSet, args: argparse.Namespace) -> None:
    """What is fetched, how much of it, under which licence."""
    print(published.title)
    for file in [*published.files, *([published.split] if published.split else [])]:
        size = "size not known" if file.size is None else f"{file.size / 1e9:,.2f} GB"
        checked = f"md5 {file.md5}" if file.md5 else "no published checksum: that of the first time is kept"
        print(f"  {file.name}: {size}; {checked}; {file.url or args.url or 'give --url'}")
    print(f"  licence: {published.licence}")


def _benchmark(args: argparse.Namespace, published: PublishedSet, out: Path, downloads: Path) -> None:
    """Dataset, two trainings, prediction, numbers, card, Hub."""
    dataset, tokenizer, prior = out / "dataset", out / "tokenizer", out / "prior"
    if not dataset.exists():
        (split,) = _fetched([published.split] if published.split else [], downloads)
        how = {"genes": str(split), "split": split, "seed": args.seed, **published.options}
        prepare_published(published.files, downloads, dataset, **how)
    preset = args.preset or ("tiny" if args.rehearse else "base")
    common = ["--config", preset, f"dataset={dataset}", f"seed={args.seed}", "resume=true"]
    common += SHORT if args.rehearse else []
    quantizer = ["model.quantizer=gaussian"] if args.model == "flow" else []
    _launch("train", "tokenizer", *common, *quantizer, f"output_dir={tokenizer}")
    model = [f"model_type=evae_{args.model}", f"tokenizer={tokenizer}", f"output_dir={prior}"]
    _launch("train", "prior", *common, *model)
    predicted, evaluation = out / "predicted.h5ad", out / "evaluation"
    if not predicted.exists():
        _evae("predict", prior, "--held-out", dataset, "--seed", args.seed, "--out", predicted)
    _evae(
        "evaluate", predicted, "--dataset", dataset, "--tokenizer", tokenizer, "--suite", "paper,robust",
        "--out", evaluation, "--overwrite",
    )  # fmt: skip
    card = out / "README.md"
    pushed = [args.push or f"evae/{args.set}-{args.model}", "--card", f"{args.set}-{args.model}"]
    pushed += ["--result", evaluation, *(["--dataset", args.dataset] if args.dataset else [])]
    if args.dataset:
        private = ["--private"] if args.private else []
        _evae("push-dataset", dataset, args.dataset, *private)
    _evae("push", prior, *pushed, "--save-card", card, "--dry-run")
    print(f"\nBeside the published numbers (all of {card}):\n\n{_section(card.read_text(), 'Evaluation')}")
    if args.push:
        _evae("push", prior, *pushed, *(["--private"] if args.private else []))


def _screen(args: argparse.Namespace, published: PublishedSet, out: Path, downloads: Path) -> None:
    """The reversion screen, ranked with a frozen encoder."""
    files = published.files if args.rehearse else [replace(file, url=args.url) for file in published.files]
    (screen,) = _fetched(files, downloads)
    names = [] if args.rehearse else ["--preset", "telohaec"]
    positives = ["--positive", ",".join(_rehearsal().reverters(screen))] if args.rehearse else []
    _evae(
        "reversion", screen, "--model", args.tokenizer, "--kind", "latents,pooled,codes", *names, *positives,
        "--out", out / "reversion", "--overwrite",
    )  # fmt: skip


def _fetched(files: list[RemoteFile], downloads: Path) -> list[Path]:
    """The files on this disk."""
    with progress_bar(True, "B") as bar:
        return [fetch(file, downloads, bar) for file in files]


def _launch(*arguments: object) -> None:
    """An `evae` command on all GPUs, through `accelerate launch`."""
    import torch

    gpus = torch.cuda.device_count()
    how = ["--multi_gpu"] if gpus > 1 else [] if gpus else ["--cpu"]
    sizes = ["--num_processes", str(max(gpus, 1)), "--num_machines", "1", "--mixed_precision", "no"]
    _run("-m", "accelerate.commands.launch", *how, *sizes, "--dynamo_backend", "no", "--module", "evae.cli", *arguments)


def _evae(*arguments: object) -> None:
    _run("-m", "evae.cli", *arguments)


def _run(*arguments: object) -> None:
    """Run Python with arguments and show them; ends with its exit status where that is not 0."""
    texts = [str(argument) for argument in arguments]
    print("\n$ python " + shlex.join(texts), flush=True)
    code = subprocess.run([sys.executable, *texts], env=os.environ).returncode
    if code:
        raise SystemExit(code)


def _section(text: str, heading: str) -> str:
    """One section of a Markdown text."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0].strip()


def _rehearsal() -> ModuleType:
    """The file beside this one."""
    spec = importlib.util.spec_from_file_location("rehearsal", Path(__file__).with_name("rehearsal.py"))
    if spec is None or spec.loader is None or not Path(str(spec.origin)).is_file():
        raise SystemExit("error: --rehearse needs rehearsal.py beside this script.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
