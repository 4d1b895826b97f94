"""Alignment of loaded weights: they are copied to memory from torch, at addresses that are multiples of 64 bytes.

safetensors maps a file into memory, so the address of a tensor depends on its offset in the file. On some processors
matrix products round differently at unaligned addresses. A loaded model would then draw other cells than the saved one.
"""

import ctypes
import itertools
import mmap
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
