"""Labels of treatments: what is read from them, units within a family, requests that leave something open."""

import math

import pytest

from evae.models.contract_evae import EvaeError
from evae.models.names_evae import KnownTreatments, PerturbationNames
from evae.models.treatments_evae import Treatment, as_dose, as_hours, dose_units, kind_of, readings

DRUG = [Treatment("DrugA", dose=dose, dose_unit="uM", time=24.0) for dose in (0.1, 1.0, 10.0)]
GENE = [Treatment("STAT1", kind=kind) for kind in ("interference", "activation")]


@pytest.fixture
def known() -> KnownTreatments:
    return KnownTreatments({t.label: t for t in [*DRUG, *GENE]}, ["control", "DrugA", "STAT1", "DrugX"], ["control"])


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("DrugA_10uM_24h", Treatment("DrugA", dose=10, dose_unit="uM", time=24)),
        ("DrugA_24h_10uM", Treatment("DrugA", dose=10, dose_unit="uM", time=24)),
        ("Drug_A 500 nM 1 d", Treatment("Drug_A", dose=0.5, dose_unit="uM", time=24)),
        ("IFNB_0.1µg/ml_30min", Treatment("IFNB", dose=100, dose_unit="ng/mL", time=0.5)),
        ("DrugA@1uM", Treatment("DrugA", dose=1, dose_unit="uM")),
        ("STAT1_CRISPRa", Treatment("STAT1", kind="activation")),
        ("STAT1 knock-out 6 h", Treatment("STAT1", kind="knock-out", time=6)),
        ("miR-7", Treatment("miR-7")),
        ("A_3_4", Treatment("A_3_4")),
        ("DrugA_10m", Treatment("DrugA_10m")),  # neither molar nor minutes
        ("24h", Treatment("24h")),
    ],
)
def test_the_rule_of_combined_labels(label, said):
    assert list(readings(label))[-1] == said
    assert list(readings(said.label))[-1] == said  # the canonical label says the same


def test_units_are_converted_within_their_family():
    assert as_dose(0.1, "mM") == (100.0, "uM")
    assert as_dose(2, "µM") == as_dose(2000, "nm") == (2.0, "uM")
    assert as_dose(1, "ug/mL") == (1000.0, "ng/mL")
    assert as_hours(2, "d") == 48
    assert (kind_of("CRISPRi"), kind_of("Small molecule"), kind_of("antibody")) == ("interference", "drug", "antibody")
    with pytest.raises(EvaeError, match=r"unknown unit of a dose 'uN'\. Known are 'M', 'mM', 'uM'"):
        as_dose(1, "uN")
    with pytest.raises(EvaeError, match="above 0"):
        as_dose(0, "uM")
    assert dose_units([*DRUG, Treatment("IFNB", dose=1.0, dose_unit="ng/mL"), *GENE]) == ["uM", "ng/mL"]


def test_a_request_is_completed_where_only_one_thing_can_be_meant(known):
    assert known.asked("DrugA", dose=3.0) == Treatment("DrugA", dose=3, dose_unit="uM", time=24)
    assert known.asked("DrugA", dose=3000, dose_unit="nM").label == "DrugA 3 uM 24 h"
    assert known.asked("DrugA 500 nM").label == "DrugA 0.5 uM 24 h"
    assert known.asked("DrugA", dose=3.0, time=6.0).time == 6
    assert known.asked("control") == Treatment("control")
    assert known.asked("unknown 3 uM") is None
    for asked, message in (
        (("DrugA",), r"'DrugA' was seen with several doses \(0.1, 1, 10\)"),
        (("STAT1",), r"several kinds \('activation', 'interference'\)"),
        (("DrugA 1 uM", 3.0), "names its dose or time itself"),
        (("DrugA", 3.0, "ng/mL"), "3 ng/mL, but the model knows doses in uM"),
        (("DrugA 0 uM",), "above 0"),
    ):
        with pytest.raises(EvaeError, match=message):
            known.asked(*asked)


def test_doses_of_several_families_are_each_those_of_an_agent(known):
    cytokine = [Treatment("IFNB", dose=dose, dose_unit="ng/mL", time=24.0) for dose in (10.0, 100.0)]
    both = KnownTreatments({t.label: t for t in [*DRUG, *GENE, *cytokine]}, ["DrugA", "STAT1", "IFNB", "DrugX"])
    units = both.dose_units()
    assert units == ["uM", "ng/mL"]
    assert both.asked("IFNB", dose=20.0) == Treatment("IFNB", dose=20, dose_unit="ng/mL", time=24)
    assert both.asked("DrugA", dose=20.0).label == "DrugA 20 uM 24 h"
    assert both.asked("DrugX", dose=20.0, dose_unit="ug/mL").label == "DrugX 20000 ng/mL 24 h"  # as all in this unit
    assert both.numbers(cytokine[0], both.kinds(), units)[1:] == pytest.approx([math.nan, 24, 10], nan_ok=True)
    assert both.numbers(DRUG[0], both.kinds(), units)[1:] == pytest.approx([0.1, 24, math.nan], nan_ok=True)
    assert both.neighbours(Treatment("IFNB", dose=1.0, dose_unit="uM", time=24.0)) == []
    for asked, message in (
        (("DrugX", 3.0), r"'DrugX' was seen with several dose units \('ng/mL', 'uM'\)"),
        (("IFNB", 3.0, "nM"), "the model knows doses of 'IFNB' in ng/mL"),
        (("DrugX", 3.0, "Gy"), "the model knows doses in uM and ng/mL"),
    ):
        with pytest.raises(EvaeError, match=message):
            both.asked(*asked)


def test_a_dose_of_a_combination_is_that_of_the_parts_that_were_seen_with_one():
    known = {t.label: t for t in [*DRUG, GENE[0]]}
    names = PerturbationNames(
        ["control", *known, "DrugA 1 uM 24 h+GENE9"], ["control", "DrugA", "STAT1", "GENE9"], "control", "+", known
    )
    assert names.complete("DrugA+STAT1", 3.0, None, None) == "DrugA 3 uM 24 h+STAT1 interference"
    assert names.complete("GENE9+DrugA", 3.0, None, 6.0) == "GENE9+DrugA 3 uM 6 h"  # seen as a part alone
    told = names.numbers(["GENE9+DrugA 1 uM 24 h"])[0]
    assert told[0].isnan().all()
    assert told[1].tolist()[1:] == [1, 24]


def test_neighbours_of_a_dose_are_weighted_on_the_log_scale(known):
    def around(dose: float) -> list[tuple[float, float]]:
        found = known.neighbours(Treatment("DrugA", dose=dose, dose_unit="uM", time=24.0))
        return [(t.dose, pytest.approx(weight)) for t, weight in found]

    assert around(10**0.25) == [(1.0, 0.75), (10.0, 0.25)]
    assert around(1.0) == [(1.0, 1.0)]
    assert around(1000) == [(10.0, 1.0)]  # beyond the known doses the nearest
    assert known.neighbours(Treatment("DrugX", dose=1.0, dose_unit="uM", time=24.0)) == []
