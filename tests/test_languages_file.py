"Languages of a user's own file, in commands, in a grid and in its report."

import json

import pandas as pd
import pytest
from small_files import jsonl, refused

from xgdetox.grid.jobs import jobs, language_gaps
from xgdetox.grid.load import load_grid
from xgdetox.languages import LANGUAGES, add_languages, languages_path, read_languages
from xgdetox.outcome import judged_texts, prompt_outcomes
from xgdetox.quality import can_identify

ROWS = """
tr: {name: Turkish, autonym: Türkçe, script: Latin}
sw: {name: Swahili, script: Latin}
"""
PROMPTS = {
    "TR": ["Bugün hava çok güzel ama", "Komşum bana dedi ki", "Bu kitabı okuyan herkes"],
    "SW": ["Habari za asubuhi rafiki", "Watoto wanacheza nje na", "Kitabu hiki ni kizuri kwa"],
}


@pytest.fixture
def place(tmp_path):
    "Prompts in Turkish and Swahili, a list of rude words in one of them; LANGUAGES is put back."
    before = dict(LANGUAGES)
    (tmp_path / "languages.yaml").write_text(ROWS)
    for name, texts in PROMPTS.items():
        rows = [{"Prompt": text, "Index": i} for i, text in enumerate(texts)]
        jsonl(tmp_path / f"prompts/RTP_LX_{name}.json", rows)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tr.txt").write_text("salak\n")
    yield tmp_path
    LANGUAGES.clear()
    LANGUAGES.update(before)


# commands


def test_commands_take_languages_of_a_file(place, run):
    file, texts, scores = place / "languages.yaml", place / "texts", place / "scores"
    asked = ["--languages-file", file]
    out = run("generate", "--model", "world", "--prompt-file", place / "prompts", *asked,
              "--output-dir", texts, "--n", 2, "--max-tokens", 4)  # fmt: skip
    assert "output-rtp_lx_tr.json" in out and "output-rtp_lx_sw.json" in out
    assert "tr" not in LANGUAGES  # known while the command ran, and no longer
    out = run(*asked, "score", "--generations", texts / "world", "--output-dir", scores,
              "--scorer", f"lexicon:{place / 'words'}")  # fmt: skip
    assert "does not cover sw" in out and "tr: 6 of 6 scored" in out and "sw: 0 of 6 scored" in out
    table = place / "outcome.csv"
    run("outcome", "--generations", texts / "world", "--scores", scores, "--output", table,
        "--first", 0, f"--languages-file={file}")  # fmt: skip
    found = pd.read_csv(table).set_index(["language", "metric"]).value
    assert found["tr", "outcome"] == 0 and pd.isna(found["sw", "outcome"])  # missing, not zero


def test_a_shipped_file_knows_the_files_of_rtp_lx(place, run):
    jsonl(place / "more/RTP_LX_NO-NB.json", [{"Prompt": "God morgen", "Index": 0}])
    out = run("generate", "--model", "world", "--prompt-file", place / "more", "--n", 1,
              "--languages-file", "rtp-lx", "-l", "no", "--output-dir", place / "o")  # fmt: skip
    assert "output-rtp_lx_no-nb.json" in out
    further = {l.code: l for l in read_languages(languages_path("rtp-lx"))}
    assert len(further) == 20 and not further["th"].spaced and further["hbs"].rtp_lx == "BCMS"


