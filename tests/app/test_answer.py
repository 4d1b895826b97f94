"""Questions and answers of the app, without a browser: the cells of a pipeline, and words that hold any name."""

import sys
import types

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import evae
from evae.app.answer import Question, ask
from evae.app.offered import Offered, choose, load_offered
from evae.app.pictures import MAPS, maps, picture_of_cells, picture_of_changes, picture_of_gene, pictures_of_cells
from evae.app.words import about, said, taken, top_genes, trouble
from evae.models.contract_evae import EvaeError


def quiet(share: float, what: str) -> None:
    assert 0 <= share <= 1
    assert what


@pytest.fixture(scope="module")
def offered(tiny_checkpoint):
    return load_offered(["example", str(tiny_checkpoint)], None, "cpu", 100)


@pytest.fixture(scope="module")
def answer(offered):
    return ask(offered["example"], None, Question("STAT1", n_cells=40, seed=3), quiet)


def test_an_answer_is_what_the_pipeline_says(answer, offered):
    pipe, controls = evae.pipeline("example", "cpu"), evae.example_controls()
    predicted = pipe.predict(controls, "STAT1", "rep_3", 40, seed=3, progress=False)
    assert (predicted.X != answer.predicted.X).nnz == 0
    pd.testing.assert_frame_equal(answer.table, pipe.effects(predicted, controls))
    assert list(answer.groups()) == ["control", "predicted"]


def test_files_to_download_hold_the_answer(answer, tmp_path):
    cells, genes = answer.save(tmp_path)
    again, _ = answer.save(tmp_path)  # beside the first
    assert cells != again
    assert cells.is_relative_to(tmp_path)
    assert (ad.read_h5ad(cells).X != answer.predicted.X).nnz == 0
    pd.testing.assert_frame_equal(pd.read_csv(genes, keep_default_na=False), answer.table, check_dtype=False)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question("STAT"), "Did you mean 'STAT3'"),
        (Question("non-targeting"), "is the control"),
        (Question("STAT1", "K562"), "no cell type 'K562'"),
        (Question("STAT1", n_cells=3), "give 10 to 2,000"),
        (Question("STAT1", n_cells=2_001), "give 10 to 2,000"),
    ],
)
def test_a_question_that_cannot_be_answered(offered, question, says):
    with pytest.raises(EvaeError, match=says):
        ask(offered["example"], None, question, quiet)


def test_models_are_chosen_by_name_and_never_by_path(offered, tiny_checkpoint, trained_tokenizer):
    assert list(offered) == ["example", "tiny_checkpoint"]
    assert choose(offered, None).name == "example"
    for wrong in (str(tiny_checkpoint), "..", "tiny"):
        with pytest.raises(EvaeError, match="there is no model"):
            choose(offered, wrong)
    with pytest.raises(EvaeError, match="no control cells come with"):
        ask(offered["tiny_checkpoint"], None, Question(offered["tiny_checkpoint"].perturbations()[0]), quiet)
    with pytest.raises(EvaeError, match="a tokenizer"):
        load_offered([str(trained_tokenizer)], None, "cpu", 100)
    twice = load_offered([str(tiny_checkpoint)] * 2, None, "cpu", 100)
    assert list(twice) == ["tiny_checkpoint (1)", "tiny_checkpoint (2)"]


def test_controls_of_a_file_serve_models_without_their_own(tiny_checkpoint, screen_file, screen):
    (model,) = load_offered([str(tiny_checkpoint)], screen_file, "cpu", 60).values()
    assert model.controls.n_obs == 60
    found = ask(model, None, Question(model.perturbations()[0], "type_B", 20), quiet)
    assert set(found.predicted.obs["cell_type"]) == {"type_B"}
    assert found.controls.n_obs == int((model.controls.obs["cell_type"] == "type_B").sum())


def test_cells_that_do_not_say_their_type_stand_for_the_chosen_one(offered):
    model = offered["example"]
    nameless = evae.example_controls()
    nameless.obs = nameless.obs[[]]
    kinds, key = model.cell_types(nameless)
    assert (kinds, key) == (["rep_1", "rep_2", "rep_3"], None)
    found = ask(model, nameless, Question("JAK2", "rep_2", 20), quiet)
    assert set(found.predicted.obs["cell_type"]) == {"rep_2"}
    assert found.controls.n_obs == nameless.n_obs


