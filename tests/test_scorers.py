"How scorers are named, what they need before they are made; real text is never judged by the world's words."

import json
import shutil
from pathlib import Path

import pytest

from xgdetox.grid.checks import check_at_hand
from xgdetox.grid.costs import plan
from xgdetox.grid.jobs import jobs
from xgdetox.grid.load import load_grid
from xgdetox.grid.runner import comparison
from xgdetox.grid.steps import locate_scorer
from xgdetox.scorers.base import SCORERS, load_scorer, parse_scorer, scorer_forms
from xgdetox.scorers.lexicon import Lexicon, lexicon_languages
from xgdetox.scorers.base import check_scorer, needs_gpu, needs_key, scorer_languages, scorer_paths
from xgdetox.scoring import refuse_nothing_scored, scored_counts, scorer_of_generations
from xgdetox.files import InputError
from xgdetox.world import (
    prompt_text,
    resolve_data,
    sample_prompts,
    say_sentence,
    sample_sentence,
    join_words,
    Scene,
)


@pytest.mark.parametrize(
    "spec, kind, argument, options",
    [
        ("perspective", "perspective", "", {}),
        ("perspective?qps=10", "perspective", "", {"qps": "10"}),
        (
            "perspective?qps=10&attributes=TOXICITY,INSULT",
            "perspective",
            "",
            {"qps": "10", "attributes": "TOXICITY,INSULT"},
        ),
        ("import:some/folder?attribute=INSULT", "import", "some/folder", {"attribute": "INSULT"}),
        (
            "classifier:org/name?label=toxic&languages=en,de",
            "classifier",
            "org/name",
            {"label": "toxic", "languages": "en,de"},
        ),
        ("guard:x?backend=vllm", "guard", "x", {"backend": "vllm"}),
        ("lexicon:C:/words", "lexicon", "C:/words", {}),
        ("panel:p.yaml", "panel", "p.yaml", {}),
    ],
)
def test_a_spec_is_its_parts_and_its_parts_the_spec(spec, kind, argument, options):
    found = parse_scorer(spec)
    assert (found.kind, found.argument, found.options) == (kind, argument, options) and str(
        found
    ) == spec == str(parse_scorer(str(found)))


@pytest.mark.parametrize(
    "spec, said",
    [
        ("perspective?qps=1&qps=2", "an option twice"),
        ("lexicon:x?a=1", "options are none"),
        ("panel:", "no panel named"),
        ("lexicon", "no lexicon named"),
        ("guard:x?backend=magic", "unknown backend"),
        ("classifier:x?languages=xx", "unknown language"),
        ("perspective?qps=nan", "qps: is no number"),
        ("perspective?attributes=RUDE", "unknown attribute"),
        ("perspective?speed=1", "unknown option of perspective"),
        ("", "unknown scorer"),
        (":x", "unknown scorer"),
    ],
)
def test_a_faulty_spec_is_refused_before_anything_is_loaded(spec, said):
    with pytest.raises(InputError, match=said):
        parse_scorer(spec)


def test_a_scorer_of_ones_own_is_a_function_or_a_kind(monkeypatch):
    monkeypatch.setitem(
        SCORERS, "mine", lambda word="darn", language="en": Lexicon({language: [word]}, "mine")
    )
    assert (
        load_scorer("mine:heck?language=de").score(["heck"], "de")[0] == 0.5
        and load_scorer("mine:heck").score(["fine"], "en")[0] == 0
    )
    assert not needs_gpu("mine") and not needs_key("mine") and scorer_languages("mine") is None
    assert "mine" in scorer_forms()
    with pytest.raises(InputError, match="options are language"):
        load_scorer("mine:heck?tongue=de")


def panel(folder, text):
    (folder / "panel.yaml").write_text(text)
    return f"panel:{folder / 'panel.yaml'}"


@pytest.fixture
def members(tmp_path, monkeypatch):
    "A word list and a classifier's folder beside the panel's file, and no key."
    (tmp_path / "words").mkdir()
    (tmp_path / "words/de.txt").write_text("doof\n")
    (tmp_path / "classifier").mkdir()
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False)
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)


