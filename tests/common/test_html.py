"""What notebooks show of a pipeline and of results: tables with the same texts as in the terminal, escaped."""

import re

import evae
from evae.common.html import html_table
from evae.data import read_split
from evae.evaluation import evaluate


def cells_of(html):
    return re.findall(r"<t[dh] [^>]*>(.*?)</t[dh]>", html)


def test_texts_are_escaped_and_counted():
    html = html_table("a <b>", ["x", "y"], [("<script>", "1"), ("model", "2")], bold=("model",))
    assert "<script>" not in html
    assert cells_of(html) == ["x", "y", "&lt;script&gt;", "1", "model", "2"]
    assert html.count("font-weight:bold") == 2


def test_a_pipeline_says_what_it_knows(pipe, trained_tokenizer):
    html = pipe._repr_html_()
    for text in (str(len(pipe.processor.genes)), pipe.processor.perturbations[1], "names alone", str(pipe.device)):
        assert text in html
    assert pipe.checkpoint.name in repr(pipe)
    assert "embeds only" in evae.pipeline(trained_tokenizer, device="cpu")._repr_html_()


def test_an_evaluation_shows_its_tables(screen_dataset):
    real, train = read_split(screen_dataset, "test"), read_split(screen_dataset, "train")
    result = evaluate(real, real, train, progress=False)
    assert len(repr(result)) < 200
    html = result._repr_html_()
    for table in result.tables():
        assert table.title in html
        for system, texts in table.texts():
            assert {system, *texts} <= set(cells_of(html))
