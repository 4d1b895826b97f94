"""A training step never makes the host wait for a GPU, and sampling does not wait code by code.

No GPU is needed: tensors on the meta device have shapes and no values, and raise where a value is read back.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evae.models import heads_evae
from evae.models.configuration_evae import HEADS
from evae.models.randomness_evae import CellStreams

DEVICE = torch.device("meta")
READ_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "equal")


class Copies(TorchDispatchMode):
    """Collects what works on tensors of several devices, as a copy from the host does."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor) and x.dim()]
        if len({x.device for x in tensors}) > 1:
            self.found.append(str(func))
        return result


class Numbers(TorchFunctionMode):
    """Collects calls that make a tensor of Python or NumPy numbers, which is a copy from the host too."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class ReadBacks(TorchDispatchMode):
    """Counts what reads values back, or has to know how many there are."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func._opname in READ_BACK
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _kept(monkeypatch):
    """The constants that a first step leaves on the device."""
    edges = heads_evae.BIN_UPPER_EDGES
    monkeypatch.setattr(heads_evae, "_CONSTANTS", {(edges, DEVICE): torch.empty(len(edges), device=DEVICE)})


def step(model, **shapes):
    """One step of training on inputs of these shapes; what was copied between host and device."""
    whole = ("codes", "gene_ids", "perturbation_ids", "cell_type_ids")
    kind = {name: torch.long if name in whole else torch.float32 for name in shapes}
    inputs = {name: torch.empty(shape, dtype=kind[name], device=DEVICE) for name, shape in shapes.items()}
    model.to(DEVICE).train()
    with Copies() as copies, Numbers() as numbers:
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    assert any(p.grad is not None for p in model.parameters())
    return copies.found + numbers.found


BASE = {"count_splitting": True, "condition_on_library": True, "loss_genes": 10, "decoder_self_attention": False}
CELLS = {"counts": (6, 9), "gene_ids": (6, 9), "library_size": (6,)}
CONDITIONS = {"perturbation_ids": (6,), "cell_type_ids": (6,), "library_size": (6,)}


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fields", [{}, {"standardize_latents": True} | BASE, {"quantizer": "gaussian"}], ids=str)
def test_tokenizer_step(tiny_tokenizer, head, fields):
    assert step(tiny_tokenizer(head=head, **fields), **CELLS) == []


@pytest.mark.parametrize("kind", ["ar", "mdlm", "flow"])
def test_prior_step(tiny_prior, kind):
    prior = tiny_prior(kind=kind, tokenizer={"condition_on_library": True})
    tokens = {"latents": (6, 4, 3)} if kind == "flow" else {"codes": (6, 4)}
    assert step(prior, **tokens, **CONDITIONS) == []


@pytest.mark.usefixtures("_kept")
def test_what_would_wait_is_found(tiny_tokenizer):
    with Copies() as copies, Numbers() as numbers:
        torch.tensor([1, 2], device=DEVICE)
        torch.ones(2).to(DEVICE)
    assert len(copies.found) == len(numbers.found) == 1
    with pytest.raises(RuntimeError, match="meta tensors"):
        int(torch.empty(3, device=DEVICE).max())
    heads_evae._CONSTANTS.clear()
    assert step(tiny_tokenizer(), **CELLS) != []


@pytest.mark.parametrize("kind", ["ar", "mdlm", "flow"])
def test_sampling_waits_no_oftener_for_more_codes(tiny_prior, kind):
    waits = []
    for n_latents in (4, 8):
        prior = tiny_prior(kind=kind, tokenizer={"n_latents": n_latents})
        with ReadBacks() as read:
            prior.sample(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), generator=CellStreams(0, range(3)))
        waits.append(read.n)
    assert waits[0] == waits[1]
