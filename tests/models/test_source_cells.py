"""Priors that read source cells and known effects."""

import pytest
import torch

from evae.models.contract_evae import EvaeError
from evae.models.randomness_evae import CellStreams

N, LATENTS = 5, 4
PERTURBATIONS, CELL_TYPES = torch.tensor([0, 1, 2, 1, 2]), torch.tensor([0, 1, 0, 1, 1])
LIBRARY = torch.tensor([40.0, 60.0, 80.0, 50.0, 70.0])
CODES = torch.tensor([[0, 3, 7, 14], [1, 1, 2, 9], [5, 4, 3, 2], [14, 0, 0, 1], [8, 8, 8, 8]])
WIDTHS = {"ar": 2, "mdlm": 2, "flow": 3}


def build(tiny_prior, kind, sources=1, **fields):
    return tiny_prior(kind=kind, source_cells=sources, condition_on_effect=True, control_id=0, n_effects=3, **fields)


def conditions(kind, sources=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (N, sources, LATENTS, WIDTHS[kind])
    return {
        "perturbation_ids": PERTURBATIONS,
        "cell_type_ids": CELL_TYPES,
        "library_size": LIBRARY,
        "source_latents": torch.randn(shape, generator=generator),
        "source_library_size": 30 + 40 * torch.rand(N, sources, generator=generator),
        "effect": torch.randn(N, LATENTS * WIDTHS[kind], generator=generator),
    }


def training_input(kind):
    return {"latents": torch.randn(N, LATENTS, 3)} if kind == "flow" else {"codes": CODES}


@pytest.mark.parametrize("kind", ["ar", "mdlm", "flow"])
@pytest.mark.parametrize("sources", [1, 3])
class TestEveryPrior:
    def test_trains(self, tiny_prior, kind, sources):
        prior = build(tiny_prior, kind, sources).train()
        streams = CellStreams(3, range(N))
        prior(**training_input(kind), **conditions(kind, sources), generator=streams).loss.backward()
        for name in ("source.projection", "condition.effect.projection"):
            assert prior.get_submodule(name).weight.grad.abs().sum() > 0

    def test_every_condition_changes_what_is_drawn(self, tiny_prior, kind, sources):
        prior, given = build(tiny_prior, kind, sources), conditions(kind, sources)
        drawn = prior.sample_cells(**given, generator=CellStreams(0, range(N)))
        other = conditions(kind, sources, seed=1)
        other["source_library_size"] = 50 * given["source_library_size"]
        for name in ("source_latents", "source_library_size", "effect"):
            changed = prior.sample_cells(**{**given, name: other[name]}, generator=CellStreams(0, range(N)))
            assert (changed != drawn).any(), name

    def test_a_cell_does_not_depend_on_its_batch(self, tiny_prior, kind, sources):
        prior, given, streams = build(tiny_prior, kind, sources), conditions(kind, sources), CellStreams(0, range(N))
        options = {"guidance_scale": 1.5}
        whole = prior.sample(**given, generator=streams, **options)
        for start in range(0, N, 2):
            rows = slice(start, start + 2)
            part = {name: values[rows] for name, values in given.items()}
            found = prior.sample(**part, generator=CellStreams(0, range(N))[rows], **options)
            torch.testing.assert_close(found, whole[rows], rtol=1e-4, atol=1e-4)

    def test_without_sources_and_with_unknown_effects(self, tiny_prior, kind, sources):
        prior, given = build(tiny_prior, kind, sources), conditions(kind, sources)
        ids = {name: given[name] for name in ("perturbation_ids", "cell_type_ids", "library_size")}
        unknown = torch.full_like(given["effect"], torch.nan)
        plain = prior.sample(**ids, generator=CellStreams(0, range(N)))
        torch.testing.assert_close(prior.sample(**ids, effect=unknown, generator=CellStreams(0, range(N))), plain)

    def test_guidance_leads_away_from_the_control(self, tiny_prior, kind, sources):
        prior, given = build(tiny_prior, kind, sources), conditions(kind, sources)
        null = prior.sample(**given, guidance_scale=0.0, generator=CellStreams(0, range(N)))
        control = {"perturbation_ids": torch.zeros(N, dtype=torch.long), "effect": torch.zeros_like(given["effect"])}
        torch.testing.assert_close(prior.sample(**{**given, **control}, generator=CellStreams(0, range(N))), null)

    def test_saved_and_loaded(self, tiny_prior, kind, sources, tmp_path):
        prior, given = build(tiny_prior, kind, sources), conditions(kind, sources)
        effects = torch.randn(3, 3, LATENTS * WIDTHS[kind])
        effects[1, 2] = torch.nan
        prior.condition.effect.set_table(effects)
        prior.source.set_statistics(torch.randn(9, LATENTS, WIDTHS[kind]) * 3)
        prior.save_pretrained(tmp_path)
        loaded = type(prior).from_pretrained(tmp_path)
        torch.testing.assert_close(loaded.condition.effect.effects(), effects, equal_nan=True)
        assert all(values.isfinite().all() for values in loaded.state_dict().values())
        drawn = [p.sample(**given, generator=CellStreams(0, range(N))) for p in (prior, loaded)]
        assert torch.equal(*drawn)

    def test_a_wrong_shape_is_refused(self, tiny_prior, kind, sources):
        prior, given = build(tiny_prior, kind, sources), conditions(kind, sources)
        with pytest.raises(EvaeError, match="source latents must be"):
            prior.sample(**{**given, "source_latents": given["source_latents"][:, :, :2]})
        with pytest.raises(EvaeError, match="effects must be"):
            prior.sample(**{**given, "effect": given["effect"][:, :2]})
        with pytest.raises(EvaeError, match="source_cells 0"):
            tiny_prior(kind=kind).sample(source_latents=given["source_latents"], library_size=LIBRARY)


@pytest.mark.parametrize("sources", [1, 3])
class TestAutoregressive:
    def test_a_code_reads_the_whole_prompt_and_the_codes_before_it(self, tiny_prior, sources):
        prior, given = build(tiny_prior, "ar", sources), conditions("ar", sources)

        def logits(**changed):
            return prior(**{"codes": CODES, **given, **changed}).logits.detach()

        plain = logits()
        later = CODES.clone()
        later[:, 2] = (later[:, 2] + 1) % 15
        assert torch.equal(logits(codes=later)[:, :3], plain[:, :3])
        assert (logits(codes=later)[:, 3] != plain[:, 3]).any()
        source = given["source_latents"].clone()
        source[:, -1, -1] += 1  # the last token of the prompt
        assert ((logits(source_latents=source) - plain).abs().amax((0, 2)) > 1e-4).all()

    @pytest.mark.parametrize("guidance", [1.0, 1.7])
    def test_the_fast_loop_draws_what_the_network_says(self, tiny_prior, sources, guidance):
        prior, given = build(tiny_prior, "ar", sources), conditions("ar", sources)
        drawn = prior.sample(**given, guidance_scale=guidance, temperature=1e-6, generator=CellStreams(0, range(N)))
        conditional = prior(codes=drawn, **given).logits
        control = {"perturbation_ids": torch.zeros(N, dtype=torch.long), "effect": torch.zeros_like(given["effect"])}
        null = prior(codes=drawn, **{**given, **control}).logits
        best = (null + guidance * (conditional - null))[..., :-1].argmax(-1)
        assert torch.equal(best, drawn)

    def test_generate_reads_the_prompt_once(self, tiny_prior, sources, monkeypatch):
        prior, given = build(tiny_prior, "ar", sources), conditions("ar", sources)
        read, embed = [], prior.source.forward
        monkeypatch.setattr(prior.source, "forward", lambda *a, **k: (read.append(1), embed(*a, **k))[1])
        codes = prior.generate(**given, do_sample=False)
        assert len(read) == 1
        assert codes.shape == (N, LATENTS)
        assert torch.equal(prior(codes=codes, **given).logits[..., :-1].argmax(-1), codes)

    def test_scores_add_up(self, tiny_prior, sources):
        prior, given = build(tiny_prior, "ar", sources), conditions("ar", sources)
        loss = prior(codes=CODES, **given).loss
        torch.testing.assert_close(-prior.score(CODES, **given).mean() / LATENTS, loss.detach())


class TestFlowFromTheSource:
    """Paths that begin at the control cell instead of at noise."""

    def test_trains_draws_and_comes_back_from_disk(self, tiny_prior, tmp_path):
        prior = build(tiny_prior, "flow", start_from="source")
        given = conditions("flow")
        loss = prior.train()(**training_input("flow"), **given, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        prior.eval().save_pretrained(tmp_path)
        again = type(prior).from_pretrained(tmp_path)
        drawn, same = (p.sample(**given, generator=torch.Generator().manual_seed(1)) for p in (prior, again))
        assert torch.equal(drawn, same)

    def test_the_path_begins_at_the_standardised_source(self, tiny_prior, monkeypatch):
        """Where the velocity is 0, the drawn latents are the source's but for the noise that is added."""
        prior = build(tiny_prior, "flow", start_from="source")
        prior.set_statistics(5 + 3 * torch.randn(200, LATENTS, 3, generator=torch.Generator().manual_seed(2)))
        monkeypatch.setattr(type(prior), "_velocity", lambda self, z, *_: torch.zeros_like(z))
        given = conditions("flow")
        drawn = prior.sample(**given, guidance_scale=1.0, generator=torch.Generator().manual_seed(1))
        away = (drawn - given["source_latents"][:, 0]) / prior.scale.std
        assert 0.1 < away.std() < 0.6
        monkeypatch.setattr("evae.models.modeling_evae_flow.START_NOISE", 0.0)
        torch.testing.assert_close(prior.sample(**given, guidance_scale=1.0), given["source_latents"][:, 0])

    def test_the_loss_is_that_of_the_path_from_the_source(self, tiny_prior, monkeypatch):
        prior = build(tiny_prior, "flow", start_from="source")
        monkeypatch.setattr("evae.models.modeling_evae_flow.START_NOISE", 0.0)
        given, latents = conditions("flow"), training_input("flow")["latents"]
        way = (latents - given["source_latents"][:, 0]) / prior.scale.std
        monkeypatch.setattr(type(prior), "_velocity", lambda self, z, *_: way)
        assert prior(latents, **given).loss < 1e-10

    def test_what_does_not_fit_is_refused(self, tiny_prior):
        with pytest.raises(EvaeError, match=r"set model\.source_cells=1"):
            build(tiny_prior, "flow", sources=0, start_from="source")
        with pytest.raises(EvaeError, match="give noise or source"):
            build(tiny_prior, "flow", start_from="control")
        given = {name: value for name, value in conditions("flow").items() if not name.startswith("source")}
        with pytest.raises(EvaeError, match="give source_latents"):
            build(tiny_prior, "flow", start_from="source").sample(**given)
