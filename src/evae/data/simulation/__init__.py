"""Simulated screens with known effects, for tests and for trying things out.

Enters: sizes and a seed. Leaves: AnnData of raw counts. May import: the input contract.
"""
