"""Progress is told on standard error, or not at all."""

import pytest

from evae.common.progress import progress_bar


def test_a_stage_counts_its_units(capsys):
    with progress_bar(True) as bar:
        advance = bar.start("reading cells", 8, done=2)
        advance(4)
        bar.say("half-way [there]")
        advance(2, "loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    assert "half-way [there]\n" in err
    assert "reading cells" in err
    assert "8/8" in err
    assert "loss 0.5" in err


@pytest.mark.parametrize(("work", "total", "told"), [(["ab", "c"], None, "2/2"), (iter(["ab", "c"]), 3, "3/3")])
def test_work_is_tracked_as_it_is_done(capsys, work, total, told):
    with progress_bar(True, unit="letters") as bar:
        size = len if total else lambda item: 1
        assert list(bar.track(work, "spelling", total, size)) == ["ab", "c"]
    assert told in capsys.readouterr().err


def test_nothing_is_shown_where_nobody_watches(capsys):
    with progress_bar(False) as bar:
        bar.start("reading", 8)(3)
        bar.say("aloud")
        assert list(bar.track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_bars_may_be_nested(capsys):
    with progress_bar(True) as outer, progress_bar(True) as inner:
        assert list(inner.track(outer.track([1, 2], "outer"), "inner", 2)) == [1, 2]
    assert capsys.readouterr().err.count("2/2") == 2
