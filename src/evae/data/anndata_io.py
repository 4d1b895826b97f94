"""The name under which `read_split` was documented first; it stays, as notebooks import it from here."""

from evae.data import read_split

__all__ = ["read_split"]
