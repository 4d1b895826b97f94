"""Every short cut of the tokenizer gives what the plain way gives, numbers and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evae.models import EvaeModel, coders_evae, modeling_evae
from evae.models.coders_evae import EvaeDecoder, EvaeEncoder, distinct_pairs, in_buckets, to_sparse
from evae.models.configuration_evae import HEADS
from evae.models.contract_evae import EvaeError
from evae.models.randomness_evae import CellStreams


class PlainEncoder(EvaeEncoder):
    """The encoder layer by layer, every layer with projections of its own, every cell with its own latent tokens."""

    def forward(self, counts, gene_ids):
        tokens = self.embedding(gene_ids, counts)
        latents = self.latent_tokens.expand(len(counts), -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.norm(latents)


class PlainDecoder(EvaeDecoder):
    """The decoder with every cell's own gene queries from the first layer on."""

    def forward(self, latents, context, genes=None):
        memory = self.from_latent(latents) + self.positions
        features = self.gene_queries.expand(len(latents), -1, -1)
        for layer in self.layers:
            features = layer(features, memory)
        return self.output(self.norm(features))


def drawn(model):
    """The model in float64, with biases that are not zero."""
    model.double()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", HEADS)
def test_first_layer_is_worked_out_once(tiny_config, cells, head):
    torch.manual_seed(0)
    fast = drawn(EvaeModel(tiny_config(head=head, sparse_encoding=False, decoder_layers=2))).eval()
    plain = EvaeModel(fast.config).double().eval()
    plain.encoder, plain.decoder = PlainEncoder(fast.config), PlainDecoder(fast.config, plain.head.n_outputs)
    plain.double().eval().load_state_dict(fast.state_dict())
    outputs = [model(cells.double()) for model in (fast, plain)]
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-12, atol=0)
    found, expected = (gradients(m, o.loss) for m, o in zip((fast, plain), outputs, strict=True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_first_layer_in_float32(tiny_config, cells):
    torch.manual_seed(0)
    fast = EvaeModel(tiny_config(sparse_encoding=False)).eval()
    plain = EvaeModel(fast.config).eval()
    plain.decoder = PlainDecoder(fast.config, plain.head.n_outputs).eval()
    plain.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast(cells).outputs, plain(cells).outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_shared_keys_and_values_are_those_of_the_first_layer(tiny_config, cells, sparse):
    torch.manual_seed(0)
    shared = drawn(EvaeModel(tiny_config(share_keys_values=True, sparse_encoding=sparse))).eval()
    own = EvaeModel(tiny_config(sparse_encoding=sparse)).double().eval()
    weights = shared.state_dict()
    for layer in range(1, len(own.encoder.layers)):
        for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
            first = weights[f"encoder.layers.0.cross_attention.{name}"]
            assert f"encoder.layers.{layer}.cross_attention.{name}" not in weights
            weights[f"encoder.layers.{layer}.cross_attention.{name}"] = first
    own.load_state_dict(weights)
    torch.testing.assert_close(shared.embed(cells.double()), own.embed(cells.double()), rtol=1e-12, atol=1e-12)
    found, expected = (gradients(model, model.embed(cells.double()).square().sum()) for model in (shared, own))
    name = "encoder.layers.{}.cross_attention.k_proj.weight"
    torch.testing.assert_close(found[name.format(0)], expected[name.format(0)] + expected[name.format(1)])


class TestLossGenes:
    """A loss over few genes: equal to that over all genes when all are drawn, and unbiased when some are."""

    @pytest.fixture(params=[(head, decoder) for head in HEADS for decoder in ("attention", "mlp")], ids=str)
    def model(self, request, tiny_config):
        head, decoder = request.param
        torch.manual_seed(0)
        config = tiny_config(
            head=head, decoder=decoder, decoder_self_attention=False, gene_offsets=True, loss_genes=2, dropout=0.0,
            n_genes=6,
        )  # fmt: skip
        return drawn(EvaeModel(config)).train()

    def step(self, model, cells, genes, monkeypatch):
        monkeypatch.setattr(model, "_draw_loss_genes", lambda streams, device: genes)
        output = model(cells)
        return output.loss.detach(), gradients(model, output.loss)

    def test_mean_over_all_draws_is_the_loss_over_all_genes(self, model, cells, monkeypatch):
        cells = cells[:, :6].double()
        loss, gradient = self.step(model, cells, None, monkeypatch)
        pairs = [torch.tensor([a, b]) for a in range(6) for b in range(a)]
        steps = [self.step(model, cells, pair, monkeypatch) for pair in pairs]
        torch.testing.assert_close(torch.stack([s[0] for s in steps]).mean(), loss, rtol=1e-6, atol=0)
        for name, expected in gradient.items():
            found = torch.stack([s[1][name] for s in steps]).mean(0)
            largest = float(expected.abs().max())  # heads compute in float32
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * largest + 1e-7, msg=name)
        assert any((steps[0][1][name] - expected).abs().max() > 1e-3 for name, expected in gradient.items())

    def test_genes_are_drawn_anew_in_training_only(self, model, cells):
        device = torch.device("cpu")
        batches = [CellStreams(0, range(1), number) for number in range(300)]
        draws = torch.stack([model._draw_loss_genes(streams, device) for streams in batches])
        assert draws.shape == (300, 2)
        assert (draws[:, 0] != draws[:, 1]).all()
        assert draws.flatten().bincount(minlength=6).min() > 60
        full = model.head.needs_all_genes
        assert model(cells[:, :6].double()).outputs.shape[1] == (6 if full else 2)
        assert model.eval()._draw_loss_genes(None, device) is None
        assert model(cells[:, :6].double()).outputs.shape[1] == 6

    def test_more_genes_than_there_are_means_all(self, tiny_tokenizer):
        model = tiny_tokenizer(loss_genes=500, decoder_self_attention=False).train()
        assert model._draw_loss_genes(CellStreams(0, range(1)), torch.device("cpu")) is None

    def test_not_where_genes_attend_to_each_other(self, tiny_config):
        with pytest.raises(EvaeError, match="decoder_self_attention: false"):
            tiny_config(loss_genes=2)
        with pytest.raises(EvaeError, match="at least 0"):
            tiny_config(loss_genes=-2, decoder_self_attention=False)


@pytest.mark.parametrize("head", HEADS)
def test_cells_do_not_depend_on_how_many_are_decoded_at_once(tiny_tokenizer, monkeypatch, head):
    model = tiny_tokenizer(head=head, sample_within_bins=True)
    codes, library = torch.arange(9 * 4).reshape(9, 4) % 15, torch.linspace(30, 90, 9)

    def draw():
        streams = CellStreams(3, range(9))
        streams.uniform(4)  # a prior's draws
        counts = model.sample_counts(codes, library, streams)
        return counts, streams.uniform(2)

    whole = draw()
    monkeypatch.setattr(modeling_evae, "DECODED_NUMBERS", 30 * 24 * 2)  # two cells
    torch.testing.assert_close(draw()[0], whole[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(draw()[1], whole[1])


def test_sparse_encoding_under_bfloat16(tiny_tokenizer, cells):
    model = tiny_tokenizer()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.embed(*to_sparse(cells))
    torch.testing.assert_close(found.float(), model.embed(cells), rtol=0, atol=0.1)


class TestBuckets:
    """Cells of like numbers of expressed genes are encoded together and share tokens; each comes out as if alone."""

    @pytest.fixture
    def many(self, cells):
        generator = torch.Generator().manual_seed(0)
        thinned = torch.cat([cells, cells * 2, cells + 1])
        keep = torch.rand(len(thinned), 1, generator=generator)
        thinned = thinned * (torch.rand(thinned.shape, generator=generator) < keep)
        thinned[3] = 0
        return thinned.double()

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("packed", [True, False])
    def test_equals_encoding_all_at_once(self, tiny_tokenizer, many, as_gene_lists, packed, shared):
        model = drawn(tiny_tokenizer(quantizer="gaussian", share_keys_values=shared))
        form = to_sparse(many) if packed else as_gene_lists(many)
        found = model.embed(*form, kind="pooled")
        expected = model.encoder.encode_each(*(F.pad(x, (1, 0)) for x in form)).mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        gradient, plain = (gradients(model, x.square().sum()) for x in (found, expected))
        assert gradient.keys() == plain.keys()
        for name in plain:
            torch.testing.assert_close(gradient[name], plain[name], rtol=1e-9, atol=1e-11, msg=name)

    def test_a_bucket_holds_few_tokens(self, many, monkeypatch):
        form = to_sparse(torch.cat([many] * 3))
        sizes = []
        monkeypatch.setattr(coders_evae, "BUCKET_TOKENS", 5 * form[0].shape[1])
        found = in_buckets(lambda counts, genes: (sizes.append(counts.numel()), counts.sum(1))[1], *form)
        assert torch.equal(found, form[0].sum(1))
        assert len(sizes) > 8
        assert max(sizes) <= coders_evae.BUCKET_TOKENS

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_pairs_stand_for_all_entries(self, many, as_gene_lists, dtype):
        counts, genes = as_gene_lists(many)
        genes = genes.to(dtype)
        (pair_genes, pair_counts), place = distinct_pairs(counts, genes)
        assert torch.equal(pair_counts[place], counts)
        assert torch.equal(pair_genes[place][counts > 0], genes[counts > 0].long())
        pairs = set(zip(pair_genes.tolist(), pair_counts.tolist(), strict=True))
        assert len(pairs) == len(pair_genes) < (counts > 0).sum()
        assert pair_counts[0] == 0
        assert (pair_counts[1:] > 0).all()

    def test_less_is_padding(self, many):
        widths = []

        def encode(counts, gene_ids):
            widths.append(counts.shape[1])
            return counts.sum(1)

        form = to_sparse(many)
        assert torch.equal(in_buckets(encode, *form), many.sum(1))
        assert len(widths) == 5
        assert sorted(widths) == widths
        assert widths[0] < widths[-1] == form[0].shape[1]
