"""The one face of the three priors: guidance, one stream of random numbers a cell, the frozen tokenizer, saving."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from evae.models import EvaeError
from evae.models.code_writer_evae import CodeWriter
from evae.models.configuration_evae import HEADS
from evae.models.randomness_evae import CellStreams
from evae.models.sampling_evae import guided

KINDS = ("ar", "mdlm", "flow")
CONDITIONS = {"perturbation_ids": torch.tensor([0, 2, 1]), "cell_type_ids": torch.tensor([1, 0, 1])}
CODES = torch.tensor([[3, 0, 14, 7], [1, 1, 2, 9], [5, 13, 0, 0]])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def prior(tiny_prior, kind):
    return tiny_prior(kind=kind)


def tokens(prior):
    """Three cells as the prior trains on them."""
    if prior.training_input == "codes":
        return {"codes": CODES}
    return {"latents": torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(5))}


def draw(prior, **options):
    return prior.sample(**CONDITIONS, generator=torch.Generator().manual_seed(0), **options)


class TestGuidance:
    @pytest.mark.parametrize("guide", ["perturbation", "all"])
    def test_scale_one_is_no_guidance_and_costs_nothing(self, prior, guide, monkeypatch):
        plain = draw(prior)
        sizes, logits = [], CodeWriter._logits
        prior.token_embedding.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        monkeypatch.setattr(CodeWriter, "_logits", lambda own, x, at: (sizes.append(len(x)), logits(own, x, at))[1])
        assert torch.equal(draw(prior, guidance_scale=1.0, guide=guide), plain)
        assert set(sizes) == {3}
        assert not torch.equal(draw(prior, guidance_scale=4.0, guide=guide), plain)
        assert set(sizes) == {3, 6}

    def test_scale_zero_is_the_null(self, prior):
        null = prior.sample(n_cells=3, generator=torch.Generator().manual_seed(0))
        kept = prior.sample(cell_type_ids=CONDITIONS["cell_type_ids"], generator=torch.Generator().manual_seed(0))
        rounding = {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(draw(prior, guidance_scale=0.0, guide="all"), null, **rounding)
        torch.testing.assert_close(draw(prior, guidance_scale=0.0, guide="perturbation"), kept, **rounding)
        assert not torch.equal(null, kept)

    def test_formula(self):
        x, condition = torch.randn(3, 2), torch.randn(6, 2)
        conditional, null = x * condition[:3], x * condition[3:]
        out = guided(lambda both: both * condition, 2.5, x)
        torch.testing.assert_close(out, null + 2.5 * (conditional - null))

    def test_library_size_stays(self, tiny_prior, kind):
        prior = tiny_prior(kind=kind, tokenizer={"condition_on_library": True})
        cells = [
            prior.sample_cells(
                **CONDITIONS, library_size=torch.full((3,), size), guidance_scale=0.0, guide="all",
                generator=torch.Generator().manual_seed(0),
            )
            for size in (20.0, 2_000.0)
        ]  # fmt: skip
        assert not torch.equal(*cells)

    def test_what_was_not_trained_raises(self, tiny_prior, kind):
        with pytest.raises(EvaeError, match="condition_dropout 0, so it cannot be guided"):
            draw(tiny_prior(kind=kind, condition_dropout=0.0), guidance_scale=2.0)
        draw(tiny_prior(kind=kind, condition_dropout=0.0))
        with pytest.raises(EvaeError, match="guide 'cell' does not exist; choose one of control, perturbation, all"):
            draw(tiny_prior(kind=kind), guide="cell")
        with pytest.raises(EvaeError, match="guidance_scale is -1"):
            draw(tiny_prior(kind=kind), guidance_scale=-1)


class TestCellStreams:
    @pytest.mark.parametrize("head", HEADS)
    def test_same_cells_whatever_the_batch(self, tiny_prior, kind, head):
        prior = tiny_prior(kind=kind, tokenizer={"head": head})
        n, streams = 13, CellStreams(7, range(13))
        conditions = {
            "perturbation_ids": torch.arange(n) % 3,
            "cell_type_ids": torch.arange(n) % 2,
            "library_size": torch.linspace(30, 90, n),
        }

        def cells(batch):
            parts = [slice(i, i + batch) for i in range(0, n, batch)]
            drawn = [
                prior.sample_cells(**{k: v[s] for k, v in conditions.items()}, generator=streams[s]) for s in parts
            ]
            return torch.cat(drawn)

        whole = cells(n)
        assert len(whole.unique(dim=0)) > n // 2  # some may be empty
        for batch in (1, 4, 12):
            torch.testing.assert_close(cells(batch), whole, rtol=1e-4, atol=1e-4)
        other = prior.sample_cells(**conditions, generator=CellStreams(8, range(n)))
        assert (other != whole).any(1).float().mean() > 0.5

    def test_one_generator_decides(self, prior):
        library = torch.full((3,), 60.0)
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(100 + len(drawn))  # the global state must not matter
            generator = torch.Generator().manual_seed(seed)
            drawn.append(prior.sample_cells(**CONDITIONS, library_size=library, generator=generator))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        generator = torch.Generator().manual_seed(1)
        first, second = (prior.sample(**CONDITIONS, generator=generator) for _ in range(2))
        assert not torch.equal(first, second)


class TestFace:
    def test_cells_are_those_of_the_codes_drawn(self, tiny_prior, kind):
        prior = tiny_prior(kind=kind, tokenizer={"head": "mse"})  # its sample is its mean
        library = torch.tensor([30.0, 60.0, 120.0])
        cells = prior.sample_cells(**CONDITIONS, library_size=library, generator=torch.Generator().manual_seed(0))
        assert cells.shape == (3, 30)
        assert torch.equal(cells, prior.tokenizer.mean_counts(draw(prior), library))
        with pytest.raises(EvaeError, match="give library_size"):
            prior.sample_cells(**CONDITIONS)

    def test_conditions_decide_what_is_drawn(self, prior):
        base = draw(prior)
        for left_out in CONDITIONS:
            given = {k: v for k, v in CONDITIONS.items() if k != left_out}
            assert not torch.equal(prior.sample(**given, generator=torch.Generator().manual_seed(0)), base)

    def test_learns_while_the_tokenizer_stays_frozen(self, prior):
        before = {k: v.clone() for k, v in prior.state_dict().items()}
        prior.train()
        optimizer = torch.optim.AdamW([p for p in prior.parameters() if p.requires_grad], lr=1e-2)
        first = last = None
        for step in range(60):
            torch.manual_seed(step % 5)
            loss = prior(**tokens(prior), **CONDITIONS).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            first, last = (loss.item() if first is None else first), loss.item()
        assert last < 0.8 * first
        for name, value in prior.state_dict().items():
            if name.startswith("tokenizer."):
                assert torch.equal(value, before[name]), name
        assert all(p.grad is not None for n, p in prior.named_parameters() if not n.startswith("tokenizer."))

    def test_saved_and_loaded_is_the_same(self, prior, tmp_path):
        prior.save_pretrained(tmp_path)
        loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is type(prior)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in prior.state_dict().items())
        assert torch.equal(draw(loaded.eval()), draw(prior))
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is type(prior.config)
        assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()

    def test_half_precision(self, prior):
        cells = prior.to(torch.bfloat16).sample_cells(**CONDITIONS, library_size=torch.full((3,), 60.0))
        assert cells.dtype == torch.float32
        assert torch.isfinite(cells).all()

    def test_eager_equals_sdpa(self, prior):
        prior = prior.double()
        losses = []
        for implementation in ("sdpa", "eager"):
            prior.config._attn_implementation = implementation
            torch.manual_seed(0)
            losses.append(prior(**tokens(prior), **CONDITIONS).loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class TestWithoutLatents:
    """The ablations: the same three classes over the counts of all genes."""

    @pytest.fixture
    def prior(self, tiny_prior, kind):
        quantizer = "log1p" if kind == "flow" else "bins"
        return tiny_prior(kind=kind, tokenizer={"quantizer": quantizer, "condition_on_library": True})

    def test_a_gene_is_a_latent(self, prior, cells, kind):
        encoded = prior.tokenizer.encode(cells)
        assert prior.n_codes == 30
        assert not list(prior.tokenizer.parameters())
        if kind == "flow":
            torch.testing.assert_close(encoded, torch.log1p(cells).unsqueeze(-1))
            torch.testing.assert_close(prior.tokenizer.sample_counts(encoded, cells.sum(1)), cells)
        else:
            assert prior.config.vocab_size == 21
            small = cells.clamp_max(7)  # exact bins
            assert torch.equal(prior.tokenizer.sample_counts(prior.tokenizer.encode(small), small.sum(1)), small)

    def test_counts_come_sparse_too(self, prior, cells, as_gene_lists):
        counts, gene_ids = as_gene_lists(cells)
        assert torch.equal(prior.tokenizer.encode(counts, gene_ids), prior.tokenizer.encode(cells))

    def test_learns_and_draws_cells(self, prior, cells):
        encoded = {prior.training_input: prior.tokenizer.encode(cells)}
        loss = prior(**encoded, library_size=cells.sum(1)).loss
        assert torch.isfinite(loss)
        drawn = prior.sample_cells(library_size=cells.sum(1), generator=torch.Generator().manual_seed(0))
        assert drawn.shape == cells.shape
        assert (drawn >= 0).all()
        assert drawn.unique(dim=0).shape[0] > 1

    def test_saved_and_loaded_is_the_same(self, prior, tmp_path):
        prior.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        size = torch.full((3,), 60.0)
        draws = [p.sample_cells(library_size=size, generator=torch.Generator().manual_seed(0)) for p in (prior, loaded)]
        assert torch.equal(*draws)

    def test_a_tokenizer_that_does_nothing_is_refused(self, tiny_tokenizer):
        with pytest.raises(EvaeError, match="would do nothing; give fsq, vq, lfq or gaussian"):
            tiny_tokenizer(quantizer="bins")