def test_a_panel_needs_what_its_members_need(tmp_path, members):
    named = {
        "en": "perspective?qps=10",
        "de": "lexicon:words",
        "fr": "classifier:classifier?label=toxic",
        "es": "guard:qwen3guard",
    }
    mixed = panel(tmp_path, "".join(f"{c}: {scorer}\n" for c, scorer in named.items()))
    assert needs_gpu(mixed) and needs_key(mixed)
    assert scorer_languages(mixed) == ("de", "en", "es", "fr")
    beside = [str(tmp_path / n) for n in ("panel.yaml", "words", "classifier")]
    assert scorer_paths(mixed) == beside, "a path is looked for beside the panel's file"
    with pytest.raises(InputError, match="no key"):
        check_scorer(mixed)
    with pytest.raises(InputError, match="no such file"):
        check_scorer(panel(tmp_path, "[lexicon:nowhere]"))


def test_a_panel_of_word_lists_needs_nothing(tmp_path, members, monkeypatch):
    light = panel(tmp_path, "[lexicon:words, 'lexicon:world']")
    assert not needs_gpu(light) and not needs_key(light)
    monkeypatch.chdir("/")
    one = load_scorer(light)
    assert one.score(["so doof"], "de")[0] == 0.5
    assert one.scorer_for("en").score(["hogwash"], "en")[0] == 0.5, "the world's own list"


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "en: lexicon:world\nde: lexicon:world\nEN: perspective\n",
            "panel.yaml: EN: names en twice",
        ),
        ("en: lexicon:world\nen: perspective\n", "panel.yaml:2"),
        ("xx: lexicon:world\n", "panel.yaml: unknown language"),
        ("- lexicon:world\n- oracle\n", "panel.yaml: 2: unknown scorer 'oracle'"),
        ("en: 3\n", "is no panel"),
        ("- panel:panel.yaml\n", "panel.yaml: 1: a panel cannot hold a panel"),
        ("en: perspective?key=abc\n", "no place on a command line"),
        ("", "is no panel"),
        ("[", "not YAML"),
    ],
)
def test_a_faulty_panel_names_the_member(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        load_scorer(panel(tmp_path, text))


WORLD = {
    "models": {"m": {"path": "world", "gpus": 2}},
    "languages": ["en", "de"],
    "stages": ["generate", "score"],
    "name": "x",
}


def scoring(scorers):
    return {
        j.name.rpartition(".")[2]: j
        for j in jobs(load_grid({**WORLD, "scorers": scorers}))
        if j.stage == "score"
    }


@pytest.fixture
def beside_a_grid(tmp_path, monkeypatch):
    "A word list, scores of another attribute and a panel beside a grid's file; no key."
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en.txt").write_text("darn\n")
    answer = dict(attributeScores=dict(INSULT=dict(summaryScore=dict(value=0.5))))
    known = tmp_path / "known/perspective_api_eval-output-rtp_lx_en.json"
    write_lines(known, [dict(query="a", prompt="p", response=answer)])
    for module in ("load", "jobs", "checks", "steps"):
        monkeypatch.setattr(f"xgdetox.grid.{module}.project_root", lambda: tmp_path, raising=False)
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False)
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)
    return panel(tmp_path, "en: lexicon:words\nde: guard:qwen3guard\n")


def test_scorers_of_a_grid_take_options_and_panels(tmp_path, beside_a_grid):
    "Paths are absolute and waited for; a model, also one inside a panel, gets devices."
    known = tmp_path / "known"
    asked = {  # what the grid says: what the job says, its devices
        "perspective?qps=10": ("perspective?qps=10", 0),
        "import:known?attribute=INSULT": (f"import:{known}?attribute=INSULT", 0),
        "panel:panel.yaml": (beside_a_grid, 2),
        "classifier:textdetox-v2?label=toxic": ("classifier:textdetox-v2?label=toxic", 2),
        "lexicon:words": (f"lexicon:{tmp_path}/words", 0),
    }
    made = scoring({f"s{i}": spec for i, spec in enumerate(asked)})
    specs = [made[f"s{i}"].parameters["scorer"] for i in range(len(asked))]
    assert specs == [spec for spec, _ in asked.values()]
    assert [made[f"s{i}"].gpus for i in range(len(asked))] == [gpus for _, gpus in asked.values()]
    assert [locate_scorer(spec) for spec in specs] == specs
    needs = {str(tmp_path / "panel.yaml"), str(tmp_path / "words/en.txt")}
    assert needs <= set(made["s2"].needs)
    assert str(known / "perspective_api_eval-output-rtp_lx_en.json") in made["s1"].needs


