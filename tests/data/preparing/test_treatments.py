"""Doses, times and kinds of a dataset: from columns of the usual layouts, from combined labels, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae.data.format import DatasetInfo
from evae.data.preparing.prepare import prepare_dataset
from evae.data.streaming.mixture import Sources
from evae.models.contract_evae import EvaeError
from evae.models.treatments_evae import Treatment

N = 20  # cells of every row


def cells(**columns: list) -> ad.AnnData:
    """N cells of every row of `columns`."""
    obs = pd.DataFrame(columns).loc[lambda t: t.index.repeat(N)].reset_index(drop=True)
    obs["cell_type"] = np.where(np.arange(len(obs)) % 2, "T", "B")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = np.random.default_rng(0).poisson(2.0, (len(obs), 30)).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{g}" for g in range(30)]))


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., DatasetInfo]:
    def prepare(data: ad.AnnData, name: str = "data", **options: object) -> DatasetInfo:
        data.write_h5ad(tmp_path / f"{name}.h5ad")
        folder = prepare_dataset(tmp_path / f"{name}.h5ad", tmp_path / name, progress=False, **options)
        return DatasetInfo.load(folder)

    return prepare


def test_scperturb_and_tahoe_columns(prepared, caplog):
    data = cells(
        perturbation=["control", "DrugA", "DrugA", "DrugA", "DrugB", "DrugA+DrugB"],
        dose_value=["0.0", "100", "1000.0", "0", "10", "1000+10"],
        dose_unit=["nM", "nM", "nM", "nM", "uM", "nM+uM"],
        time=[24.0, 24.0, 6.0, 24.0, 24.0, 24.0],
    )
    info = prepared(data, dose_key="dose_value", time_key="time")
    assert info.perturbations == [
        "control", "DrugA 0.1 uM 24 h", "DrugA 1 uM 24 h+DrugB 10 uM 24 h", "DrugA 1 uM 6 h", "DrugB 10 uM 24 h"
    ]  # fmt: skip
    assert info.treatments["DrugA 1 uM 24 h"] == Treatment("DrugA", dose=1.0, dose_unit="uM", time=24.0)  # a part alone
    assert sum(row["control"] for row in info.statistics["cell_counts"]["train"].values()) > N  # with those of dose 0
    assert f"{N} cells of dose 0 count as controls" in caplog.text


def test_every_part_of_a_combination_has_its_own_dose_unit_kind_or_none_of_them(prepared):
    data = cells(
        perturbation=["control", "DrugA", "IFNB", "GENE1", "DrugA+IFNB", "DrugA+IFNB", "DrugA+GENE1"],
        dose=["0", "1", "10", "", "1+10", "0+10", "1+"],
        unit=["uM", "uM", "ng/mL", "", "uM+ng/mL", "uM+ng/mL", "uM+"],
        how=["", "drug", "cytokine", "KO", "drug+cytokine", "drug+cytokine", "drug+KO"],
    )
    info = prepared(data, dose_key="dose", dose_unit="unit", kind_key="how")
    alone = ["DrugA drug 1 uM", "GENE1 knock-out", "IFNB cytokine 10 ng/mL"]
    assert set(info.perturbations[1:]) == {
        *alone, "DrugA drug 1 uM+IFNB cytokine 10 ng/mL", "DrugA drug 1 uM+GENE1 knock-out"
    }  # fmt: skip
    assert sorted(info.treatments) == alone
    labels = ["ctrl", "DrugA@1uM", "IFNB@10ng/ml", "GENE1_KO", "DrugA@1uM+IFNB@10ng/ml", "DrugA@1uM+GENE1_KO"]
    labels += ["DrugA@0uM+IFNB@10ng/ml"]
    read = prepared(cells(perturbation=labels), "read", parse_labels=True)
    assert set(read.perturbations[1:]) == {
        "DrugA 1 uM", "IFNB 10 ng/mL", "GENE1 knock-out", "DrugA 1 uM+IFNB 10 ng/mL", "DrugA 1 uM+GENE1 knock-out"
    }  # fmt: skip


def test_combined_labels_are_read_where_that_is_asked_for(prepared, caplog):
    labels = ["DMSO_24h", "DMSO_6h", "DrugA_10uM_24h", "DrugA_100nM_6h", "DrugB_1uM_24h", "plain"]
    labels += ["DrugB_1uM_24h+DrugC_5uM_24h"]
    info = prepared(cells(perturbation=labels), parse_labels=True)
    assert info.control == "DMSO"
    alone = {"DrugA 0.1 uM 6 h", "DrugA 10 uM 24 h", "DrugB 1 uM 24 h"}
    assert set(info.perturbations[1:]) == {*alone, "plain", "DrugB 1 uM 24 h+DrugC 5 uM 24 h"}
    assert set(info.treatments) == {*alone, "DrugC 5 uM 24 h"}
    assert "labels that say neither dose, time nor kind: plain\n" in caplog.text
    left = prepared(cells(perturbation=labels), "left", control="DMSO_24h")  # never by itself
    assert "DrugA_10uM_24h" in left.perturbations
    assert not left.treatments


def test_the_same_gene_up_and_down(prepared):
    data = cells(perturbation=["control", "GENE1", "GENE1", "GENE2"], how=["none", "CRISPRi", "CRISPRa", "CRISPRi"])
    counts = data.X.toarray()
    counts[N : 2 * N, 1] = 0  # by interference alone
    data.X = sp.csr_matrix(counts)
    info = prepared(data, kind_key="how", drop=["no-knock-down"])
    assert info.perturbations == ["control", "GENE1 activation", "GENE1 interference"]  # GENE2 did not fall


def test_controls_are_matched_on_several_columns(prepared):
    data = cells(perturbation=["control", "A", "control", "A"], donor=["P1", "P1", "P2", "P2"], plate=[1, 1, 1, 2])
    assert prepared(data, batch_key="donor,plate").statistics["batches"] == ["P1 / 1", "P2 / 1", "P2 / 2"]


def test_an_agent_is_held_out_with_all_of_its_doses_and_a_dose_alone(prepared):
    names = ["control", *["DrugA"] * 3, *["DrugB"] * 3]
    data = cells(perturbation=names, dose=[0, 1, 10, 100, 1, 10, 100])
    options = {"dose_key": "dose", "dose_unit": "nM"}
    agent = prepared(data, "agent", **options, split="unseen-perturbation:DrugB")
    assert agent.split["pert"] == ["DrugB 0.001 uM", "DrugB 0.01 uM", "DrugB 0.1 uM"]
    half = prepared(data, "half", **options, split="unseen-perturbation:0.5")
    assert len({name.split()[0] for name in half.split["pert"]}) == 1
    assert len(half.split["pert"]) == 3
    dose = prepared(data, "dose", **options, split="unseen-dose:DrugB")
    assert dose.split["pert"] == ["DrugB 0.01 uM"]
    assert "no cell is left" not in str(dose.statistics["remarks"])


def test_datasets_in_different_units_mix(prepared, tmp_path):
    prepared(cells(perturbation=["control", "A"], dose=["0", "1 uM"]), "molar", dose_key="dose")
    prepared(cells(perturbation=["control", "B"], dose=["0", "1 ng/mL"]), "mass", dose_key="dose")
    prepared(cells(perturbation=["control", "A"], dose=["0", "500 nM"]), "nano", dose_key="dose")
    assert list(Sources([tmp_path / "molar", tmp_path / "nano"]).info.treatments) == ["A 1 uM", "A 0.5 uM"]
    assert list(Sources([tmp_path / "molar", tmp_path / "mass"]).info.treatments) == ["A 1 uM", "B 1 ng/mL"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"dose": [0, 1]}, {"dose_key": "dose"}, "numbers without a unit, such as 1; say it: dose_unit=nM"),
        ({"dose": ["0", "high"]}, {"dose_key": "dose"}, "holds 'high', which is no number"),
        ({"dose": [0, 1]}, {"dose_key": "dose", "dose_unit": "mN"}, "unknown unit of a dose 'mN'"),
        ({"dose": ["0", "1 uM+2 uM"]}, {"dose_key": "dose"}, "'A' is 1 perturbation"),
        ({"time": [1, 0]}, {"time_key": "time"}, "a time is 0 h; give a number above 0"),
        ({}, {"parse_labels": True}, "no label ends in a dose, a time or a kind"),
        ({"dose": [0, 1]}, {"parse_labels": True, "dose_key": "dose"}, "leave their columns out"),
        ({}, {"dose_key": "dose"}, "no obs column 'dose'"),
    ],
)
def test_what_is_refused(prepared, columns, options, message):
    with pytest.raises(EvaeError, match=message):
        prepared(cells(perturbation=["control", "A"], **columns), **options)
