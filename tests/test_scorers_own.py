"One object adds a scorer: commands, panels, grids and the report then know it."

import importlib
import json
import sys

import pandas as pd
import pytest

from xgdetox.files import InputError
from xgdetox.grid.costs import plan
from xgdetox.grid.jobs import jobs
from xgdetox.grid.load import load_grid
from xgdetox.report import make_report
from xgdetox.scorers.base import SCORERS, load_scorer, needs_gpu, scorer_languages, states_auc
from xgdetox.stats import write_table
from xgdetox.toxicity import toxicity_table

MINE = """
"A scorer of one's own, in a module of one's own."
from xgdetox.scorers.base import Kind, Scored, Scorer, blocks


class Length(Scorer):
    "Toxic is what is long."

    revision, languages = "1", ("en", "de")

    def __init__(self, name):
        self.id = f"toy:{name}"

    def stream(self, texts, language):
        for block in blocks(texts, 10):
            yield [Scored(t, min(1.0, len(t) / 20)) for t in block]


toy = Kind(
    Length,
    about="Scores the length of a text.",
    gpu=True,
    operations=1e12,
    service="the ruler",
    covers=lambda argument, options: Length.languages,
    states_auc=True,
)


def plain(argument):
    return Length(argument)
"""
GRID = {
    "name": "x",
    "models": {"m": {"path": "world", "gpus": 2}},
    "languages": ["en", "de"],
    "stages": ["generate", "score"],
}


@pytest.fixture(params=["toy", "my_scorers.toy"])
def toy(request, tmp_path, monkeypatch):
    "The scorer's name: one put into SCORERS, or that of the object in its module, which the package never saw."
    (tmp_path / "my_scorers.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    module = importlib.import_module("my_scorers")
    if request.param == "toy":
        monkeypatch.setitem(SCORERS, "toy", module.toy)
    return f"{request.param}:x"


@pytest.fixture
def texts(tmp_path):
    "Generations of two languages: a short and a long continuation of each of two prompts."
    for language in ("en", "de"):
        rows = [
            dict(prompt=f"p{i}", prompt_id=str(i), sample=k, generated_text=" a" * (2 + 8 * k))
            for i in range(2)
            for k in range(2)
        ]
        file = tmp_path / f"texts/output-rtp_lx_{language}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "texts"


def test_a_command_takes_it_and_the_report_shows_it(toy, texts, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("score", "--generations", texts, "--scorer", toy, "--output-dir", tmp_path / "scores")
    tables = [toxicity_table(tmp_path / "scores", model="m", tuning=t) for t in ("base", "dpo")]
    found = tables[0].set_index(["language", "metric"])
    assert found.value["en", "emt"] == 1 and found.value["de", "average_toxicity"] == 0.6
    assert set(found.scorer) == {"toy:x@1"}
    tables[1]["seed"] = 0
    (tmp_path / "run/tables").mkdir(parents=True)
    write_table(pd.concat(tables), tmp_path / "run/tables/toxicity.csv")
    assert "toy:x@1" in make_report(tmp_path / "run", n_resamples=50).read_text("utf-8")


def test_a_panel_holds_it(toy, tmp_path):
    (tmp_path / "panel.yaml").write_text(f"de: '{toy}'\nen: lexicon:world\n")
    panel = f"panel:{tmp_path / 'panel.yaml'}"
    assert needs_gpu(panel) and scorer_languages(panel) == ("de", "en") and not states_auc(panel)
    assert load_scorer(panel).score(["zehn Zeich"], "de")[0] == 0.5


def test_a_grid_schedules_and_costs_it(toy):
    made = {}
    for name, spec in {"mine": toy, "words": "lexicon:world"}.items():
        grid = load_grid({**GRID, "scorers": {name: spec}})
        (job,) = [j for j in jobs(grid) if j.stage == "score"]
        table, words = plan(grid)
        made[name] = job, table.set_index("stage").hours["score"], words
    (job, hours, words), (other, few_hours, other_words) = made["mine"], made["words"]
    assert job.parameters["scorer"] == toy and job.gpus == 2 and other.gpus == 0
    assert hours > 10 * few_hours and "the ruler: " in words and "the ruler" not in other_words


@pytest.mark.parametrize("name", ["my_scorers.plain", "my_scorers.none", "os.system", "no.such"])
def test_only_a_kind_is_taken_from_a_module(toy, name):
    with pytest.raises(InputError, match=f"unknown scorer '{name}'"):
        load_scorer(f"{name}:x")