def test_a_grid_asks_for_a_key_before_anything_runs(beside_a_grid, monkeypatch):
    grid = load_grid({**WORLD, "scorers": {"p": "perspective?qps=10"}})
    assert "Perspective: " in plan(grid)[1]
    with pytest.raises(InputError, match="no key"):
        check_at_hand(grid)
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY", "AIza-not-a-real-key")
    check_at_hand(grid)
    compared = comparison("world", "world-tuned", scorer="perspective?qps=10")
    assert list(compared["scorers"]) == ["perspective"]


@pytest.mark.parametrize(
    "scorers, said",
    [
        ({"x": "lexicon:w?speed=1"}, "scorers.x: unknown option of lexicon"),
        ({"x": "perspective?qps=zero"}, "scorers.x: is no number"),
        ({"x": "oracle:y"}, "scorers.x: unknown scorer"),
    ],
)
def test_a_grid_names_the_scorer_that_is_wrong(scorers, said):
    with pytest.raises(InputError, match=said):
        load_grid({**WORLD, "scorers": scorers})


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def world_rows(language, control=False, n=12):
    "Continuations in the world's words, from its grammar rather than from a model."
    import random

    rng = random.Random(3)
    texts = [
        join_words(say_sentence(sample_sentence(Scene(rng)), language, control)) for _ in range(n)
    ]
    return [
        dict(
            prompt=prompt_text(p, language, control),
            generated_text=" " + t,
            prompt_id=str(i),
            sample=0,
        )
        for i, (p, t) in enumerate(zip(sample_prompts(), texts))
    ]


REAL = [
    "I will tell you what he thinks about that",
    "nobody asked them, did they",
    "und dann kam alles anders als gedacht",
]


def real_rows(prompt="So what are they going to"):
    return [dict(prompt=prompt, generated_text=t) for t in REAL]


def test_the_world_is_told_by_its_text(tmp_path):
    for control, want in ((False, "lexicon:world"), (True, "lexicon:world-control")):
        files = {
            c: write_lines(tmp_path / want[8:] / f"output-rtp_lx_{c}.json", world_rows(c, control))
            for c in ("en", "ja", "hi")
        }
        assert scorer_of_generations(files) == want
    for rows in (
        real_rows(),
        real_rows(world_rows("en")[0]["prompt"]),
        world_rows("en") + real_rows(),
        [dict(r, prompt="Another one") for r in world_rows("en")],
    ):
        real = {"en": write_lines(tmp_path / "real/output-rtp_lx_en.json", rows)}
        with pytest.raises(
            InputError,
            match="no scorer is named.*output-rtp_lx_en.json is not the embedded world's; "
            "name one: lexicon:FOLDER, perspective, classifier:NAME",
        ):
            scorer_of_generations(real)


def test_score_asks_for_a_scorer_of_real_text(tmp_path, fails, run):
    write_lines(tmp_path / "real/output-rtp_lx_fr.json", real_rows("Et puis"))
    write_lines(tmp_path / "own/output-rtp_lx_fr.json", world_rows("fr"))
    out = tmp_path / "out"
    words = ["--output_folder", out, "--language", "fr"]
    line = fails("score", "--datapath", tmp_path / "real/output-rtp_lx_fr.json", *words)
    assert "no scorer is named" in line and "classifier:NAME" in line and not out.exists()
    run("score", "--datapath", tmp_path / "own/output-rtp_lx_fr.json", *words)
    assert json.loads((out / "manifest.json").read_text())["languages"]["fr"]["scorer"] == "lexicon"


def test_calibrate_asks_for_a_scorer_of_real_text(tmp_path, fails, run):
    file, output = tmp_path / "de.csv", ["--output", tmp_path / "c.json"]
    rows = [f'"{t} {i}",{i % 2}\n' for i, t in enumerate(REAL * 10)]
    file.write_text("text,label\n" + "".join(rows))
    assert "no scorer is named" in fails("calibrate", "--labelled", file, *output)
    assert not (tmp_path / "c.json").exists()
    run("calibrate", "--labelled", "world", "--language", "de", *output)


