"""Simulated screens with known effects, for tests and for trying things out.

Enters: sizes and a seed. Leaves: AnnData or h5ad of raw counts. May import: the input contract.
"""

from evae.data.simulation.dose_curves import simulate_dose_screen
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.simulation.screen import ReversionScreen, write_reversion_screen

__all__ = ["ReversionScreen", "simulate_dose_screen", "simulate_perturb_seq", "write_reversion_screen"]
