"""`evae vcc predict`: the entry that the challenge asks for, its limits, and what it refuses before it begins."""

import json
import shutil
import tarfile

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import evae
import evae.challenge.entry_file as entry_file
import evae.challenge.lists as lists
import evae.challenge.predict as entry_predict
from evae.inference.example import FOLDER
from evae.inference.totals import mean_rates
from evae.inference.transfer import EffectTransfer

CONTEXTS, N_CELLS = ("A", "B", "C"), 7


@pytest.fixture
def predict(run, bundle, zero_shot_model):
    def command(*more, model=zero_shot_model, out="entry.vcc"):
        files = {"--controls": "controls.h5ad", "--perts": "pert_counts.csv", "--genes": "gene_names.csv", "--out": out}
        words = [word for option, name in files.items() for word in (option, str(bundle / name))]
        return run("vcc", "predict", str(model), *words, *more)

    return command


def unpack(path):
    """The h5ad file in a .vcc, and its meta.json."""
    with tarfile.open(path) as tar:
        meta = json.loads(tar.extractfile("meta.json").read())
        packed = pa.CompressedInputStream(pa.BufferReader(tar.extractfile("pred.h5ad.zst").read()), "zstd")
        cells = path.with_suffix(".unpacked.h5ad")
        cells.write_bytes(packed.read())
    return ad.read_h5ad(cells), meta


def test_an_entry_holds_what_was_asked_for(predict, bundle, targets):
    done = predict()
    assert done.code == 0, done.err
    cells, meta = unpack(bundle / "entry.vcc")
    assert list(cells.var_names) == pd.read_csv(bundle / "gene_names.csv")["gene_name"].tolist()
    sizes = cells.obs.groupby(["context", "target_gene"], observed=True).size()
    assert sizes.to_dict() == {(c, t): N_CELLS for c in CONTEXTS for t in targets}
    assert list(cells.obs.columns) == ["target_gene", "context"]
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.X.data.min() > 0
    assert meta["nnz"] == cells.X.nnz
    assert meta["contexts"] == list(CONTEXTS)
    assert meta["panel_id"] == "val"
    assert {path.name for path in bundle.iterdir() if path.name.startswith(".partial")} == set()


def test_the_entry_passes_the_challenges_own_check(predict, bundle):
    """What `vcc prep` and `vcc submit` of vcc-cli check of the file, with all of their limits."""
    prep = pytest.importorskip("vcc.prep", reason="vcc-cli is not installed")
    vccfile, panel = pytest.importorskip("vcc.vccfile"), pytest.importorskip("vcc.panel")
    assert predict(out="entry.h5ad").code == predict().code == 0
    genes, perts = str(bundle / "gene_names.csv"), str(bundle / "pert_counts.csv")
    contexts, manifest = panel.resolve_contexts(None, perts=perts, genes=genes)
    result = prep.run_prep(
        input_path=str(bundle / "entry.h5ad"), genes_path=genes, perts_path=perts, cells_per_pert=None, dry_run=True,
        required_contexts=contexts, panel_id=manifest.panel_id,
    )  # fmt: skip
    assert result.verified_targets
    assert not result.reordered_genes
    assert result.normalization == "counts-preserved"
    assert not result.dropped
    vccfile.validate_vcc(bundle / "entry.vcc")
    assert vccfile.contexts_from_vcc(bundle / "entry.vcc") == contexts
    assert vccfile.nnz_from_vcc(bundle / "entry.vcc") == result.nnz
    assert vccfile.read_vcc_meta(bundle / "entry.vcc")["perts_fingerprint"] == panel.perts_fingerprint(perts)


def test_genes_outside_the_panel_keep_the_controls_counts(predict, bundle, panel):
    """Each cell stands for one control cell of its own context."""
    assert predict("--seed", "3").code == 0
    cells, controls = unpack(bundle / "entry.vcc")[0], ad.read_h5ad(bundle / "controls.h5ad")
    others = [gene for gene in cells.var_names if gene not in panel]
    known = {c: {tuple(row) for row in controls[controls.obs.context == c, others].X.toarray()} for c in CONTEXTS}
    for context, row in zip(cells.obs["context"], cells[:, others].X.toarray(), strict=True):
        assert tuple(row) in known[context]


def test_blocks_are_as_many_as_memory_allows_and_the_seed_decides_the_cells(predict, bundle, monkeypatch):
    sizes = []
    check = entry_file._check
    monkeypatch.setattr(entry_file, "_check", lambda block, first: (sizes.append(block.shape[0]), check(block, first)))
    monkeypatch.setattr(entry_predict, "BLOCK_CELLS", 2 * N_CELLS)
    assert (
        predict(out="first.vcc").code == predict(out="again.vcc").code == predict("--seed", "1", out="other.vcc").code
    )
    assert max(sizes) == 2 * N_CELLS
    first, again, other = (unpack(bundle / f"{name}.vcc")[0].X for name in ("first", "again", "other"))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