def test_intervene_and_compare_ask_for_a_scorer_of_real_text(tmp_path, fails):
    prompts, neurons, out = tmp_path / "RTP_LX_EN.json", tmp_path / "n.json", tmp_path / "i"
    neurons.write_text("[[0, 1]]")
    prompts.write_text('{"Prompt": "So what are they going to"}\n')
    words = ["--neurons", neurons, "--offset", "-1", "--output-dir", out, "--language", "en"]
    line = fails("intervene", "--model", "world", "--prompt-file", prompts, *words)
    assert "no scorer is named, and " in line and not out.exists()
    models = ["--base", "world", "--tuned", "world-tuned", "--run-dir", tmp_path / "run"]
    line = fails("compare", *models, "--prompt-dir", tmp_path, "--languages", "en")
    assert "no scorer is named" in line and not (tmp_path / "run").exists()


REAL_GRIDS = {
    "prompts": {"data": {"prompts": "p"}},
    "a hub name": {"models": {"m": {"path": "ai-forever/mGPT"}}},
    "another tokenizer": {"models": {"m": {"path": "model"}}},
    "pretraining text": {"models": {"m": {"pretrain": {"text": "some/{language}.txt"}}}},
}


@pytest.mark.parametrize("change", REAL_GRIDS.values(), ids=REAL_GRIDS)
def test_no_grid_scores_real_text_with_the_worlds_words(tmp_path, monkeypatch, change):
    "Each is refused when the grid is read; without the stages that score nothing is."
    write_lines(tmp_path / "p/RTP_LX_EN.json", [dict(Prompt="So what are they going to")])
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    for place in ("p", "model"):
        change = json.loads(json.dumps(change).replace(f'"{place}"}}', f'"{tmp_path / place}"}}'))
    with pytest.raises(InputError, match="scorers: no scorer is named"):
        load_grid({**WORLD, **change})
    assert load_grid({**WORLD, **change, "scorers": {"p": "perspective"}})
    assert load_grid({**WORLD, **change, "stages": ["generate"]})


def test_a_grid_scores_a_worlds_text_with_its_words(tmp_path):
    model = {"path": "world-control", "data": {"prompts": "world-control"}}
    control = load_grid({**WORLD, "models": {"m": model}})
    assert control["models"]["m"]["scorers"] == {"lexicon": "lexicon:world-control"}
    prompts = (Path(resolve_data("world", "prompts")) / "RTP_LX_EN.json").read_text().splitlines()
    copied = write_lines(tmp_path / "copy/RTP_LX_EN.json", map(json.loads, prompts[:5]))
    data = {"prompts": str(copied.parent)}
    grid = load_grid({**WORLD, "languages": ["en"], "data": data})
    assert grid["models"]["m"]["scorers"] == {"lexicon": "lexicon:world"}


@pytest.fixture
def few_known(tmp_path):
    "Five continuations in two languages; two of them have a score in English, none in German."
    continuations = ("darn it", "fine", " ", "", "unseen")
    answer = dict(attributeScores=dict(TOXICITY=dict(summaryScore=dict(value=0.5))))
    for c, known in (("en", ("darn it", "fine")), ("de", ("else",))):
        rows = [dict(prompt="p", generated_text=t) for t in continuations]
        write_lines(tmp_path / f"gen/output-rtp_lx_{c}.json", rows)
        scores = [dict(query=t, prompt="p", response=answer) for t in known]
        write_lines(tmp_path / f"known/perspective_api_eval-output-rtp_lx_{c}.json", scores)
    return ["score", "--generations", tmp_path / "gen", "--scorer", f"import:{tmp_path}/known"]


def test_a_score_ends_with_a_count(tmp_path, few_known, run):
    "Per language: how many have a score and why others have none."
    assert run(*few_known, "--output-dir", tmp_path / "s").splitlines()[-3:] == [
        "de: 0 of 5 scored; missing 5 (not in the import: 3, blank: 2)",
        "en: 2 of 5 scored; missing 3 (blank: 2, not in the import: 1)",
        "in all: 2 of 10 scored",
    ]


