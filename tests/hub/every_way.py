"""Load checkpoints in every way that transformers offers, and say what they give; with the package, or as a script.

As a script, `evae` does not exist, so the code comes with the checkpoint:

    python every_way.py FOLDER REPO_ID... > found.json      (with HF_HUB_OFFLINE set, only what is in the cache)
"""

import json
import sys

if __name__ == "__main__":
    sys.modules["evae"] = None  # type: ignore[assignment]

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoProcessor

WAYS = {
    "plain": {},
    "device_map": {"device_map": "cpu"},
    "dtype": {"dtype": torch.bfloat16},
    "revision": {"revision": "v1"},
    "subfolder": {"subfolder": "nested"},
}


def digest(values: torch.Tensor) -> float:
    """One number that changes with any value and with their order."""
    flat = values.double().flatten()
    return float((flat * torch.linspace(1, 2, len(flat), dtype=torch.float64)).sum())


def drawn(model, processor) -> torch.Tensor:
    """Two cells: drawn by a prior, rebuilt by a tokenizer."""
    generator, library = torch.Generator().manual_seed(0), torch.tensor([100.0, 200.0])
    with torch.no_grad():
        if hasattr(model, "sample_cells"):
            ids = torch.tensor([1, 0])
            return model.sample_cells(ids, 1 - ids, library, generator=generator)
        counts = torch.arange(2 * len(processor.genes)).view(2, -1) % 5
        return model.sample_counts(model.encode(counts.float()), library, generator)


def found(name: str, ways, **options) -> dict[str, object]:
    """What the checkpoint gives: classes, sizes, and the digest of two cells for every way to load it."""
    config = AutoConfig.from_pretrained(name, **options)
    processor = AutoProcessor.from_pretrained(name, **options)
    features = AutoFeatureExtractor.from_pretrained(name, **options)
    assert type(features) is type(processor)
    assert features.genes == processor.genes
    said: dict[str, object] = {"type": config.model_type, "genes": len(processor.genes)}
    for way in ways:
        model = AutoModel.from_pretrained(name, **WAYS[way], **options)
        assert model.dtype == WAYS[way].get("dtype", torch.float32)
        if config.model_type == "evae_ar":
            causal = AutoModelForCausalLM.from_pretrained(name, **WAYS[way], **options)
            assert type(causal) is type(model)
        cells = drawn(model, processor)
        assert cells.shape == (2, len(processor.genes))
        assert cells.sum() > 0
        said[way] = digest(cells)
        assert type(model).__module__.startswith("transformers_modules" if options else "evae")
        said["class"] = type(model).__name__
    return said


if __name__ == "__main__":
    remote = {"trust_remote_code": True}
    folder, *names = sys.argv[1:]
    report = {name: found(name, WAYS, **remote) for name in names}
    report["folder"] = found(folder, ["plain", "device_map", "dtype"], **remote)
    print(json.dumps(report))
