"""Pages: every text is escaped, nothing that a template names may be missing, and a wheel holds the templates."""

import base64

import jinja2
import numpy as np
import pytest

from evae.common.figures import look, new_figure, save
from evae.common.page import PACKAGE, Picture, render

CONTENT = {
    "title": "Reversion",
    "lead": "a < b",
    "reading": "r",
    "headings": ["method", "AUC ↑"],
    "methods": ["pca"],
    "rows": [["<script>", "1"]],
    "top": [["TP53"], ["<b>"]],
    "positives": {"TP53"},
    "pictures": [],
    "facts": [("data", "cells & co.h5ad")],
}


def test_what_a_user_wrote_is_text():
    page = render("reversion/report.html", **CONTENT)
    assert page.count("<script>") == 1  # that of the page, which sorts tables
    assert page.index("<script>") > page.index("&lt;script&gt;")
    for text in ("a &lt; b", "&lt;script&gt;", "&lt;b&gt;", "cells &amp; co.h5ad", "AUC\N{NO-BREAK SPACE}↑"):
        assert text in page
    assert '<td class="positive">TP53</td>' in page


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_missing_is_an_error(name):
    with pytest.raises(jinja2.UndefinedError, match=name):
        render("reversion/report.html", **{k: v for k, v in CONTENT.items() if k != name})


def test_a_picture_is_shown_at_the_size_it_was_drawn_for(tmp_path):
    with look():
        figure = new_figure(4, 2)
        figure.subplots().plot(np.arange(3))
        path = save(figure, tmp_path / "plots" / "a.png")
    picture = Picture.read(path, "three points")
    assert base64.b64decode(picture.data.removeprefix("data:image/png;base64,")) == path.read_bytes()
    assert picture.width == pytest.approx(4 * 96, abs=30)  # the margins are cut


def test_the_templates_lie_in_the_package():
    templates = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.html")}
    assert templates == {
        *("common/page.html", "common/pictures.html", "common/sorting.html"),
        *("evaluation/report/report.html", "reversion/report.html"),
    }
