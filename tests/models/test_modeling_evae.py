"""The tokenizer: published sizes, every variant, the exactness of saving and loading, calibration."""

import itertools

import pytest
import torch
from transformers import AutoModel

from evae.models import EvaeConfig, EvaeError, EvaeModel
from evae.models.configuration_evae import CODERS, HEADS, QUANTIZERS
from evae.models.modeling_evae import log_library, to_dense, to_sparse


def attention_shapes(name, d=256):
    return {
        f"{name}.{part}.{kind}": (d, d) if kind == "weight" else (d,)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj")
        for kind in ("weight", "bias")
    }


def block_shapes(name, d=256, feed_forward=1024):
    shapes = attention_shapes(f"{name}.self_attention") | attention_shapes(f"{name}.cross_attention")
    for norm, kind in itertools.product(("self_norm", "cross_norm", "feed_forward_norm"), ("weight", "bias")):
        shapes[f"{name}.{norm}.{kind}"] = (d,)
    return shapes | {
        f"{name}.feed_forward.up.weight": (feed_forward, d),
        f"{name}.feed_forward.up.bias": (feed_forward,),
        f"{name}.feed_forward.down.weight": (d, feed_forward),
        f"{name}.feed_forward.down.bias": (d,),
    }


def published_shapes(quantizer, head):
    """Parameters of the published tokenizer: 2,000 genes, 64 latents, d 256, FFN 1024, 4 + 4 layers."""
    d, n_outputs = 256, {"ce-quantile": 20, "hurdle": 2, "mse": 1, "nb": 1}[head]
    into, out = {"fsq": (3, 3), "vq": (32, 32), "lfq": (9, 9), "gaussian": (64, 32)}[quantizer]
    shapes = {
        "encoder.embedding.gene_embedding.weight": (2000, d),
        "encoder.embedding.up.weight": (d, 1),
        "encoder.embedding.down.weight": (d, d),
        "encoder.latent_tokens": (64, d),
        "to_latent.weight": (into, d),
        "to_latent.bias": (into,),
        "decoder.from_latent.weight": (d, out),
        "decoder.from_latent.bias": (d,),
        "decoder.positions": (64, d),
        "decoder.gene_queries": (2000, d),
        "decoder.output.weight": (n_outputs, d),
        "decoder.output.bias": (n_outputs,),
    }
    for coder in ("encoder", "decoder"):
        shapes |= {f"{coder}.norm.weight": (d,), f"{coder}.norm.bias": (d,)}
        for layer in range(4):
            shapes |= block_shapes(f"{coder}.layers.{layer}")
    codes = {"quantizer.code_counts": (512,), "quantizer.code_sums": (512, 32)} if quantizer == "vq" else {}
    return shapes | codes | ({"head.log_dispersion": (2000,)} if head == "nb" else {})


@pytest.mark.parametrize(("quantizer", "head"), itertools.product(QUANTIZERS, HEADS))
def test_published_configuration_has_the_published_sizes(quantizer, head):
    config = EvaeConfig(quantizer=quantizer, head=head)
    assert config.num_attention_heads == 8
    assert config.dropout == 0.1
    assert config.codebook_size == 512
    assert config.kl_weight == 1e-6
    with torch.device("meta"):
        model = EvaeModel(config)
    assert {k: tuple(p.shape) for k, p in model.state_dict().items()} == published_shapes(quantizer, head)


@pytest.mark.parametrize(("encoder", "decoder"), itertools.product(CODERS, CODERS))
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("extras", [False, True])
def test_every_variant_trains(encoder, decoder, quantizer, head, extras, tiny_config, cells):
    """The loss is finite, and every parameter that can matter has a finite gradient, not all zero."""
    torch.manual_seed(0)
    config = tiny_config(
        encoder=encoder,
        decoder=decoder,
        quantizer=quantizer,
        head=head,
        standardize_latents=extras,
        condition_on_library=extras,
        gene_offsets=extras,
        sparse_encoding=not extras,
    )
    model = EvaeModel(config).train()
    output = model(cells)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert output.outputs.shape == (7, 30, {"ce-quantile": 20, "hurdle": 2}.get(head, 1))
    assert (output.codes is None) == (quantizer == "gaussian")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        without_effect = (
            name.endswith("k_proj.bias")  # softmax over memory tokens
            or (name == "decoder.output.bias" and decoder == "attention" and head == "nb")  # softmax over genes
        )
        if not without_effect:
            assert parameter.grad.abs().max() > 0, name


