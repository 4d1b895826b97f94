"""What loading does to weights and tables: it aligns them, and makes room for larger ones.

Weights are copied to memory from torch, at addresses that are multiples of 64 bytes. safetensors maps a file into
memory, so the address of a tensor depends on its offset in the file. On some processors matrix products round
differently at unaligned addresses. A loaded model would then draw other cells than the saved one.
"""

import ctypes
import itertools
import mmap
import operator
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes; what the CPU allocator of torch gives


@torch.no_grad()
def align_weights(model: nn.Module, is_own_file: bool = True) -> None:
    """Copy every parameter and buffer whose address is not a multiple of 64 bytes, one after the other.

    Tied parameters stay tied, and `requires_grad` does not change.

    Args:
        model: a model that was just loaded.
        is_own_file: whether nothing else uses the mapped file. Its pages are then released while copying, so that
            the weights are not in memory twice.
    """
    files = mapped_files() if is_own_file else []
    for tensor in itertools.chain(model.parameters(), model.buffers()):  # tied ones come once
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            mapped = tensor.data
            tensor.data = mapped.clone()
            if mapped.is_contiguous():
                release_pages(mapped, files)


def mapped_files() -> list[range]:
    """Address ranges of this process's private file mappings; empty where there is no /proc (not Linux)."""
    table = Path("/proc/self/maps")
    if not table.is_file():
        return []
    found = []
    for line in table.read_text().splitlines():
        addresses, rights, _, _, inode, *_ = line.split()
        if inode != "0" and rights.endswith("p"):
            found.append(range(*(int(address, 16) for address in addresses.split("-"))))
    return found


def release_pages(tensor: Tensor, files: list[range]) -> None:
    """Release the memory pages that hold nothing but this tensor; a later access reads them from the file again.

    Memory outside a mapped file would lose its content, so nothing is done for a tensor outside the `files`.
    """
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    if start < end and any(start in file and end - 1 in file for file in files):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def grow_to_fit(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    """Make room for larger tables that are about to be loaded: an adapter brings those of a grown vocabulary.

    Args:
        module: whose own weights and buffers may be smaller than the loaded ones, not those of its layers.
        state_dict, prefix: as `Module._load_from_state_dict` is given them.

    Returns:
        whether something grew.
    """
    own = {
        name: tensor for name, tensor in [*module._parameters.items(), *module._buffers.items()] if tensor is not None
    }
    loaded = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
    larger = {n: new for n, new in loaded.items() if any(map(operator.gt, new.shape, own[n].shape))}
    for name, new in larger.items():
        room = own[name].detach().new_zeros(new.shape)
        setattr(module, name, nn.Parameter(room, own[name].requires_grad) if name in module._parameters else room)
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(module.weight)
    return bool(larger)