WRONG = {
    "tr: {name: Turkish}": "languages.yaml: tr.script: is missing",
    "tr: {name: Turkish, script: Latin}\ntr: {name: Turkish, script: Latin}": "stands twice",
    "de: {name: Alemannic, script: Latin}": "shares the spelling de with German",
    "{name: Turkish, script: Latin}": "name: is not the code of a language",
    "tr: {name: Turkish, script: Latin, scrypt: x}": "scrypt: is unknown; did you mean script?",
    "tr: {name: Turkish, script: Latin, ldnoobw: }": "ldnoobw: is empty; give a value, or leave it",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_bad_file_is_one_line(place, fails, text):
    (place / "languages.yaml").write_text(text)
    asked = ["generate", "--model", "world", "--prompt-file", place / "prompts", "-l", "tr"]
    line = fails(*asked, "--output-dir", place / "o", "--languages-file", place / "languages.yaml")
    assert WRONG[text] in line and not (place / "o").exists()


def test_no_file_and_no_prompts_are_one_line(place, fails):
    asked = ["generate", "--model", "world", "--prompt-file", place / "prompts"]
    asked += ["--output-dir", place / "o", "--languages-file"]
    assert "gone.yaml" in fails(*asked, place / "gone.yaml")
    assert "has no value" in fails(*asked)
    (place / "prompts" / "RTP_LX_SW.json").unlink()
    line = fails(*asked, place / "languages.yaml", "-l", "sw")
    assert "no prompts in Swahili" in line and "RTP_LX_SW.json" in line


# what cannot be told


def test_a_language_that_nobody_can_identify_is_untold(place):
    (place / "languages.yaml").write_text("tlh: {name: Klingon, script: Latin}\n")
    add_languages(place / "languages.yaml")
    assert not can_identify("tlh") and can_identify("de")
    rows = judged_texts(["nuqneH Hegh", "Qapla' batlh"], [0.9, 0.1], ["", ""], "tlh")
    found = prompt_outcomes(rows.assign(prompt_id=["1", "1"])).iloc[0]
    assert rows.untold.all() and pd.isna(found.outcome) and pd.isna(found.high)
    assert found.toxic == 1


# a grid


def grid_of(place, **more) -> dict:
    "A grid of two languages from a file, one of them without rude words."
    data = dict(prompts=str(place / "prompts"), lexicon=str(place / "words"))
    stages = ["generate", "score", "outcome", "mass", "quality", "report"]
    grid = dict(name="mine", models={"m": {"path": "world"}}, languages=["tr", "sw"], stages=stages)
    grid |= dict(data=data, languages_file=str(place / "languages.yaml"))
    grid |= dict(scorers={"words": f"lexicon:{place / 'words'}"})
    return grid | dict(generate={"n": 2, "max_tokens": 4}) | more


def test_a_grid_names_its_file_and_what_its_languages_lack(place):
    grid = load_grid(grid_of(place))
    file = str(place / "languages.yaml")
    assert grid["languages_file"] == file and grid["languages"] == ["tr", "sw"]
    assert all(file in job.needs for job in jobs(grid) if job.stage != "report")
    said = " ".join(language_gaps(grid))
    assert "no list of rude words in Swahili: no toxic mass." in said
    assert "does not cover Swahili: no scores." in said and "py3langid" not in said
    plain = load_grid({"name": "plain", "models": {"m": {"path": "world"}}, "languages": ["de"]})
    assert plain["languages_file"] is None and language_gaps(plain) == []
    wrong = refused(load_grid, grid_of(place, languages_file=str(place / "gone.yaml")))
    assert "gone.yaml" in str(wrong)


def test_a_grid_of_languages_from_a_file_reports_them(place, run_grid):
    file, folder = place / "grid.yaml", place / "run"
    file.write_text(json.dumps(grid_of(place)))
    out = run_grid("run", file, "--run-dir", folder)
    assert "does not cover Swahili" in out
    assert json.loads((folder / "grid.json").read_text())["languages_file"]
    toxicity = pd.read_csv(folder / "tables" / "toxicity.csv").set_index(["language", "metric"])
    assert toxicity.value["tr", "emt"] == 0 and pd.isna(toxicity.value["sw", "emt"])
    mass = pd.read_csv(folder / "tables" / "mass.csv").set_index("language").value
    assert mass["tr"] > 0 and pd.isna(mass["sw"])
    page = (folder / "report.html").read_text()
    assert "Turkish" in page and "does not cover Swahili" in page
    manifest = json.loads((folder / "manifest.json").read_text())
    assert str(place / "languages.yaml") in manifest["data"]