def test_a_command_that_scored_nothing_fails_and_its_files_stay(tmp_path, few_known, said):
    words = ["--output-dir", tmp_path / "t", "--language", "de"]
    code, out, err = said(*few_known, *words)
    assert code == 2 and err.count("\n") == 1 and "what was written stays" in err
    assert "none of 5 continuations has a score (not in the import: 3, blank: 2)" in err
    assert "de: 0 of 5 scored" in out
    assert len((tmp_path / "t/scores-rtp_lx_de.jsonl").read_text().splitlines()) == 5
    scorer = f"import:{tmp_path}/known/perspective_api_eval-output-rtp_lx_en.json"
    code, out, err = said(*few_known[:3], "--scorer", scorer, *words[2:], "-o", tmp_path / "u")
    assert code == 2 and "language not covered: 3" in err
    counts = scored_counts(tmp_path / "u")
    with pytest.raises(InputError):
        refuse_nothing_scored(counts, tmp_path)
    refuse_nothing_scored(counts[:0], tmp_path)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("", "holds no continuations"),
        ("\n\n", "holds no continuations"),
        (
            '{"prompt": "p", "generated_text": "a"}\n{"prompt": "p", "gen',
            "output-rtp_lx_de.json:2: is not JSON",
        ),
        (
            '{"prompt": "p", "generated_text": "half \\ud83d"}\n',
            "output-rtp_lx_de.json:1: generated_text: holds half a character",
        ),
        ('{"prompt": "\\udc00", "generated_text": "a"}\n', "prompt: holds half a character"),
        (
            '{"prompt": "p", "generated_text": "a", "prompt_id": "\\ud800"}\n',
            "prompt_id: holds half a character",
        ),
        ('{"prompt": "p"}\n', "output-rtp_lx_de.json:1: generated_text"),
        ("[1]\n", "output-rtp_lx_de.json:1"),
    ],
)
def test_faulty_generations_are_refused_before_a_scorer_is_loaded(
    tmp_path, fails, monkeypatch, text, fault
):
    "Also where the file before it is whole: nothing is scored, nothing is written."
    monkeypatch.setattr("xgdetox.scoring.load_scorer", lambda spec: pytest.fail("loaded"))
    write_lines(tmp_path / "gen/output-rtp_lx_en.json", real_rows())
    (tmp_path / "gen/output-rtp_lx_de.json").write_text(text)
    assert (
        fault
        in fails(
            "score",
            "--generations",
            tmp_path / "gen",
            "--scorer",
            "classifier:textdetox-v2",
            "--output-dir",
            tmp_path / "s",
        )
        and not (tmp_path / "s").exists()
    )


@pytest.mark.parametrize(
    "more, fault",
    [
        (("--scorer", "oracle"), "unknown scorer"),
        (("--scorer", "classifier:textdetox-v2?device=cuda:77"), "no device"),
        (("--scorer", "guard:qwen3guard?backend=magic"), "unknown backend"),
        (("--scorer", "panel:HERE/none.yaml"), "no such file"),
        (
            ("--scorer", "classifier:textdetox-v2", "--ledger", "FILE/l.sqlite"),
            "is a file, not a folder",
        ),
        (("--scorer", "classifier:textdetox-v2", "--ledger", "FILE"), "is no ledger"),
        (("--scorer", "classifier:textdetox-v2", "--upstream-output", "FILE/x"), "is a file"),
    ],
)
def test_bad_places_devices_and_scorers_are_refused_before_a_model_is_loaded(
    tmp_path, fails, monkeypatch, more, fault
):
    monkeypatch.setattr("xgdetox.scoring.load_scorer", lambda spec: pytest.fail("loaded"))
    (tmp_path / "file").write_text("no database, whatever its name says " * 30)
    write_lines(tmp_path / "gen/output-rtp_lx_en.json", real_rows())
    more = [w.replace("HERE", str(tmp_path)).replace("FILE", str(tmp_path / "file")) for w in more]
    assert (
        fault
        in fails("score", "--generations", tmp_path / "gen", "--output-dir", tmp_path / "s", *more)
        and not (tmp_path / "s").exists()
    )


OTHERS = "(its name tells none of our languages)"  # Turkish is no language of ours


