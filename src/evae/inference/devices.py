"""Where to compute: the device that was named, or the best there is."""

import torch

from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """A device on which tensors can be made.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps"; a GPU if there is one, else the CPU, if None.

    Raises:
        EvaeError: no such device, or PyTorch cannot use it here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EvaeError(f"there is no device '{name}'; give cpu, cuda, cuda:1 or mps.") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        n = torch.cuda.device_count()
        seen = f"PyTorch sees {number_of(n, 'CUDA device')} here" if device.type == "cuda" else ""
        reason = seen or str(error).strip().splitlines()[0].rstrip(".")
        raise EvaeError(f"the device '{name}' cannot be used ({reason}); leave it out, or give cpu.") from None
    return device
