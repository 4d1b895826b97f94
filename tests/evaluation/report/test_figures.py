"""Figures say what they show: every colour and mark has a name, arrows have a scale, the best baseline is there."""

import matplotlib.colors as colors
import numpy as np
import pytest

from evae.common.figures import BACKGROUND, CONTROL, GENERATED, REAL, look, on_radar
from evae.evaluation import evaluate
from evae.evaluation.metrics.radar import radar_scores
from evae.evaluation.report.figures_cells import plot_cells
from evae.evaluation.report.figures_metrics import best_baselines, plot_radar


@pytest.fixture(scope="module")
def result(screen, real, perfect):
    return evaluate(perfect, real, screen, suite="robust", seeds=1, progress=False, cache=None)


def legend(owner):
    return [text.get_text() for text in owner.get_legend().get_texts()]


def test_every_cloud_has_a_panel_and_every_colour_a_name(result):
    with look():
        figure = plot_cells(result.comparison)
    cells = result.comparison
    kinds = (
        (cells.controls, CONTROL, "control"),
        (cells.real, REAL, "real"),
        (cells.predicted, GENERATED, "generated"),
    )
    for ax, (own, color, kind) in zip(figure.axes, kinds, strict=False):
        below, above = ax.collections
        assert len(above.get_offsets()) == len(own)
        assert len(below.get_offsets()) == len(cells.controls) + len(cells.real) + len(cells.predicted) - len(own)
        assert ax.get_title(loc="left").startswith(f"{len(own):,} {kind}")
        for drawn, expected in ((above, color), (below, BACKGROUND)):
            assert colors.same_color(drawn.get_facecolor()[0][:3], expected)
    named = {handle.get_color() for handle in figure.legends[0].legend_handles}
    assert named == {CONTROL, REAL, GENERATED, BACKGROUND}


def test_arrows_have_a_scale_and_the_black_dot_a_name(result):
    ax = plot_cells(result.comparison).axes[-1]
    assert len(ax.get_xticks()) > 1
    assert len(ax.get_yticks()) > 1
    assert "log1p CP10K" in ax.get_xlabel()
    assert np.ptp(ax.get_xlim()) == pytest.approx(np.ptp(ax.get_ylim()))  # lengths compare in all directions
    assert ax.get_box_aspect() == 1
    assert legend(ax) == ["real", "predicted", "mean of the controls"]
    dot = next(line for line in ax.lines if line.get_marker() == "o")
    assert dot.get_color() == "black"


def test_the_radar_shows_the_best_baseline_and_the_next(result):
    figure = plot_radar(result)
    scores = radar_scores(result.summary(), "control copy", "real split half")
    means = {s: np.mean(on_radar(scores[s])[:-1]) for s in scores}
    rivals = sorted(
        (s for s in means if s not in ("model", "mean-collapsed model", "control copy", "real split half")),
        key=lambda s: -means[s],
    )
    assert best_baselines(scores) == rivals
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[2:] == [f"{rivals[0]} (best baseline)", f"{rivals[1]} (second best)", "model"]
