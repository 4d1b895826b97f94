"""The autoregressive prior as a language model: likelihood, cache, conditions, the frozen tokenizer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeError, code_writer_evae, device_evae
from evae.models.adaln_evae import modulations
from evae.models.code_writer_evae import CodeWriter
from evae.models.randomness_evae import CellStreams

CODES = torch.tensor([[3, 0, 14, 7], [1, 1, 2, 9], [5, 13, 0, 0]])
CONDITIONS = {"perturbation_ids": torch.tensor([0, 2, 1]), "cell_type_ids": torch.tensor([1, 0, 1])}
BOS = 15


def with_bos(codes):
    return F.pad(codes, (1, 0), value=BOS)


class TestLikelihood:
    def test_loss_is_the_code_log_likelihood_by_hand(self, tiny_prior):
        """Each code's probability from the logits of its prefix alone, without the cache."""
        prior = tiny_prior().double()
        log_likelihood = torch.zeros(3, 4, dtype=torch.float64)
        for position in range(4):
            prefix = with_bos(CODES[:, :position])
            logits = prior(input_ids=prefix, **CONDITIONS).logits[:, -1]
            log_p = logits - logits.exp().sum(-1, keepdim=True).log()
            log_likelihood[:, position] = log_p.gather(1, CODES[:, position : position + 1]).squeeze(1)
        loss = prior(codes=CODES, **CONDITIONS).loss
        assert loss.item() == pytest.approx(-log_likelihood.mean().item(), rel=1e-6)

    def test_labels_path_is_the_codes_path(self, tiny_prior):
        prior = tiny_prior()
        codes = prior(codes=CODES, **CONDITIONS)
        labels = prior(input_ids=with_bos(CODES), labels=with_bos(CODES), **CONDITIONS)
        torch.testing.assert_close(labels.loss, codes.loss)
        torch.testing.assert_close(labels.logits[:, :4], codes.logits)
        ignored = with_bos(CODES).clone()
        ignored[1:] = -100
        first = prior(input_ids=with_bos(CODES), labels=ignored, **CONDITIONS).loss
        alone = prior(codes=CODES[:1], **{k: v[:1] for k, v in CONDITIONS.items()}).loss
        torch.testing.assert_close(first, alone)

    def test_logits_see_no_later_code(self, tiny_prior):
        prior = tiny_prior()
        changed = CODES.clone()
        changed[:, 2] = (changed[:, 2] + 5) % BOS
        before, after = prior(codes=CODES, **CONDITIONS).logits, prior(codes=changed, **CONDITIONS).logits
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert (before[:, 3] - after[:, 3]).abs().amax(-1).min() > 1e-4

    def test_vocabulary(self, tiny_prior):
        prior = tiny_prior()
        assert prior.config.vocab_size == 16
        assert prior.config.bos_token_id == BOS
        logits = prior(codes=CODES).logits
        assert logits.shape == (3, 4, 16)
        assert (logits.softmax(-1)[..., 15] == 0).all()  # BOS cannot be drawn
        assert torch.distributions.Categorical(logits=logits).entropy().isfinite().all()


