"""What the columns and labels of a reversion screen are called."""

from dataclasses import dataclass

from evae.models.contract_evae import EvaeError, check_unique


@dataclass(frozen=True)
class ScreenNames:
    """The names of one screen.

    Attributes:
        condition_key: obs column of the arm of a cell.
        target_key: obs column of the knock-down.
        treated: label of the stressed arm.
        untreated: label of the resting arm.
        anchor: control target whose untreated cells are where the others should go.
        controls: all control targets; they are not ranked.
        positives: targets that are known to revert the stress.
    """

    condition_key: str = "condition"
    target_key: str = "gene_target"
    treated: str = "Treated"
    untreated: str = "Untreated"
    anchor: str = "SAFE_TARGET"
    controls: tuple[str, ...] = ("SAFE_TARGET", "NO-TARGET")
    positives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "controls", tuple(dict.fromkeys((*self.controls, self.anchor))))
        object.__setattr__(self, "positives", tuple(self.positives))
        if self.treated == self.untreated:
            raise EvaeError(f"the treated and the untreated arm are both called '{self.treated}'; name them apart.")
        if not self.positives:
            raise EvaeError("no positive control was named; name the targets that are known to revert the stress.")
        check_unique(self.positives, "positive control")
        both = [p for p in self.positives if p in self.controls]
        if both:
            raise EvaeError(f"'{both[0]}' is named as a positive control and as a control target; name it as one.")


# CRISPRi in TeloHAEC under IL-1b + TNFa: doi:10.64898/2026.06.15.732063.
PRESETS = {
    "telohaec": ScreenNames(positives=("TNFRSF1A", "TRADD", "JUNB", "JUND", "NFKB1", "NFKB2")),
}