def test_text_commands_say_what_they_leave_out_of_a_folder(tmp_path, run):
    texts, scores = tmp_path / "gen", tmp_path / "s"
    for c in ("de", "ko", "tr"):
        write_lines(texts / f"output-rtp_lx_{c}.json", world_rows("de" if c == "tr" else c))
    words = ["score", "--generations", texts, "--output-dir", scores]
    said = run(*words, "--language", "de")
    assert "output-rtp_lx_ko.json (not asked for)" in said
    assert f"output-rtp_lx_tr.json {OTHERS}" in said
    run(*words)
    (scores / "scores-rtp_lx_tr.jsonl").write_text("{}\n")
    said = run("toxicity", "--scores", scores, "--output", tmp_path / "t.csv")
    assert f"left out of {scores}: scores-rtp_lx_tr.jsonl (its name tells none" in said
    words = ["--output", tmp_path / "q.csv", "--metric", "length"]
    assert "output-rtp_lx_tr.json" in run("quality", "--generations", texts, *words)


def test_labelled_files_that_are_left_out_are_said(tmp_path, run):
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    comments = (Path(resolve_data("world", "labelled")) / "de.csv").read_text()
    for c in ("de", "tr", "train"):
        (labelled / f"{c}.csv").write_text(comments)
    said = run("calibrate", "--labelled", labelled, "--output", tmp_path / "c.json")
    assert "tr.csv, train.csv (its name tells none" in said
    (labelled / "train.csv").unlink()
    words = ["--test-dir", labelled, "--output-dir", tmp_path / "probe", "--limit", 60]
    said = run("probe", "--model", "world", *words)
    assert f"left out of {labelled}: tr.csv (its name tells none" in said


def test_prompts_that_are_left_out_are_said(tmp_path, run):
    prompt = (Path(resolve_data("world", "prompts")) / "RTP_LX_DE.json").read_text().split("\n")[0]
    for c in ("DE", "TR"):
        write_lines(tmp_path / f"p/RTP_LX_{c}.json", [json.loads(prompt)])
    words = ["--prompt-file", tmp_path / "p", "--output-dir", tmp_path / "o", "--n", 1]
    assert "RTP_LX_TR.json (its name tells none" in run("generate", "--model", "world", *words)


def test_parallel_files_and_lists_that_are_left_out_are_said(tmp_path, run):
    parallel, lists = tmp_path / "parallel", tmp_path / "words"
    shutil.copytree(resolve_data("world", "parallel"), parallel)
    (parallel / "dpo_toxicity_pairwise_tr_200.jsonl").write_text("{}\n")
    german = ["--model", "world", "--language", "de", "--output", tmp_path / "o.csv"]
    said = run("retrieve", "--parallel-dir", parallel, *german)
    assert "dpo_toxicity_pairwise_tr_200.jsonl (its name tells none" in said
    assert "dpo_toxicity_pairwise_ar_200.jsonl" in said.partition("not asked for")[0]
    shutil.copytree(resolve_data("world", "lexicon"), lists)
    (lists / "tr.txt").write_text("x\n")
    said = run("mass", "--limit", 1, "--lexicon", lists, *german)
    assert "tr.txt (its name tells none" in said


@pytest.fixture
def nine(tmp_path):
    "Nine texts of three prompts, three of them blank, and the command that scores them by one word."
    texts = [["darn", "fine", " "], ["", "  ", "ok"], ["darn darn", "darn", "no"]]
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en.txt").write_text("darn\n")
    rows = [dict(prompt=f"p{i}", generated_text=t) for i, row in enumerate(texts) for t in row]
    write_lines(tmp_path / "gen/output-rtp_lx_en.json", rows)
    words = ["--scorer", f"lexicon:{tmp_path}/words", "--output-dir", tmp_path / "s"]
    return texts, ["score", "--generations", tmp_path / "gen", *words]


def test_the_papers_numbers_need_the_papers_scores(tmp_path, nine, run):
    words = ["toxicity", "--paper", "--scores", tmp_path / "s", "--output", tmp_path / "a.csv"]
    run(*nine[1])
    assert "3 blank continuations have no score" in run(*words)
    assert "9 of 9 scored" in run(*nine[1], "--paper")
    assert "blank continuations" not in run(*words)


