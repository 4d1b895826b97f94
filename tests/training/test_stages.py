"""Both stages over a small simulated dataset, with the real models."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from evae.data.streaming.loader import CellLoader, DatasetInfo
from evae.data.streaming.mixture import Sources
from evae.models import EvaeARForCausalLM, EvaeModel, EvaeProcessor
from evae.models.contract_evae import EvaeError
from evae.training.codes import encode_cells
from evae.training.encoder import Encoder
from evae.training.loop import steps as loop
from evae.training.prior import train_prior
from evae.training.settings import PriorSettings, TokenizerSettings
from evae.training.tokenizer import train_tokenizer

TOKENIZER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "n_latents": 4}
TOKENIZER |= {"encoder_layers": 1, "decoder_layers": 1, "decoder_self_attention": False, "fsq_levels": [4, 4]}
TOKENIZER |= {"standardize_latents": True}
PRIOR = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
SHORT = {"max_steps": 12, "batch_size": 64, "warmup_steps": 2, "save_every": 5, "eval_every": 6, "log_every": 4}
SHORT |= {"mixed_precision": "no", "ema_decay": 0.5, "learning_rate": 1e-2}


def tokenizer_settings(dataset, out, **changes):
    return TokenizerSettings(dataset=str(dataset), output_dir=str(out), **{"model": TOKENIZER} | SHORT | changes)


def prior_settings(dataset, tokenizer, out, **changes):
    values = {"model": PRIOR, "tokenizer": str(tokenizer), "thinned_copies": 1} | SHORT | changes
    return PriorSettings(dataset=str(dataset), output_dir=str(out), **values)


@pytest.fixture(scope="module")
def tokenizer(dataset, tmp_path_factory):
    return train_tokenizer(tokenizer_settings(dataset, tmp_path_factory.mktemp("runs") / "tokenizer"))


@pytest.fixture(scope="module")
def prior(dataset, tokenizer, tmp_path_factory):
    return train_prior(prior_settings(dataset, tokenizer, tmp_path_factory.mktemp("runs") / "prior"))


def lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_tokenizer_folder_loads_with_its_processor(dataset, tokenizer):
    info = DatasetInfo.load(dataset)
    model, processor = EvaeModel.from_pretrained(tokenizer), EvaeProcessor.from_pretrained(tokenizer)
    assert model.config.n_genes == len(info.genes)
    assert model.config.median_library_size == info.statistics["median_library_size"]
    assert (processor.genes, processor.perturbations) == (info.genes, info.perturbations)
    assert (processor.cell_types, processor.control) == (info.cell_types, "control")
    assert processor.library_size_quantiles == info.statistics["library_size_quantiles"]
    assert processor.support(info.cell_types[0], "control") == "seen together"


def test_codebook_use_is_that_of_the_validation_cells(dataset, tokenizer):
    final = [line for line in lines(tokenizer) if "validation_loss" in line][-1]
    model = EvaeModel.from_pretrained(tokenizer).eval()
    cells = CellLoader(dataset, "validation", batch_size=500, shuffle=False, epochs=1, drop_last=False)
    codes = encode_cells(model, cells, Accelerator(cpu=True)).codes
    counts = np.bincount(codes.ravel(), minlength=16)
    share = counts[counts > 0] / counts.sum()
    assert final["validation_codebook_use"] == pytest.approx((counts > 0).mean())
    assert final["validation_codebook_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_the_bottleneck_is_calibrated_once_on_training_cells(dataset, tmp_path, monkeypatch):
    calls = []
    whole = EvaeModel.calibrate

    def spy(self, **cells):
        calls.append(len(cells["counts"]))
        whole(self, **cells)

    monkeypatch.setattr(EvaeModel, "calibrate", spy)
    interrupt(monkeypatch, 7, train_tokenizer, tokenizer_settings(dataset, tmp_path, calibration_cells=100))
    train_tokenizer(tokenizer_settings(dataset, tmp_path, calibration_cells=100, resume=True))
    assert calls == [100]


def test_the_prior_folder_is_self_contained(dataset, tokenizer, prior, tmp_path):
    alone = shutil.copytree(prior, tmp_path / "prior", ignore=shutil.ignore_patterns("checkpoints"))
    model = EvaeARForCausalLM.from_pretrained(alone)
    info = DatasetInfo.load(dataset)
    assert model.config.n_perturbations == len(info.perturbations)
    assert model.config.n_cell_types == len(info.cell_types)
    assert EvaeProcessor.from_pretrained(alone).genes == info.genes
    frozen, trained = model.tokenizer.state_dict(), EvaeModel.from_pretrained(tokenizer).state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in trained.items())


def test_a_prior_checkpoint_leaves_the_frozen_tokenizer_out(tokenizer, prior):
    stored = load_file(prior / "checkpoints/step-00000012/model.safetensors")
    parameters = {f"tokenizer.{name}" for name, _ in EvaeModel.from_pretrained(tokenizer).named_parameters()}
    assert stored
    assert not stored.keys() & parameters


def test_the_prior_learns_on_every_training_cell(dataset, tokenizer, prior):
    """Its reported loss is that of the saved model on the validation cells' codes."""
    final = [line for line in lines(prior) if "validation_loss" in line][-1]
    cells = CellLoader(dataset, "validation", batch_size=500, shuffle=False, epochs=1, drop_last=False)
    encoded = encode_cells(EvaeModel.from_pretrained(tokenizer), cells, Accelerator(cpu=True))
    model = EvaeARForCausalLM.from_pretrained(prior).eval()
    with torch.no_grad():
        loss = model(**encoded.batch(np.arange(len(encoded)))).loss.item()
    assert final["validation_loss"] == pytest.approx(loss, rel=1e-5)