def test_words_hold_any_name(answer):
    nasty = "<img src=x onerror=alert(1)>"
    table = answer.table.assign(gene=[nasty, *answer.table["gene"][1:]])
    found = type(answer)(nasty, nasty, answer.predicted, answer.controls, table)
    for text in (said(found), top_genes(found), taken(nasty, 3, [nasty]), trouble(EvaeError(nasty))):
        assert "<img" not in text
        assert "&lt;img" in text


def test_sentences_say_the_numbers(answer, offered):
    changed = answer.changed()
    text = said(answer)
    assert f"{(changed['log2_fold_change'] < 0).sum()} fall" in text
    assert "40 predicted cells" in text
    assert "never together" in text  # STAT1 of this batch was held out
    assert "correlation of 0." in text  # the example is calibrated
    unlike = answer.table.assign(expected_correlation=float("nan"), remark="unlike <i>others</i>")
    assert "not known: unlike &lt;i&gt;" in said(type(answer)("a", "b", answer.predicted, answer.controls, unlike))
    silent = unlike.assign(remark="not calibrated")
    assert "calibrated" not in said(type(answer)("a", "b", answer.predicted, answer.controls, silent))
    none = type(answer)("a", "b", answer.predicted, answer.controls, answer.table.assign(fdr=1.0))
    assert "None of 299 genes" in said(none)
    assert "25 perturbations" in about(offered["example"])
    assert "Column of cell types: " in trouble(EvaeError('say which: cell_type_key="a".'))


def test_pictures_say_in_words_what_they_show(answer):
    assert maps()[-1] in MAPS
    pictures = [picture_of_cells(answer, "Principal components"), picture_of_changes(answer)]
    pictures.append(picture_of_gene(answer, "STAT1"))
    for html in pictures:
        assert html.startswith("<figure><img src='data:image/png;base64,iVBOR")
        assert html.count("Each point is") == 2 or html.count("How much STAT1") == 2  # alt text and caption


def test_a_gene_of_any_name_is_drawn(answer):
    name = "<b>$x_1$</b>"
    groups = {
        k: cells[:, ["STAT1", *[g for g in cells.var_names if g != "STAT1"]]].copy()
        for k, cells in answer.groups().items()
    }
    for cells in groups.values():
        cells.var_names = [name, *cells.var_names[1:]]
    odd = type(answer)(answer.perturbation, answer.cell_type, groups["predicted"], groups["control"], answer.table)
    html = picture_of_gene(odd, name)
    assert name not in html
    assert "&lt;b&gt;$x_1$" in html


def test_a_model_is_offered_with_what_it_knows(offered):
    model = offered["example"]
    assert isinstance(model, Offered)
    assert "non-targeting" not in model.perturbations()
    assert model.cell_types(model.controls) == (["rep_3"], "cell_type")
    assert np.isin(model.cell_types(None)[0], model.pipe.processor.cell_types).all()


def test_principal_components_stand_in_while_umap_compiles_itself(answer, monkeypatch):
    """UMAP itself is stood in for."""
    shapes = []

    class Map:
        def __init__(self, **options):
            pass

        def fit_transform(self, places):
            shapes.append(places.shape)
            return places[:, :2]

    monkeypatch.delitem(sys.modules, "umap", raising=False)
    pictures = pictures_of_cells(answer, "UMAP")
    first = next(pictures)
    assert "UMAP is being prepared" in first
    assert "Principal components of cells" in first
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Map))
    (second,) = pictures
    assert "UMAP of cells" in second
    assert "being prepared" not in second
    assert len(shapes) == 2  # it was prepared on some other cells
    (only,) = pictures_of_cells(answer, "UMAP")
    assert "UMAP of cells" in only


def test_cells_without_a_type_are_left_out(offered):
    cells = evae.example_controls()
    kinds = cells.obs["cell_type"].astype(object)
    kinds.iloc[:100] = None
    cells.obs = pd.DataFrame({"cell_type": kinds})
    model = offered["example"]
    assert model.cell_types(cells) == (["rep_3"], "cell_type")
    assert ask(model, cells, Question("JAK2", n_cells=20), quiet).controls.n_obs == 200


def test_of_a_model_that_learned_doses_others_can_be_named(offered):
    assert offered["example"].more_perturbations() == ""
    processor = types.SimpleNamespace(treatments={"DrugA 1 uM": {}}, perturbations=["control", "DrugA 1 uM"])
    processor.control = "control"
    model = Offered("doses", types.SimpleNamespace(processor=processor), None)
    assert "as in DrugA 1 uM" in model.more_perturbations()
