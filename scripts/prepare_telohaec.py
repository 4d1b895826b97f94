"""The TeloHAEC CRISPRi screen under IL-1b + TNFa (864 k cells, 1,732 targets) as a dataset folder.

    python scripts/prepare_telohaec.py --url ADDRESS --out data/telohaec --genes all

No public address of the file is known here, so `--url` gives it (http, https or file). Size and checksum are stored
when it first arrives.

Schema relied on, as published and unverified: raw counts in `X`; obs `condition` (`Treated`, `Untreated`), taken as the
cell type, and `gene_target`, with the controls `SAFE_TARGET`, taken as the control, and `NO-TARGET`, a perturbation
like the others here.
"""

import argparse
import sys

from evae.data.preparing.published import RemoteFile, published_main
from evae.data.preparing.published_sets import SETS

OPTIONS = SETS["telohaec"].options


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--url")
    given, rest = parser.parse_known_args(argv)
    if not given.url and not {"-h", "--help"} & set(rest):
        raise SystemExit("error: give the address of the file with --url")
    published_main([RemoteFile("telohaec.h5ad", given.url)], __doc__, "all", rest, **OPTIONS)


if __name__ == "__main__":
    main(sys.argv[1:])