def test_thinned_copies_stand_beside_the_whole_cells(dataset):
    class Molecules(torch.nn.Module):
        def encode(self, counts, gene_ids=None):
            return counts.sum(1, keepdim=True).long()

    sources, model = Sources([dataset]), Molecules()
    encodings = {}
    for copies in (0, 2):
        encodings[copies] = Encoder(sources, model, False, Accelerator(cpu=True), print).split("train", copies)
    n = sources.info.n_cells["train"]
    whole, first, second = (encodings[2].codes[i * n : (i + 1) * n] for i in range(3))
    assert len(encodings[0]) == n
    assert len(encodings[2]) == 3 * n
    assert np.array_equal(whole, encodings[0].codes)
    assert len({codes.tobytes() for codes in (whole, first, second)}) == 3
    assert (first <= whole).all()
    assert (second <= whole).all()
    assert np.array_equal(encodings[2].library_size, np.tile(encodings[0].library_size, 3))


class Killed(BaseException):
    """Stands for a kill: nothing of the run catches it."""


@pytest.mark.usefixtures("all_remarks")
def test_max_epochs_ends_a_prior_early_and_is_still_the_same_run(dataset, tokenizer, tmp_path, capsys):
    """256 training cells, and five thinned copies of each, in batches of 64: one epoch is 24 steps."""
    settings = {"max_epochs": 0.27, "thinned_copies": -1, "eval_every": 3}
    run = train_prior(prior_settings(dataset, tokenizer, tmp_path / "run", **settings))
    said = "7 steps, which are max_epochs=0.27 passes over 256 training cells and 5 thinned copies of each"
    assert said in capsys.readouterr().err
    assert lines(run)[-1]["step"] == 7
    assert [line["step"] for line in lines(run) if "validation_loss" in line] == [3, 6, 7]
    train_prior(prior_settings(dataset, tokenizer, tmp_path / "run", resume=True, **settings))
    assert "is finished" in capsys.readouterr().err
    train_prior(
        prior_settings(
            dataset, tokenizer, tmp_path / "run", resume=True, **settings | {"max_epochs": 0, "max_steps": 9}
        )
    )
    assert lines(run)[-1]["step"] == 9


def interrupt(monkeypatch, at_step, stage, settings):
    """Run a stage and let it die before the update `at_step`."""

    def rate(step, **arguments):
        if step == at_step:
            raise Killed
        return whole(step, **arguments)

    whole = loop.learning_rate_at
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate_at", rate)
        with pytest.raises(Killed):
            stage(settings)


@pytest.mark.parametrize("at_step", [3, 7, 11])
def test_a_resumed_tokenizer_is_the_same(dataset, tokenizer, tmp_path, monkeypatch, at_step):
    """270 cells in batches of 64: the four batches of an epoch end between the checkpoints."""
    interrupt(monkeypatch, at_step, train_tokenizer, tokenizer_settings(dataset, tmp_path))
    train_tokenizer(tokenizer_settings(dataset, tmp_path, resume=True))
    assert_same_weights(tokenizer, tmp_path)


@pytest.mark.parametrize("at_step", [3, 7])
def test_a_resumed_prior_is_the_same(dataset, tokenizer, prior, tmp_path, monkeypatch, at_step):
    interrupt(monkeypatch, at_step, train_prior, prior_settings(dataset, tokenizer, tmp_path))
    train_prior(prior_settings(dataset, tokenizer, tmp_path, resume=True))
    assert_same_weights(prior, tmp_path)


