"""Models in the hands of transformers: its Trainer, its logits processors, its ways of loading."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, Trainer, TrainingArguments

CELLS = 16
CONDITIONS = {"perturbation_ids": [1] * CELLS, "cell_type_ids": [0] * CELLS}


@pytest.fixture
def codes(tiny_prior):
    return torch.randint(tiny_prior().config.vocab_size - 1, (CELLS, 4), generator=torch.Generator().manual_seed(0))


def train(prior, rows, folder, accumulate, **settings):
    """One step over all rows, without anything random."""
    model = copy.deepcopy(prior)
    model.config.condition_dropout = model.config.cell_type_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=CELLS // accumulate, learning_rate=1e-2, use_cpu=True,
        gradient_accumulation_steps=accumulate, report_to=[], logging_steps=1, disable_tqdm=True, max_grad_norm=0.0,
        **settings,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize("by", ["codes", "labels"])
def test_accumulated_gradients_are_those_of_one_batch(tiny_prior, codes, tmp_path, by):
    """transformers 5.23.0 takes every model whose `forward` has **kwargs for one that divides its loss by the items of
    all accumulated batches, where rows have labels: losses and gradients of four batches came out four times as large.
    Source: `accepts_loss_kwargs` in trainer.py."""
    columns = {"codes": codes}
    if by == "labels":
        bos = torch.full((CELLS, 1), tiny_prior().config.bos_token_id)
        columns = {"input_ids": torch.cat([bos, codes], 1), "labels": torch.cat([bos, codes], 1)}
    rows = Dataset.from_dict({name: values.tolist() for name, values in columns.items()} | CONDITIONS)
    prior, found = tiny_prior(), []
    for accumulate in (1, 4):
        trainer = train(prior, rows, tmp_path, accumulate, save_strategy="no", label_names=[by])
        found.append([trainer.state.log_history[0][key] for key in ("loss", "grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert trainer.evaluate()["eval_loss"] < found[0][0]


def test_a_checkpoint_of_the_trainer_is_a_model_folder(tiny_prior, codes, tmp_path):
    rows = Dataset.from_dict({"codes": codes.tolist()} | CONDITIONS)
    trainer = train(tiny_prior(), rows, tmp_path, 1, save_steps=1)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    for name, values in trainer.model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], values)


def test_logits_processors_decide_what_is_drawn(tiny_prior):
    class Without(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([0, 3, 7]), float("-inf"))

    prior, ids = tiny_prior(), torch.tensor([1, 2])
    drawn = {}
    for name, processors in (("all", []), ("without", [Without()])):
        torch.manual_seed(0)
        drawn[name] = prior.generate(
            perturbation_ids=ids, cell_type_ids=torch.zeros_like(ids), num_return_sequences=100,
            logits_processor=LogitsProcessorList(processors),
        )  # fmt: skip
    assert set(drawn["all"].flatten().tolist()) >= {0, 3, 7}
    assert not set(drawn["without"].flatten().tolist()) & {0, 3, 7}


@pytest.mark.parametrize(
    ("how", "dtype"), [({"device_map": "auto"}, torch.float32), ({"dtype": torch.bfloat16}, torch.bfloat16)]
)
def test_ways_of_loading(tiny_prior, tmp_path, how, dtype):
    prior = tiny_prior()
    prior.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **how)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    for name, values in prior.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name].to(values.dtype), values, atol=2e-2, rtol=1e-2)
