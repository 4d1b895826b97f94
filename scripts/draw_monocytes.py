"""The picture of README: predicted beside real monocytes of Kang et al. (2018), whose treated cells training never saw.

evae prepare kang_ifnb.h5ad --control ctrl --split "unseen-cell-type:CD14 Mono" --genes hvg:1000 --out data/kang
evae train tokenizer --config small dataset=data/kang output_dir=runs/kang/tokenizer max_steps=800
evae train prior --config small dataset=data/kang tokenizer=runs/kang/tokenizer output_dir=runs/kang/prior max_steps=750
evae predict runs/kang/prior --held-out data/kang --out predicted.h5ad
python scripts/draw_monocytes.py predicted.h5ad kang_ifnb.h5ad docs/images/monocytes.png
"""

import sys

import anndata as ad
import matplotlib.pyplot as plt

import evae.plot
from evae.common.figures import look


def main(predicted: str, cells: str, out: str) -> None:
    """Draw `predicted` beside the monocytes of `cells`, two panels, as the PNG `out`."""
    drawn, kang = ad.read_h5ad(predicted), ad.read_h5ad(cells)
    monocytes = kang[kang.obs["cell_type"] == "CD14 Mono"]
    control, real = (monocytes[monocytes.obs["perturbation"] == name] for name in ("ctrl", "IFNb"))
    with look():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.2), layout="constrained")
        evae.plot.cells({"control": control, "real": real, "predicted": drawn}, left)
        left.set_title("CD14 monocytes and interferon beta")
        evae.plot.fold_changes(drawn, real, control, right)
        figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
