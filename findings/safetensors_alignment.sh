#!/usr/bin/env bash
# Weights loaded from safetensors lie at addresses that are no multiples of 64, unlike those that torch allocates.
#
# Seen 2026-11-28 with safetensors 0.8.0, torch 2.13.0 (CPU), Python 3.11 on x86_64: where a tensor begins depends on
# the length of the file's JSON header, for which only multiples of 8 are kept; 64 headers gave the offsets
# 0, 8, 16, ... 56. On an AMD EPYC of family 25 (Zen 4) `torch.nn.functional.linear` gave other last bits for
# 32 of 384 products of equal weights, one loaded and one in memory; on other processors the bits may agree.
# So a saved and loaded model need not compute what the model in memory did, though torch.equal holds for its weights.
# What helps: copy what was loaded, tensor.clone(). Ends with 1 once all offsets are multiples of 64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file

offsets, unequal, compared = set(), 0, 0
for extra in range(64):
    own = {"weight": torch.randn(24, 16)}
    save_file(own, "weights.safetensors", metadata={"note": "x" * extra})
    loaded = load_file("weights.safetensors")
    assert torch.equal(own["weight"], loaded["weight"])
    offsets.add(loaded["weight"].data_ptr() % 64)
    for n in (1, 3, 4, 7, 20, 100):
        x = torch.randn(n, 16)
        found = [torch.nn.functional.linear(x, w["weight"]) for w in (own, loaded)]
        unequal, compared = unequal + (not torch.equal(*found)), compared + 1
print("address modulo 64 of the loaded weight:", sorted(offsets))
print(f"products that differ in their last bits on this processor: {unequal} of {compared}")
sys.exit(offsets == {0})
PYTHON