class TestForward:
    def test_loss_adds_the_weighted_kl(self, tiny_tokenizer, cells):
        output = tiny_tokenizer(quantizer="gaussian", kl_weight=0.5)(cells)
        torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.5 * output.kl_loss)
        assert output.kl_loss > 0

    def test_loss_is_the_loss_of_its_own_codes(self, tiny_tokenizer, cells):
        for head in HEADS:
            model = tiny_tokenizer(head=head)
            output = model(cells)
            expected = model.head.loss(model.decode(output.codes, cells.sum(1)), cells, cells.sum(1))
            torch.testing.assert_close(output.loss, expected)
            assert torch.equal(output.codes, model.encode(cells))
            assert output.codes.min() >= 0
            assert output.codes.max() < 15

    def test_evaluation_is_deterministic_and_training_is_not(self, tiny_tokenizer, cells):
        for quantizer in QUANTIZERS:
            model = tiny_tokenizer(quantizer=quantizer)
            assert torch.equal(model(cells).loss, model(cells).loss)
            model.train()
            assert not torch.equal(model(cells).loss, model(cells).loss)

    def test_cells_do_not_see_each_other(self, tiny_tokenizer, cells):
        model = tiny_tokenizer().double()
        one = torch.cat([model(cells[i : i + 1].double()).outputs for i in range(7)])
        torch.testing.assert_close(model(cells.double()).outputs, one, atol=1e-10, rtol=0)

    def test_sampling_follows_the_generator_and_the_library_size(self, tiny_tokenizer, cells):
        model = tiny_tokenizer(head="nb")
        codes, library = model.encode(cells), torch.full((7,), 500.0)
        draw = [model.sample_counts(codes, library, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert draw[0].shape == (7, 30)
        assert torch.equal(draw[0], draw[1])
        assert not torch.equal(draw[0], draw[2])
        torch.testing.assert_close(model.mean_counts(codes, library).sum(1), library)

    def test_library_condition_reaches_the_outputs(self, tiny_tokenizer, cells):
        for decoder in CODERS:
            model = tiny_tokenizer(condition_on_library=True, decoder=decoder)
            codes = model.encode(cells)
            with pytest.raises(EvaeError, match="give library_size"):
                model.decode(codes)
            small, large = (model.decode(codes, torch.full((7,), size)) for size in (20.0, 200.0))
            assert not torch.allclose(small, large)

    @pytest.mark.parametrize("kind", ["latents", "pooled", "codes"])
    def test_embeddings(self, kind, tiny_tokenizer, cells):
        model = tiny_tokenizer(standardize_latents=True)
        embedding = model.embed(cells, kind=kind)
        assert embedding.shape == (7, 16 if kind == "pooled" else 8)
        if kind == "codes":
            torch.testing.assert_close(embedding, model.codes_to_latents(model.encode(cells)).flatten(1))
        if kind == "latents":
            codes = model.quantizer(embedding.unflatten(1, (4, 2)))[1]
            assert torch.equal(codes, model.encode(cells))

    def test_log_library_counts_doublings(self):
        assert log_library(torch.tensor([50.0, 100.0, 400.0]), 100.0).flatten().tolist() == [-1, 0, 2]


class TestBadInput:
    def test_wrong_panel_wrong_gene_wrong_code_wrong_embedding(self, tiny_tokenizer, cells):
        model = tiny_tokenizer()
        with pytest.raises(EvaeError, match="29 genes, the panel has 30"):
            model(cells[:, :29])
        for call in (model, model.encode):
            with pytest.raises(EvaeError, match="gene id 30 does not exist"):
                call(torch.ones(1, 2), torch.tensor([[3, 30]]))
        for wrong in (15, -1):
            with pytest.raises(EvaeError, match=f"code id {wrong} does not exist"):
                model.sample_counts(torch.tensor([[0, 1, 2, wrong]]), torch.tensor([100.0]))
        with pytest.raises(EvaeError, match="choose latents, pooled or codes"):
            model.embed(cells, kind="umap")


@pytest.fixture
def large(tiny_config):
    """A function that gives an attention tokenizer as it is before training, large enough for statistics."""

    def build(**fields):
        torch.manual_seed(0)
        sizes = {"n_genes": 100, "hidden_size": 64, "num_attention_heads": 4, "n_latents": 32, "fsq_levels": [8, 8]}
        return EvaeModel(tiny_config(**{**sizes, "condition_on_library": True, **fields})).eval()

    return build


class TestInitialisation:
    def test_expressed_genes_have_tokens_of_order_one(self, tiny_config):
        """transformers passes over modules without own parameters, where an initialisation is lost silently."""
        torch.manual_seed(0)
        model = EvaeModel(tiny_config(n_genes=500, hidden_size=64))
        embedding = model.encoder.embedding
        assert 3.6 < embedding.gene_embedding.weight.std() < 4.4
        assert 0.9 < model.decoder.gene_queries.std() < 1.1
        tokens = embedding(torch.arange(500).unsqueeze(0), torch.full((1, 500), 2.0))
        assert 0.5 < tokens.std() < 5

    def test_the_codes_of_a_cell_say_different_things(self, large):
        """Values before the quantizer span many directions over cells, not one that all latent tokens share."""
        model, cells = large(), torch.poisson(torch.rand(200, 100) * 2)
        latents = model.embed(cells)
        share = torch.linalg.svdvals((latents - latents.mean(0)) / latents.std(0)) ** 2
        share = share / share.sum()
        assert torch.exp(-(share * share.log()).sum()) > 20

    def test_genes_tell_codes_apart(self, large):
        """Codes in another order decode to something else about as much as other codes do."""
        model, library = large(), torch.full((50,), 100.0)
        codes = torch.randint(64, (50, 32))
        outputs, reordered = model.decode(codes, library), model.decode(codes.roll(1, 1), library)
        others = model.decode(codes.roll(1, 0), library)
        assert (reordered - outputs).std() > 0.5 * (others - outputs).std()
        assert (others - outputs).std() > 0.15 * outputs.std(1).mean()

    def test_library_size_is_read_however_many_codes_there_are(self, large):
        effects = []
        for n_latents in (4, 128):
            model, codes = large(n_latents=n_latents), torch.randint(64, (20, n_latents))
            few, many = (model.decode(codes, torch.full((20,), library)) for library in (50.0, 200.0))
            effects.append((many - few).std())
        assert effects[1] > 0.5 * effects[0]

    def test_a_fresh_tokenizer_tells_cells_apart(self, tiny_tokenizer, cells):
        model = tiny_tokenizer(standardize_latents=True)
        model.calibrate(cells)
        assert len(model.train()(cells).codes.unique(dim=0)) == len(cells)


class TestCalibrate:
    def test_gives_zero_mean_and_unit_variance(self, tiny_tokenizer, cells):
        model = tiny_tokenizer()
        with torch.no_grad():
            model.to_latent.weight.mul_(0.05)
            model.to_latent.bias.add_(3)
        assert model.encode(cells).unique().numel() == 1
        model.calibrate(cells)
        latents = model.embed(cells).unflatten(1, (4, 2)).flatten(0, 1)
        torch.testing.assert_close(latents.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std(0), torch.ones(2), atol=1e-4, rtol=0)
        assert model.encode(cells).unique().numel() > 1

    def test_sets_the_standardizer(self, tiny_tokenizer, cells):
        model = tiny_tokenizer(standardize_latents=True)
        with torch.no_grad():  # so that cells differ by more than the standardizer's floor of the variance
            model.encoder.embedding.down.weight.mul_(30)
        model.calibrate(*to_sparse(cells))
        latents = model.embed(cells).unflatten(1, (4, 2))
        torch.testing.assert_close(latents.mean(0), torch.zeros(4, 2), atol=1e-3, rtol=0)
        torch.testing.assert_close(latents.std(0), torch.ones(4, 2), atol=1e-2, rtol=0)

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("sparse", [True, False])
    @pytest.mark.parametrize("decoder", CODERS)
    def test_starts_at_the_marginals(self, head, sparse, decoder, tiny_tokenizer, cells):
        model, many = tiny_tokenizer(head=head, decoder=decoder, gene_offsets=True), cells.repeat(40, 1)
        with torch.no_grad():  # every cell has the outputs of the start
            (model.decoder.output if decoder == "attention" else model.decoder.body.output).weight.zero_()
        model.calibrate(*(to_sparse(many) if sparse else (many,)))
        start = model(cells).outputs.detach()

        def slope(outputs):
            """Mean over genes of how far each output is from its best value, as the loss sees it."""
            outputs.requires_grad_()
            model.head.loss(outputs, cells, cells.sum(1)).backward()
            return outputs.grad.sum(0).abs().mean(0)

        assert (slope(start) < 0.2 * slope(torch.zeros_like(start))).all()

    def test_little_hides_the_marginals(self, large):
        model, cells = large(gene_offsets=True), torch.poisson(torch.rand(200, 100) * 2)
        model.calibrate(cells)
        marginal = model.head.marginal(cells, cells.sum(1)).expand(200, -1, -1)
        assert model(cells).loss < model.head.loss(marginal, cells, cells.sum(1)) + 0.05

    def test_the_published_decoder_stays_as_it_was(self, tiny_tokenizer, cells):
        model = tiny_tokenizer()
        before = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
        model.calibrate(cells)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.decoder.state_dict().items())


class TestSaveAndLoad:
    @pytest.mark.parametrize("head", HEADS)
    def test_bit_for_bit(self, head, tiny_tokenizer, cells, tmp_path):
        model = tiny_tokenizer(head=head, standardize_latents=True, condition_on_library=True)
        model.calibrate(cells)
        if head == "nb":
            torch.nn.init.normal_(model.head.log_dispersion)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is EvaeModel
        assert not loaded.training
        expected, found = model.state_dict(), loaded.state_dict()
        assert found.keys() == expected.keys()
        assert "standardizer.running_mean" in found
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        for key, value in model(cells).items():
            assert torch.equal(loaded(cells)[key], value), key
        fields = {k: v for k, v in model.config.to_dict().items() if k not in ("auto_map", "_name_or_path")}
        again = loaded.config.to_dict()
        assert {k: again[k] for k in fields} == fields | {"architectures": ["EvaeModel"], "dtype": "float32"}

    def test_bfloat16(self, tiny_tokenizer, cells, tmp_path):
        model = tiny_tokenizer()
        model.calibrate(cells)
        model.save_pretrained(tmp_path)
        loaded = EvaeModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        codes = torch.arange(15).repeat(4).reshape(-1, 4)
        latents = loaded.codes_to_latents(codes)
        torch.testing.assert_close(latents.float(), model.codes_to_latents(codes), atol=0, rtol=2**-8)
        assert torch.equal(loaded.quantizer.values_to_codes(latents), codes)
        agreement = (loaded.encode(cells) == model.encode(cells)).float().mean()
        assert agreement > 0.7
        library = torch.full((15,), 60.0)
        mean = loaded.mean_counts(codes, library)
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean, model.mean_counts(codes, library), rtol=0.1, atol=0.5)

    def test_autocast_encodes_and_trains(self, tiny_tokenizer, cells):
        model = tiny_tokenizer(standardize_latents=True).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(cells)
        output.loss.backward()
        assert torch.isfinite(output.loss)


def test_dense_and_sparse_forms_are_inverse(cells, as_gene_lists):
    assert torch.equal(to_dense(*to_sparse(cells), 30), cells)
    assert torch.equal(to_dense(*as_gene_lists(cells), 30), cells)
    counts, gene_ids = to_sparse(torch.zeros(2, 30))
    assert counts.shape == gene_ids.shape == (2, 1)