def assert_same_weights(first, second):
    one, two = (load_file(run / "model.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("model", [{"quantizer": "gaussian", "latent_dim": 3}, {"head": "nb", "encoder": "mlp"}])
def test_other_tokenizers_train(dataset, tmp_path, model):
    run = train_tokenizer(tokenizer_settings(dataset, tmp_path, model=TOKENIZER | model, max_steps=2))
    logged = [line for line in lines(run) if "validation_loss" in line][-1]
    assert np.isfinite(logged["validation_loss"])
    assert ("validation_codebook_use" in logged) == ("quantizer" not in model)


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "cannot be loaded"),
        (shutil.rmtree, "cannot be loaded"),
    ],
)
def test_a_damaged_tokenizer_is_named(dataset, tokenizer, tmp_path, damage, message):
    broken = shutil.copytree(tokenizer, tmp_path / "broken", ignore=shutil.ignore_patterns("checkpoints"))
    damage(broken)
    with pytest.raises(EvaeError, match=message) as caught:
        train_prior(prior_settings(dataset, broken, tmp_path / "prior"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "prior").exists()


def test_another_gene_panel_is_refused(dataset, tokenizer, tmp_path):
    other = shutil.copytree(tokenizer, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((other / "preprocessor_config.json").read_text())
    config["genes"][0] = "ANOTHER"
    (other / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(EvaeError, match="another gene panel"):
        train_prior(prior_settings(dataset, other, tmp_path / "prior"))


def test_a_prior_resumes_only_over_its_tokenizer(dataset, tokenizer, tmp_path, monkeypatch):
    interrupt(monkeypatch, 7, train_prior, prior_settings(dataset, tokenizer, tmp_path / "prior"))
    another = train_tokenizer(tokenizer_settings(dataset, tmp_path / "another", seed=1, max_steps=2))
    with pytest.raises(EvaeError, match="the dataset or the tokenizer is not the one"):
        train_prior(prior_settings(dataset, another, tmp_path / "prior", resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"n_latent": 3}}, "Did you mean 'n_latents'"),
        ({"model": {"head": "poisson"}}, "head 'poisson' does not exist"),
        ({"dataset": "nowhere/at/all"}, "no such dataset"),
        ({"dataset": ""}, "dataset is not set"),
        ({"batch_size": 10_000}, "batch_size"),
    ],
)
def test_bad_input_leaves_nothing_behind(dataset, tmp_path, changes, message):
    with pytest.raises(EvaeError, match=message):
        train_tokenizer(tokenizer_settings(changes.pop("dataset", dataset), tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_unknown_prior_is_named(dataset, tokenizer, tmp_path):
    with pytest.raises(EvaeError, match="Did you mean 'evae_ar'"):
        train_prior(prior_settings(dataset, tokenizer, tmp_path / "run", model_type="evae-ar"))


@pytest.mark.usefixtures("all_remarks")
def test_a_finished_run_says_so(dataset, tokenizer, capsys):
    before = (tokenizer / "log.jsonl").read_text()
    for resume in (False, True):
        assert train_tokenizer(tokenizer_settings(dataset, tokenizer, resume=resume)) == tokenizer
        assert (
            "is finished; a larger max_steps with resume=true trains it on, overwrite=true anew"
            in capsys.readouterr().err
        )
    assert (tokenizer / "log.jsonl").read_text() == before


def test_a_damaged_shard_is_named_and_the_run_goes_on_with_a_whole_one(dataset, tokenizer, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    shard = min((copy / "data").glob("train-*.parquet"))
    intact = shard.read_bytes()
    settings = tokenizer_settings(copy, tmp_path / "run", save_every=3)
    genes = pq.ParquetFile(shard).metadata.row_group(0).column(0)
    middle = genes.data_page_offset + genes.total_compressed_size // 2
    shard.write_bytes(intact[:middle] + bytes(b ^ 255 for b in intact[middle : middle + 200]) + intact[middle + 200 :])
    with pytest.raises(EvaeError, match=shard.name):
        train_tokenizer(settings)
    shard.write_bytes(intact)
    train_tokenizer(tokenizer_settings(copy, tmp_path / "run", resume=True))
    assert_same_weights(tokenizer, tmp_path / "run")


@pytest.mark.usefixtures("all_remarks")
def test_other_threads_are_said_and_another_batch_size_is_refused(dataset, tokenizer, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, 7, train_tokenizer, tokenizer_settings(dataset, tmp_path))
    with pytest.raises(EvaeError, match="batch_size was 64 and is 32"):
        train_tokenizer(tokenizer_settings(dataset, tmp_path, resume=True, batch_size=32))
    torch.set_num_threads(2)
    train_tokenizer(tokenizer_settings(dataset, tmp_path, resume=True))
    torch.set_num_threads(1)
    assert "resumed after step 6; 2 CPU threads instead of 1: other last bits" in capsys.readouterr().err