def test_a_target_without_a_value_is_named_and_something_may_stand_in(predict, bundle, panel):
    table = pd.read_csv(bundle / "pert_counts.csv")
    unknown = pd.DataFrame([(t, c, N_CELLS) for c in CONTEXTS for t in ("NEVER", "MAYBE")], columns=table.columns)
    pd.concat([unknown, table]).to_csv(bundle / "pert_counts.csv", index=False)
    refused = predict()
    assert refused.code == 2
    assert "no value for 2 of the" in refused.err
    assert "NEVER, MAYBE" in refused.err
    assert "--missing controls" in refused.err
    assert not (bundle / "entry.vcc").exists()

    pd.DataFrame([[8.0, -20.0]], index=["MAYBE"], columns=panel[:2]).to_csv(bundle / "effects.csv")
    done = predict("--missing", "controls", "--effects", str(bundle / "effects.csv"))
    assert done.code == 0, done.err
    assert "control cells stand in: NEVER" in done.out
    assert "given effects stand in: MAYBE" in done.out
    cells, controls = unpack(bundle / "entry.vcc")[0], ad.read_h5ad(bundle / "controls.h5ad")[:, list(panel)]
    shifted = cells[cells.obs.target_gene == "MAYBE", list(panel)].X.toarray()
    assert shifted[:, 0].mean() > 4 * controls.X[:, [0]].mean()
    assert shifted[:, 1].mean() < 0.5 * controls.X[:, [1]].mean()
    rows = {tuple(row) for row in controls.X.toarray()}
    copies = cells[cells.obs.target_gene == "NEVER", list(panel)].X.toarray()
    assert all(tuple(row) in rows for row in copies)


def test_a_model_that_knows_cell_types_by_name_needs_one_to_stand_for_the_contexts(predict, tiny_checkpoint, bundle):
    refused = predict(model=tiny_checkpoint)
    assert refused.code == 2
    assert "--cell-type (type_A, type_B)" in refused.err
    assert predict("--cell-type", "type_A", model=tiny_checkpoint).code == 0
    assert predict("--cell-type", "type_C", "--overwrite", model=tiny_checkpoint).code == 2
    assert len(unpack(bundle / "entry.vcc")[0]) > 0


def test_a_dry_run_checks_and_writes_nothing(predict, bundle):
    done = predict("--dry-run")
    assert done.code == 0
    assert not (bundle / "entry.vcc").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--temperature", "0"), "give a number above 0"),
        (("--guidance-scale", "nan"), "give 0 or more"),
        (("--steps", "3"), "no sampling option 'num_steps'"),
        (("--seed", "-1"), "--seed"),
        (("--batch-size", "0"), "give at least 1"),
        (("--perturbation-key", "nope"), "no obs column 'nope'"),
    ],
)
def test_a_dry_run_refuses_what_the_model_would(predict, words, said):
    refused = predict("--dry-run", *words)
    assert refused.code == 2
    assert said in refused.err


def test_controls_without_labels_are_said(predict, bundle):
    edit_controls(bundle, lambda cells: ad.AnnData(cells.X, obs=cells.obs[["context"]], var=cells.var))
    done = predict("--dry-run")
    assert done.code == 0
    assert "no obs column 'target_gene'" in done.out
    assert "taken for controls" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("room", "limit", "value", "said"),
    [
        (lists, "MAX_CELLS", 10, "an entry may hold 10"),
        (entry_predict, "MAX_STORED", 10, "the challenge takes 10"),
        (entry_predict, "MAX_COUNTS", 10, "may have 10"),
        (entry_predict, "BYTES_STORED", 1e15, "GB are free"),
    ],
)
def test_limits_are_checked_before_anything_is_drawn(predict, bundle, monkeypatch, room, limit, value, said):
    monkeypatch.setattr(room, limit, value)
    monkeypatch.setattr(entry_predict, "draw_cells", lambda *a, **k: pytest.fail("cells were drawn"))
    refused = predict()
    assert refused.code == 2
    assert said in refused.err
    assert not (bundle / "entry.vcc").exists()


@pytest.mark.parametrize("limit", ["MAX_STORED", "MAX_COUNTS"])
def test_limits_hold_for_what_is_drawn_too(predict, bundle, monkeypatch, limit):
    monkeypatch.setattr(entry_file, limit, 10)
    refused = predict()
    assert refused.code == 2
    assert "10" in refused.err
    assert [path.name for path in bundle.iterdir() if "entry" in path.name] == []


def edit_controls(bundle, change):
    cells = ad.read_h5ad(bundle / "controls.h5ad")
    change(cells).write_h5ad(bundle / "controls.h5ad")


def rename(column, value):
    def change(cells):
        cells.obs[column] = value
        return cells

    return change