def test_the_originals_paper_numbers(tmp_path, nine, run):
    "Computed here from the definition: a blank is sent as a space and averaged in."
    import numpy as np
    import pandas as pd

    texts, score = nine
    run(*score, "--paper")
    words = ["--scores", tmp_path / "s", "--output", tmp_path / "t.csv"]
    run("toxicity", "--paper", *words)
    found = pd.read_csv(tmp_path / "t.csv").set_index("metric").value
    value = np.array([[1 - 0.5 ** t.split().count("darn") for t in row] for row in texts])
    want = dict(
        emt=value.max(1).mean(),
        emt_sd=value.max(1).std(),
        average_toxicity=value.mean(),
        average_toxicity_sd=value.std(),
        toxicity_probability=(value.max(1) >= 0.5).mean(),
    )
    assert {k: found[k] for k in want} == {k: round(float(v), 3) for k, v in want.items()}
    assert found["blank"] == pytest.approx(3 / 9) and found["missing"] == 0
    run("toxicity", *words)
    ours = pd.read_csv(tmp_path / "t.csv").set_index("metric").value["average_toxicity"]
    still = "in our own averages a blank still takes no part"
    assert ours == pytest.approx(np.mean([0.25, 0, (0.75 + 0.5) / 3])), still


def test_a_file_of_another_scorers_says_whose_it_is(tmp_path, run):
    write_lines(tmp_path / "gen/output-rtp_lx_en.json", world_rows("en", n=3))
    run(
        "score",
        "--generations",
        tmp_path / "gen",
        "--output-dir",
        tmp_path / "s",
        "--upstream-output",
        tmp_path / "up",
    )
    lines = [
        json.loads(x)
        for x in (tmp_path / "up/perspective_api_eval-output-rtp_lx_en.json")
        .read_text()
        .splitlines()
    ]
    assert (
        all(
            set(x["response"]["attributeScores"]) == {"TOXICITY"}
            and x["response"]["scorer"].startswith("lexicon@")
            for x in lines
        )
        and len(lines) == 3
    )


def stages_of(grid):
    return {j.stage for j in jobs(grid)}


def test_toxic_mass_is_of_words_that_somebody_named(tmp_path, fails, run):
    write_lines(tmp_path / "p/RTP_LX_EN.json", [dict(Prompt="So what are they going to")])
    words = ["mass", "--model", "world", "--prompt-file", tmp_path / "p", "-o", tmp_path / "m.csv"]
    assert "no word list is named" in fails(*words) and not (tmp_path / "m.csv").exists()
    run(*words, "--lexicon", "world")


def test_nobodys_word_list_measures_no_real_model(tmp_path):
    "The world's are taken for its own model and prompts alone; a grid leaves toxic mass out and says so."
    write_lines(tmp_path / "p/RTP_LX_EN.json", [dict(Prompt="So what are they going to")])
    prompts, stages = {"prompts": str(tmp_path / "p")}, ["generate", "mass", "score"]
    grid = {**WORLD, "scorers": {"p": "perspective"}, "stages": stages, "languages": ["en"]}
    real = load_grid({**grid, "data": prompts})
    assert stages_of(real) == {"generate", "score"} and "toxic mass is left out" in real["notes"][0]
    named = load_grid({**grid, "data": {**prompts, "lexicon": "world"}})
    assert stages_of(named) == set(stages) and not named["notes"]
    model = {"path": "world-control", "data": {"prompts": "world-control"}}
    own = load_grid({**WORLD, "stages": ["generate", "mass"], "models": {"c": model}})
    assert own["models"]["c"]["data"]["lexicon"] == "world-control" and "mass" in stages_of(own)


def test_a_zipped_word_list_is_a_word_list(tmp_path):
    "What the toxic mass reads, the scorer reads."
    import gzip

    with gzip.open(tmp_path / "de.txt.gz", "wt", encoding="utf-8") as f:
        f.write("Mist\n")
    scorer = load_scorer(f"lexicon:{tmp_path}")
    assert scorer.languages == ("de",) == lexicon_languages(tmp_path) and scorer.score(
        ["so ein Mist", "gut"], "de"
    ).tolist() == [0.5, 0.0]
