"""Charts: the explorer's specification on a page, and without Vega."""

import re

import numpy as np
import pandas as pd
import pytest

from xgdetox import charts
from xgdetox.charts import SIGNS, chart_activations, chart_languages, chart_offsets, draw_chart
from xgdetox.runs import load_run

LANGUAGES = ("de", "en", "ja", "zh")


@pytest.fixture
def without_vega(monkeypatch):
    monkeypatch.setattr(charts, "find_spec", lambda name: None)


def rows_of(states=("base", "tuned"), **more):
    made = [
        dict(language=code, state=state, value=0.1 * i, low=0.1 * i - 0.05, high=0.1 * i + 0.05)
        for state in states
        for i, code in enumerate(LANGUAGES, 1)
    ]
    return pd.DataFrame(made).assign(**more)


def written(svg):
    return [t.strip() for t in re.findall(r"<text[^>]*>(?:<tspan[^>]*>)?([^<]+)", svg) if t.strip()]


def test_every_dot_has_its_value():
    "The height of a dot says its value: equal steps of value are equal steps of height."
    pytest.importorskip("vl_convert")
    drawn = draw_chart(rows_of(("base",)), "x")
    dots = re.findall(r'transform="translate\(([\d.]+),([\d.]+)\)" d="M[^"]*A', drawn)
    x, y = np.array(dots, float)[:4].T  # the last is the key's
    assert len(set(np.round(np.diff(x), 1))) == 1 and len(set(np.round(np.diff(y), 1))) == 1
    assert np.diff(y)[0] < 0


@pytest.mark.parametrize("vega", [True, False])
def test_languages_keep_the_order_of_the_rows(vega, request):
    if vega:
        pytest.importorskip("vl_convert")
    else:
        request.getfixturevalue("without_vega")
    drawn = draw_chart(rows_of()[::-1], "x", title="share")
    said = [t for t in written(drawn) if t in LANGUAGES]
    assert said == list(LANGUAGES[::-1]) and "share" in written(drawn)
    assert "base" in written(drawn) and "tuned" in written(drawn)
    assert 'aria-label="x"' in drawn and "currentColor" in drawn


def test_a_missing_interval_is_not_drawn_at_zero():
    pytest.importorskip("vl_convert")
    whole, none = (draw_chart(r, "x") for r in (rows_of(), rows_of(low=np.nan, high=np.nan)))
    rules = lambda drawn: len(re.findall(r'<line transform="[^"]*"[^>]*opacity="0.7"', drawn))
    assert rules(whole) == 8 and rules(none) == 0


def test_the_key_names_only_what_is_drawn():
    pytest.importorskip("vl_convert")
    words = {sign[0]: sign[-1] for sign in SIGNS}
    said = written(draw_chart(rows_of(("base", "placebo")), "x"))
    assert words["placebo"] in said and "tuned" not in said and words["greedy"] not in said


@pytest.mark.parametrize("make", [chart_languages, chart_activations, chart_offsets])
def test_a_page_draws_without_vega_too(make, root, monkeypatch):
    "The same words below the picture; the picture is Matplotlib's."
    run = load_run(root / "results" / "world")
    said = make(run).caption
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    plain = make(run)
    assert plain.caption == said and plain.svg.startswith("<svg") and "matplotlib" not in said
    assert len(written(plain.svg)) > 5


def test_the_fall_is_that_of_the_table(root):
    run = load_run(root / "results" / "world")
    t = run.tables["mass"]
    t = t[t.model.str.match(r"world-\d")]
    means = t.groupby([t.tuning, "language", "model"]).value.mean().groupby(level=[0, 1]).mean()
    said = re.search(r"([\d.]+) before, ([\d.]+) after", chart_languages(run).caption)
    assert float(said[1]) == pytest.approx(means["base"].mean(), rel=0.1)
    assert float(said[2]) == pytest.approx(means["dpo"].mean(), rel=0.1)
