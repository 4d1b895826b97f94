"""A run folder of the authors' training becomes a checkpoint of ours that computes the same.

Enters: a folder with `config.yaml` and weights as safetensors, and a file of gene names. Leaves: a model folder.
May import: `models`, `data.reading`, `training` (tables of feature vectors), `common`.

The layout of their folders and the names of their tensors are facts of the published code (`sanjukta7/sc-evae`).
"""

from evae.conversion.convert import Conversion, convert

__all__ = ["Conversion", "convert"]