def halved(cells):
    cells.X = cells.X / 2
    return cells


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename("target_gene", "NEVER"), "no 'non-targeting' cells of context A, B, C"),
        (rename("context", "A"), "no 'non-targeting' cells of context B, C"),
        (lambda cells: cells[:, cells.var_names != "MORE3"].copy(), "lacks 1 of the entry's"),
        (halved, "hold fractional values"),
        (lambda cells: cells[:, [0, 1]].copy(), "lacks"),
    ],
)
def test_controls_that_cannot_serve_are_refused(predict, bundle, change, said):
    edit_controls(bundle, change)
    refused = predict()
    assert refused.code == 2
    assert said in refused.err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gene_names.csv", "gene_name\nA\nA\n", "names A twice"),
        ("gene_names.csv", "gene_name\n", "names no gene"),
        ("pert_counts.csv", "gene,context\nA,A\n", "no column 'target_gene'"),
        ("pert_counts.csv", "target_gene,context\nnon-targeting,A\n", "names no perturbation"),
        ("pert_counts.csv", "target_gene,context\nX,A\nX,A\n", "no rows for context B, C"),
        ("pert_counts.csv", "target_gene,context\nX,A\nX,A\nX,B\nX,C\n", "names X twice in context A"),
        ("pert_counts.csv", "target_gene,context\nX,\n", "names no context for X"),
        ("pert_counts.csv", "target_gene,context,n_cells\nX,A,0\n", "no whole number of cells of X"),
        ("pert_counts.csv", "target_gene,context,n_cells\nX,A,2.5\n", "no whole number of cells of X"),
    ],
)
def test_lists_that_make_no_entry_are_refused(predict, bundle, name, text, said):
    (bundle / name).write_text(text)
    refused = predict()
    assert refused.code == 2
    assert said in refused.err


def test_contexts_come_from_the_option_the_manifest_or_the_list(bundle):
    def contexts(*given):
        return lists.read_plan(bundle / "gene_names.csv", bundle / "pert_counts.csv", "non-targeting", *given).contexts

    assert contexts(["C", "A"]) == ["C", "A"]
    (bundle / "manifest.json").write_text(json.dumps({"contexts": ["B"]}))
    assert contexts() == ["B"]
    (bundle / "manifest.json").unlink()
    assert contexts() == list(CONTEXTS)
    (bundle / "pert_counts.csv").write_text("target_gene\nX\nnon-targeting\n")
    with pytest.raises(lists.EvaeError, match="give --contexts"):
        contexts()
    plan = lists.read_plan(bundle / "gene_names.csv", bundle / "pert_counts.csv", "non-targeting", ["A", "B"])
    assert plan.cells == {("A", "X"): 400, ("B", "X"): 400}


def test_the_ending_says_what_is_written(predict):
    refused = predict(out="entry.csv")
    assert refused.code == 2
    assert "neither in .vcc nor in .h5ad" in refused.err


@pytest.mark.parametrize("transfers", [True, False])
def test_cells_have_the_means_of_their_targets(predict, bundle, tmp_path, monkeypatch, transfers):
    """As `Pipeline.predict` gives them; see `evae.inference.spread`."""
    model = tmp_path / "example"
    shutil.copytree(FOLDER, model, ignore=None if transfers else shutil.ignore_patterns("effects.safetensors"))
    controls = evae.example_controls()
    controls.obs = controls.obs.assign(target_gene="non-targeting", context="A")
    controls.write_h5ad(bundle / "controls.h5ad")
    pd.Series(controls.var_names).to_csv(bundle / "gene_names.csv", index=False, header=["gene_name"])
    lines = "".join(f"{name},A,40\n" for name in ("STAT1", "JAK2"))
    (bundle / "pert_counts.csv").write_text(f"target_gene,context,n_cells\n{lines}")
    (bundle / "manifest.json").unlink()
    drawn, moved = [], []
    draw, move = entry_predict.draw_cells, EffectTransfer.move

    def spy(*arguments, means, **more):
        drawn.append((draw(*arguments, means=means, **more), means))
        return drawn[-1][0]

    monkeypatch.setattr(entry_predict, "draw_cells", spy)
    monkeypatch.setattr(EffectTransfer, "move", lambda *a, means: (moved.append(means), move(*a, means=means))[1])
    done = predict(model=model)
    assert done.code == 0, done.err
    (found, means), cells = drawn[-1], unpack(bundle / "entry.vcc")[0]
    assert means is not None
    assert moved[-1:] == ([means] if transfers else [])
    if not transfers:
        genes = evae.pipeline(model, device="cpu").processor.genes
        for number, name in enumerate(cells.obs["target_gene"].unique()):
            wanted = means.means()[number]
            rows, many = (cells.obs["target_gene"] == name).to_numpy(), wanted > 20
            rates = [mean_rates(X) for X in (cells[rows, genes].X, found[rows])]
            off, before = (np.abs(rate[many] / wanted[many] - 1).mean() for rate in rates)
            assert off < before / 2