class TestCacheAndAttention:
    def test_cached_equals_uncached(self, tiny_prior):
        prior = tiny_prior().double()
        tokens = with_bos(CODES)
        whole = prior(input_ids=tokens, **CONDITIONS).logits
        for steps in ([1, 1, 1, 1, 1], [2, 3], [1, 3, 1]):
            cache, parts = None, []
            for part in tokens.split(steps, dim=1):
                output = prior(input_ids=part, past_key_values=cache, use_cache=True, **CONDITIONS)
                cache = output.past_key_values
                parts.append(output.logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-12, rtol=1e-12)

    @pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
    @pytest.mark.parametrize("conditions", [CONDITIONS, {"perturbation_ids": torch.tensor([2, 2, 2])}])
    def test_sampling_equals_sampling_that_recomputes_the_prefix(self, tiny_prior, conditions, guidance_scale):
        """The laid-out cache and the modulation worked out once for each distinct condition change nothing."""
        prior = tiny_prior().double()
        drawn = prior.sample(**conditions, n_cells=3, generator=CellStreams(1, range(3)), guidance_scale=guidance_scale)
        uniform, codes = CellStreams(1, range(3)).uniform(4), torch.zeros(3, 0, dtype=torch.long)
        null = {k: v for k, v in conditions.items() if k != "perturbation_ids"}
        for position in range(4):
            with torch.no_grad():
                logits = prior(input_ids=with_bos(codes), **conditions).logits[:, -1]
                without = prior(input_ids=with_bos(codes), **null).logits[:, -1]
            shares = (without + guidance_scale * (logits - without)).float().softmax(-1).cumsum(-1)
            code = (shares <= uniform[:, position : position + 1] * shares[:, -1:]).sum(1, keepdim=True)
            codes = torch.cat([codes, code], dim=1)
        assert torch.equal(drawn, codes)

    @pytest.mark.parametrize("bfloat16", [False, True])
    @pytest.mark.parametrize("at", [int, lambda position: torch.tensor([position])], ids=["number", "tensor"])
    @pytest.mark.parametrize("layout", ["few positions", "many positions", "as on a GPU"])
    def test_the_writer_equals_the_network(self, tiny_prior, bfloat16, at, layout, monkeypatch):
        """Code by code, for conditions that differ; in bfloat16 as near as that format is."""
        prior = tiny_prior()
        monkeypatch.setattr(code_writer_evae, "FEW_POSITIONS", 0 if layout == "many positions" else 32)
        monkeypatch.setattr(device_evae, "_forced", layout == "as on a GPU")
        prior = prior if bfloat16 else prior.double()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            expected = prior(codes=CODES, **CONDITIONS).logits[..., :BOS]
            writer, found = CodeWriter(prior, 3, is_guided=False, n_modulations=3), []
            writer.begin(prior, prior.condition_modulation(3, **CONDITIONS), torch.zeros(3, 4), 1.0, 1.0)
            for kept in writer.caches:
                kept.zero_()
            for position, tokens in enumerate(with_bos(CODES[:, :-1]).unbind(1)):
                x = prior.token_embedding(tokens) + prior.position_embedding.weight[position]
                found.append(writer._logits(x.to(writer.tokens.dtype), at(position)))
        largest = float(expected.abs().max())
        tolerance = {"rtol": 0, "atol": 0.03 * largest if bfloat16 else 1e-12 * largest}
        torch.testing.assert_close(torch.stack(found, dim=1), expected, **tolerance)
        assert writer.caches[0].dtype == (torch.bfloat16 if bfloat16 else torch.float64)

    def test_eager_equals_sdpa(self, tiny_prior):
        prior = tiny_prior().double()
        sdpa = prior(codes=CODES, **CONDITIONS).logits
        prior.config._attn_implementation = "eager"
        eager = prior(codes=CODES, **CONDITIONS).logits
        torch.testing.assert_close(eager, sdpa, atol=1e-12, rtol=1e-12)

    def test_precomputed_modulation(self, tiny_prior):
        prior = tiny_prior()
        modulation = prior.condition_modulation(3, **CONDITIONS)
        assert modulation.shape == (3, 6 * 2 + 2, 16)
        expected = prior(codes=CODES, **CONDITIONS).logits
        assert torch.equal(prior(codes=CODES, modulation=modulation).logits, expected)


class TestConditions:
    def test_each_condition_matters(self, tiny_prior):
        prior = tiny_prior()
        base = prior(codes=CODES, **CONDITIONS).logits
        for name, ids in CONDITIONS.items():
            other = prior(codes=CODES, **{**CONDITIONS, name: 1 - ids.clamp_max(1)}).logits
            assert not torch.allclose(base, other)

    def test_left_out_means_the_null_row(self, tiny_prior):
        prior = tiny_prior()
        null = {"perturbation_ids": torch.full((3,), 3), "cell_type_ids": torch.full((3,), 2)}
        for name in CONDITIONS:
            given = {k: v for k, v in CONDITIONS.items() if k != name}
            expected = prior(codes=CODES, **given, **{name: null[name]}).logits
            assert torch.equal(prior(codes=CODES, **given).logits, expected)
            assert not torch.equal(prior(codes=CODES, **CONDITIONS).logits, expected)
        assert torch.equal(prior(codes=CODES).logits, prior(codes=CODES, **null).logits)

    def test_dropout_rates_in_training(self, tiny_prior):
        """A third each of the dropped cells loses the perturbation, the cell type, or both."""
        condition = tiny_prior(condition_dropout=0.3).condition.train()
        n = 30_000
        torch.manual_seed(0)
        with torch.no_grad():  # condition vectors that tell which rows were used
            condition.perturbation.weight.zero_()[3] = 1
            condition.cell_type.weight.zero_()[2] = 10
        used = condition(n, torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long), None)[:, 0]
        share = [(used == value).float().mean().item() for value in (0, 1, 10, 11)]
        np.testing.assert_allclose(share, [0.7, 0.1, 0.1, 0.1], atol=5 * (0.21 / n) ** 0.5)
        condition.eval()
        assert (condition(n, torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long), None) == 0).all()

    def test_library_size_is_asked_for_and_matters(self, tiny_prior):
        prior = tiny_prior(tokenizer={"condition_on_library": True})
        for call in (prior, prior.generate, prior.sample_codes):
            arguments = {"codes": CODES} if call is prior else {}
            with pytest.raises(EvaeError, match="give library_size"):
                call(**arguments, **CONDITIONS)
        torch.nn.init.normal_(prior.condition.library[2].weight)
        small, large = (prior(codes=CODES, library_size=torch.full((3,), s)).logits for s in (20.0, 500.0))
        assert not torch.allclose(small, large)

    def test_bad_ids(self, tiny_prior):
        prior = tiny_prior()
        for name, size in (("perturbation", 3), ("cell type", 2)):
            key = f"{name.replace(' ', '_')}_ids"
            for call in (lambda **ids: prior(codes=CODES, **ids), prior.generate, prior.sample_codes):
                for wrong in (size + 1, -1):
                    with pytest.raises(EvaeError, match=f"{name} id {wrong} does not exist"):
                        call(**{key: torch.tensor([0, 1, wrong])})
        with pytest.raises(EvaeError, match="2 perturbation ids were given for 3 cells"):
            prior(codes=CODES, perturbation_ids=torch.tensor([0, 1]))
        for arguments in ({"codes": CODES + 1}, {"input_ids": with_bos(CODES) + 1}):
            with pytest.raises(EvaeError, match=r"code id 1[56] does not exist"):
                prior(**arguments)
        with pytest.raises(EvaeError, match="give input_ids"):
            prior()
        with pytest.raises(EvaeError, match="a cell has 4 codes"):
            prior(input_ids=torch.zeros(1, 6, dtype=torch.long))

    def test_starts_without_conditions(self, tiny_config):
        """adaLN-Zero: a fresh prior ignores its conditions and every block is the identity."""
        prior = EvaeARForCausalLM(EvaeARConfig(tokenizer_config=tiny_config(), n_perturbations=3, n_cell_types=2))
        prior.eval()
        assert torch.equal(prior(codes=CODES, **CONDITIONS).logits, prior(codes=CODES).logits)
        x, modulation = torch.randn(2, 4, 384), modulations(torch.zeros(2, 6, 384))
        assert torch.equal(prior.blocks[0](x, modulation), x)


