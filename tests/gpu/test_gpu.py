"""On the GPU as on the CPU: both stages, going on after a kill, and all that is done with a model.

All other tests run on the CPU, and CUDA is hidden from this process too. Two processes do the work, see on_device.py:
one on the CPU, whose numbers are the reference, and one that sees the GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORK = Path(__file__).with_name("on_device.py")
TOKENIZERS, PRIORS = ("fsq", "gaussian"), ("evae_ar", "evae_mdlm", "evae_flow")
MODELS = (*TOKENIZERS, *PRIORS)
# EVAE_TESTS_DEVICE=cpu puts the CPU in the place of the GPU: it shows where there is no GPU that these tests run.
DEVICE = os.environ.get("EVAE_TESTS_DEVICE", "cuda")

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def on_the_gpu() -> dict[str, str]:
    """The environment of a process that sees the GPUs that conftest.py has hidden from this one."""
    environment, gpus = dict(os.environ), os.environ["EVAE_TESTS_GPUS"]
    if DEVICE == "cpu":
        return environment
    if torch.version.cuda is None:
        pytest.skip("this build of PyTorch has no CUDA")
    if gpus in ("", "-1"):
        pytest.skip("CUDA_VISIBLE_DEVICES hides every GPU")
    del environment["CUDA_VISIBLE_DEVICES"]
    if gpus != "all":
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    asked = [sys.executable, "-c", "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 77)"]
    if subprocess.run(asked, env=environment).returncode == 77:
        pytest.skip("there is no GPU")
    return environment


@pytest.fixture(scope="module")
def results(screen_dataset, screen_file, tmp_path_factory):
    """The folder in which both processes left their models and numbers."""
    folder, gpu = tmp_path_factory.mktemp("gpu"), on_the_gpu()
    for role, device, environment in (("reference", "cpu", dict(os.environ)), ("gpu", DEVICE, gpu)):
        command = [sys.executable, WORK, role, device, folder, screen_dataset, screen_file]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
    return folder


def losses(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return torch.tensor([line[key] for line in lines for key in ("loss", "validation_loss") if key in line])


def far(one, two):
    """The mean distance of two runs' weights; four steps at a rate of 0.001 move a weight by up to 0.004."""
    first, second = (load_file(run / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().mean()) for name in first)


@pytest.fixture(scope="module")
def numbers(results):
    return [load_file(results / role / "numbers.safetensors") for role in ("reference", "gpu")]


@pytest.mark.parametrize("name", MODELS)
def test_training_steps(results, name):
    reference, gpu = results / "reference" / name, results / "gpu" / name
    expected, found = losses(reference), losses(gpu)
    assert len(found) == 6  # of four steps, two of them followed by a validation
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert far(reference, gpu) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_ends_as_the_whole_one(results, name):
    whole, resumed = results / "gpu" / name, results / "gpu" / f"{name}-resumed"
    torch.testing.assert_close(losses(resumed), losses(whole), rtol=1e-4, atol=1e-5)
    assert far(whole, resumed) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_training_in_bfloat16(results, name):
    """Eight bits of mantissa: a rounding of 0.4 % for each number."""
    torch.testing.assert_close(
        losses(results / "gpu" / f"{name}-bf16"), losses(results / "reference" / name), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize(
    "what", [*(f"encode {name}" for name in TOKENIZERS), *(f"embed {name}" for name in TOKENIZERS)]
)
def test_encoding_and_embedding(numbers, what):
    """In a code, what lies at the border of two levels may round to the other."""
    expected, found = (each[what] for each in numbers)
    assert expected.shape == found.shape
    assert expected.dtype == found.dtype
    if what == "encode fsq":
        assert (expected == found).float().mean() > 0.99
    else:
        near = torch.isclose(found, expected, rtol=1e-3, atol=1e-4).float().mean()
        assert near > (0.99 if what == "embed fsq" else 0.9999)


@pytest.mark.parametrize("what", [f"{step} {name}" for step in ("sample", "predict") for name in PRIORS])
def test_the_same_seed_draws_the_same_cells(numbers, what):
    """A draw at the border of two values may fall to the other side, and what a cell draws later then differs too."""
    expected, found = (each[what] for each in numbers)
    assert expected.shape == found.shape
    assert expected.float().std() > 0
    if what == "sample evae_flow":
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    else:
        assert (expected == found).float().mean() > 0.97
