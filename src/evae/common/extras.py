"""Packages of the optional extras."""

import importlib

from evae.models.contract_evae import EvaeError


def require(module: str, what: str, extra: str = "eval") -> None:
    """Raise `EvaeError` unless a package of an extra can be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == module):
            raise EvaeError(
                f"{what} needs {module}, which is installed but does not load ({error}): pip install 'evae[{extra}]'"
            ) from error
        raise EvaeError(f"{what} needs {module}, which is not installed: pip install 'evae[{extra}]'") from error