class TestFrozenTokenizer:
    def test_stays_frozen_and_in_evaluation_mode(self, tiny_prior, tmp_path):
        prior = tiny_prior()
        prior.save_pretrained(tmp_path)
        for model in (prior, EvaeARForCausalLM.from_pretrained(tmp_path)):
            model.train()
            assert model.blocks[0].training
            assert not any(module.training for module in model.tokenizer.modules())
            assert not any(p.requires_grad for p in model.tokenizer.parameters())
            assert all(p.requires_grad for k, p in model.named_parameters() if not k.startswith("tokenizer."))
            model(codes=CODES, **CONDITIONS).loss.backward()
            assert all(p.grad is None for p in model.tokenizer.parameters())

    def test_every_own_parameter_learns(self, tiny_prior):
        prior = tiny_prior(condition_dropout=0.0).train()
        prior(codes=CODES, **CONDITIONS).loss.backward()
        for name, parameter in prior.named_parameters():
            if not name.startswith("tokenizer.") and not name.endswith("k_proj.bias"):
                assert parameter.grad.abs().max() > 0, name

    def test_set_tokenizer_copies(self, tiny_prior, tiny_tokenizer, cells):
        prior, tokenizer = tiny_prior(), tiny_tokenizer(seed=5)
        tokenizer.calibrate(cells)
        prior.set_tokenizer(tokenizer)
        assert torch.equal(prior.tokenizer.encode(cells), tokenizer.encode(cells))
        state = prior.tokenizer.state_dict()
        assert all(torch.equal(state[k], v) for k, v in tokenizer.state_dict().items())


def test_save_and_load_bit_for_bit(tiny_prior, tmp_path):
    prior = tiny_prior(tokenizer={"head": "nb", "standardize_latents": True, "condition_on_library": True})
    library = {"library_size": torch.tensor([30.0, 60.0, 90.0])}
    prior.save_pretrained(tmp_path)
    loaded = EvaeARForCausalLM.from_pretrained(tmp_path)
    expected, found = prior.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    assert torch.equal(
        loaded(codes=CODES, **CONDITIONS, **library).logits,
        prior(codes=CODES, **CONDITIONS, **library).logits,
    )
    draws = [
        model.sample_cells(**CONDITIONS, **library, generator=torch.Generator().manual_seed(0))
        for model in (prior, loaded)
    ]
    assert torch.equal(*draws)


def test_bfloat16(tiny_prior, tmp_path):
    """Codes of a prior in bfloat16 are decoded as those codes: grid values survive the format."""
    prior = tiny_prior()
    prior.save_pretrained(tmp_path)
    loaded = EvaeARForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    latents = loaded.tokenizer.codes_to_latents(CODES)
    assert latents.dtype == torch.bfloat16
    assert torch.equal(loaded.tokenizer.quantizer.values_to_codes(latents), CODES)
    torch.testing.assert_close(
        loaded(codes=CODES, **CONDITIONS).loss, prior(codes=CODES, **CONDITIONS).loss, atol=0.05, rtol=0.05
    )
    cells = loaded.sample_cells(**CONDITIONS, library_size=torch.full((3,), 60.0))
    assert cells.dtype == torch.float32
    assert cells.shape == (3, 30)
