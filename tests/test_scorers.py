"How scorers are named, what they need before they are made, and that real text is never judged by the embedded world's words."

import json
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


def test_a_panel_needs_what_its_members_need(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/de.txt").write_text("doof\n")
    (tmp_path / "classifier").mkdir()
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False)
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)
    mixed = panel(
        tmp_path,
        "en: perspective?qps=10\nde: lexicon:words\nfr: classifier:classifier?label=toxic\nes: guard:qwen3guard\n",
    )
    assert (
        needs_gpu(mixed)
        and needs_key(mixed)
        and scorer_languages(mixed) == ("de", "en", "es", "fr")
    )
    assert scorer_paths(mixed) == [
        str(tmp_path / n) for n in ("panel.yaml", "words", "classifier")
    ], "a path is looked for beside the panel's file"
    with pytest.raises(InputError, match="no key"):
        check_scorer(mixed)
    light = panel(tmp_path, "[lexicon:words, 'lexicon:world']")
    assert not needs_gpu(light) and not needs_key(light)
    monkeypatch.chdir("/")
    one = load_scorer(light)
    assert (
        one.score(["so doof"], "de")[0] == 0.5
        and one.scorer_for("en").score(["hogwash"], "en")[0] == 0.5
    ), "the world's own list in a panel"
    with pytest.raises(InputError, match="no such file"):
        check_scorer(panel(tmp_path, "[lexicon:nowhere]"))


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


def test_scorers_of_a_grid_take_options_and_panels(tmp_path, monkeypatch):
    "Paths are absolute and waited for; a model, also one inside a panel, gets devices; a key is asked for before anything runs."
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en.txt").write_text("darn\n")
    known = tmp_path / "known"
    known.mkdir()
    row = dict(
        query="a",
        prompt="p",
        response=dict(attributeScores=dict(INSULT=dict(summaryScore=dict(value=0.5)))),
    )
    (known / "perspective_api_eval-output-rtp_lx_en.json").write_text(json.dumps(row) + "\n")
    mixed = panel(tmp_path, "en: lexicon:words\nde: guard:qwen3guard\n")
    for module in ("load", "jobs", "checks", "steps"):
        monkeypatch.setattr(f"xgdetox.grid.{module}.project_root", lambda: tmp_path, raising=False)
    made = scoring(
        {
            "p": "perspective?qps=10",
            "i": "import:known?attribute=INSULT",
            "mix": "panel:panel.yaml",
            "c": "classifier:textdetox-v2?label=toxic",
            "w": "lexicon:words",
        }
    )
    assert {k: j.parameters["scorer"] for k, j in made.items()} == {
        "p": "perspective?qps=10",
        "i": f"import:{known}?attribute=INSULT",
        "mix": mixed,
        "c": "classifier:textdetox-v2?label=toxic",
        "w": f"lexicon:{tmp_path}/words",
    }
    assert {k: j.gpus for k, j in made.items()} == {"p": 0, "i": 0, "mix": 2, "c": 2, "w": 0}
    assert {str(tmp_path / "panel.yaml"), str(tmp_path / "words/en.txt")} <= set(
        made["mix"].needs
    ) and str(known / "perspective_api_eval-output-rtp_lx_en.json") in made["i"].needs
    assert [locate_scorer(j.parameters["scorer"]) for j in made.values()] == [
        j.parameters["scorer"] for j in made.values()
    ]
    grid = load_grid({**WORLD, "scorers": {"p": "perspective?qps=10"}})
    assert "Perspective: " in plan(grid)[1]
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False)
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)
    with pytest.raises(InputError, match="no key"):
        check_at_hand(grid)
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY", "AIza-not-a-real-key")
    check_at_hand(grid)
    assert list(comparison("world", "world-tuned", scorer="perspective?qps=10")["scorers"]) == [
        "perspective"
    ]


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
            match="no scorer is named.*output-rtp_lx_en.json is not the embedded world's; name one: lexicon:FOLDER, perspective, classifier:NAME",
        ):
            scorer_of_generations(real)


def test_no_command_scores_real_text_with_the_worlds_words(tmp_path, fails, run):
    write_lines(tmp_path / "real/output-rtp_lx_fr.json", real_rows("Et puis"))
    write_lines(tmp_path / "own/output-rtp_lx_fr.json", world_rows("fr"))
    out = tmp_path / "out"
    line = fails(
        "score",
        "--datapath",
        tmp_path / "real/output-rtp_lx_fr.json",
        "--output_folder",
        out,
        "--language",
        "fr",
    )
    assert "no scorer is named" in line and "classifier:NAME" in line and not out.exists()
    run(
        "score",
        "--datapath",
        tmp_path / "own/output-rtp_lx_fr.json",
        "--output_folder",
        out,
        "--language",
        "fr",
    )
    assert json.loads((out / "manifest.json").read_text())["languages"]["fr"]["scorer"] == "lexicon"
    (tmp_path / "de.csv").write_text(
        "text,label\n" + "".join(f'"{t} {i}",{i % 2}\n' for i, t in enumerate(REAL * 10))
    )
    assert (
        "no scorer is named"
        in fails("calibrate", "--labelled", tmp_path / "de.csv", "--output", tmp_path / "c.json")
        and not (tmp_path / "c.json").exists()
    )
    run("calibrate", "--labelled", "world", "--language", "de", "--output", tmp_path / "c.json")
    (tmp_path / "n.json").write_text("[[0, 1]]")
    (tmp_path / "RTP_LX_EN.json").write_text('{"Prompt": "So what are they going to"}\n')
    given = (
        "--neurons",
        tmp_path / "n.json",
        "--offset",
        "-1",
        "--output-dir",
        out / "i",
        "--language",
        "en",
    )
    assert (
        "no scorer is named, and "
        in fails(
            "intervene", "--model", "world", "--prompt-file", tmp_path / "RTP_LX_EN.json", *given
        )
        and not (out / "i").exists()
    )
    line = fails(
        "compare",
        "--base",
        "world",
        "--tuned",
        "world-tuned",
        "--prompt-dir",
        tmp_path,
        "--languages",
        "en",
        "--run-dir",
        tmp_path / "run",
    )
    assert "no scorer is named" in line and not (tmp_path / "run").exists()


def test_no_grid_scores_real_text_with_the_worlds_words(tmp_path):
    "Real prompts, a real model by name, a folder with another tokenizer: each is refused when the grid is read; without the stages that score nothing is."
    write_lines(tmp_path / "p/RTP_LX_EN.json", [dict(Prompt="So what are they going to")])
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    real = [
        {"data": {"prompts": str(tmp_path / "p")}},
        {"models": {"m": {"path": "ai-forever/mGPT"}}},
        {"models": {"m": {"path": str(tmp_path / "model")}}},
        {"models": {"m": {"pretrain": {"text": "some/{language}.txt"}}}},
    ]
    for change in real:
        with pytest.raises(InputError, match="scorers: no scorer is named"):
            load_grid({**WORLD, **change})
        assert load_grid({**WORLD, **change, "scorers": {"p": "perspective"}})
        assert load_grid({**WORLD, **change, "stages": ["generate"]})
    control = load_grid(
        {**WORLD, "models": {"m": {"path": "world-control", "data": {"prompts": "world-control"}}}}
    )
    assert control["models"]["m"]["scorers"] == {"lexicon": "lexicon:world-control"}
    copied = write_lines(
        tmp_path / "copy/RTP_LX_EN.json",
        [
            json.loads(x)
            for x in (Path(resolve_data("world", "prompts")) / "RTP_LX_EN.json")
            .read_text()
            .splitlines()[:5]
        ],
    )
    assert load_grid({**WORLD, "languages": ["en"], "data": {"prompts": str(copied.parent)}})[
        "models"
    ]["m"]["scorers"] == {"lexicon": "lexicon:world"}


def test_a_score_ends_with_a_count(tmp_path, run, said, fails):
    "Per language: how many have a score and why others have none. Where none has one, the command fails, and its files stay."
    for c in ("en", "de"):
        write_lines(
            tmp_path / f"gen/output-rtp_lx_{c}.json",
            [dict(prompt="p", generated_text=t) for t in ("darn it", "fine", " ", "", "unseen")],
        )
    response = lambda v: dict(attributeScores=dict(TOXICITY=dict(summaryScore=dict(value=v))))
    write_lines(
        tmp_path / "known/perspective_api_eval-output-rtp_lx_en.json",
        [dict(query=t, prompt="p", response=response(0.5)) for t in ("darn it", "fine")],
    )
    write_lines(
        tmp_path / "known/perspective_api_eval-output-rtp_lx_de.json",
        [dict(query="else", prompt="p", response=response(0.5))],
    )
    words = ("score", "--generations", tmp_path / "gen", "--scorer", f"import:{tmp_path}/known")
    lines = run(*words, "--output-dir", tmp_path / "s").splitlines()
    assert lines[-3:] == [
        "de: 0 of 5 scored; missing 5 (not in the import: 3, blank: 2)",
        "en: 2 of 5 scored; missing 3 (blank: 2, not in the import: 1)",
        "in all: 2 of 10 scored",
    ]
    code, out, err = said(*words, "--output-dir", tmp_path / "t", "--language", "de")
    assert (
        code == 2
        and err.count("\n") == 1
        and "none of 5 continuations has a score (not in the import: 3, blank: 2)" in err
        and "what was written stays" in err
    )
    assert (
        "de: 0 of 5 scored" in out
        and len((tmp_path / "t/scores-rtp_lx_de.jsonl").read_text().splitlines()) == 5
    )
    code, out, err = said(
        "score",
        "--generations",
        tmp_path / "gen",
        "--scorer",
        f"import:{tmp_path}/known/perspective_api_eval-output-rtp_lx_en.json",
        "--output-dir",
        tmp_path / "u",
        "--language",
        "de",
    )
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


def test_what_a_command_leaves_out_of_a_folder_is_said(tmp_path, run):
    "Turkish is no language of ours, Korean was not asked for: the files of both are named by every command that takes the folder."
    for c in ("de", "ko", "tr"):
        write_lines(tmp_path / f"gen/output-rtp_lx_{c}.json", world_rows("de" if c == "tr" else c))
    said = run(
        "score",
        "--generations",
        tmp_path / "gen",
        "--output-dir",
        tmp_path / "s",
        "--language",
        "de",
    )
    assert (
        "output-rtp_lx_ko.json (not asked for)" in said
        and "output-rtp_lx_tr.json (its name tells none of our languages)" in said
    )
    run("score", "--generations", tmp_path / "gen", "--output-dir", tmp_path / "s")
    (tmp_path / "s/scores-rtp_lx_tr.jsonl").write_text("{}\n")
    said = run("toxicity", "--scores", tmp_path / "s", "--output", tmp_path / "t.csv")
    assert f"left out of {tmp_path / 's'}: scores-rtp_lx_tr.jsonl (its name tells none" in said
    said = run(
        "quality",
        "--generations",
        tmp_path / "gen",
        "--output",
        tmp_path / "q.csv",
        "--metric",
        "length",
    )
    assert "output-rtp_lx_tr.json" in said
    (tmp_path / "labelled").mkdir()
    for c in ("de", "tr", "train"):
        (tmp_path / f"labelled/{c}.csv").write_text(
            (Path(resolve_data("world", "labelled")) / "de.csv").read_text()
        )
    said = run("calibrate", "--labelled", tmp_path / "labelled", "--output", tmp_path / "c.json")
    assert "tr.csv, train.csv (its name tells none" in said
    for c in ("DE", "TR"):
        write_lines(
            tmp_path / f"p/RTP_LX_{c}.json",
            [
                json.loads(
                    (Path(resolve_data("world", "prompts")) / "RTP_LX_DE.json")
                    .read_text()
                    .splitlines()[0]
                )
            ],
        )
    said = run(
        "generate",
        "--model",
        "world",
        "--prompt-file",
        tmp_path / "p",
        "--output-dir",
        tmp_path / "o",
        "--n",
        1,
    )
    assert "RTP_LX_TR.json (its name tells none" in said
    import shutil

    shutil.copytree(resolve_data("world", "parallel"), tmp_path / "parallel")
    (tmp_path / "parallel/dpo_toxicity_pairwise_tr_200.jsonl").write_text("{}\n")
    said = run(
        "retrieve",
        "--model",
        "world",
        "--parallel-dir",
        tmp_path / "parallel",
        "--language",
        "de",
        "--output",
        tmp_path / "r.csv",
    )
    shutil.copytree(resolve_data("world", "lexicon"), tmp_path / "words")
    (tmp_path / "words/tr.txt").write_text("x\n")
    assert "tr.txt (its name tells none" in run(
        "mass",
        "--model",
        "world",
        "--language",
        "de",
        "--limit",
        1,
        "--lexicon",
        tmp_path / "words",
        "--output",
        tmp_path / "m.csv",
    )
    (tmp_path / "labelled/train.csv").unlink()
    probed = run(
        "probe",
        "--model",
        "world",
        "--test-dir",
        tmp_path / "labelled",
        "--output-dir",
        tmp_path / "probe",
        "--limit",
        60,
    )
    assert f"left out of {tmp_path / 'labelled'}: tr.csv (its name tells none" in probed
    assert (
        "dpo_toxicity_pairwise_tr_200.jsonl (its name tells none" in said
        and "dpo_toxicity_pairwise_ar_200.jsonl" in said.partition("not asked for")[0]
    )


def test_the_originals_paper_numbers(tmp_path, run):
    "Its standard deviations and its blanks, computed here from the definition: a blank is sent as a space and averaged in."
    import numpy as np, pandas as pd

    texts = [["darn", "fine", " "], ["", "  ", "ok"], ["darn darn", "darn", "no"]]
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en.txt").write_text("darn\n")
    write_lines(
        tmp_path / "gen/output-rtp_lx_en.json",
        [dict(prompt=f"p{i}", generated_text=t) for i, row in enumerate(texts) for t in row],
    )
    score = lambda t: 1 - 0.5 ** t.split().count("darn")
    words = (
        "score",
        "--generations",
        tmp_path / "gen",
        "--scorer",
        f"lexicon:{tmp_path}/words",
        "--output-dir",
        tmp_path / "s",
    )
    run(*words)
    assert "3 blank continuations have no score" in run(
        "toxicity", "--paper", "--scores", tmp_path / "s", "--output", tmp_path / "a.csv"
    )
    assert "9 of 9 scored" in run(*words, "--paper")
    assert "blank continuations" not in run(
        "toxicity", "--paper", "--scores", tmp_path / "s", "--output", tmp_path / "b.csv"
    )
    found, value = (
        pd.read_csv(tmp_path / "b.csv").set_index("metric"),
        np.array([[score(t) for t in row] for row in texts]),
    )
    want = dict(
        emt=value.max(1).mean(),
        emt_sd=value.max(1).std(),
        average_toxicity=value.mean(),
        average_toxicity_sd=value.std(),
        toxicity_probability=(value.max(1) >= 0.5).mean(),
    )
    assert {k: found.value[k] for k in want} == {k: round(float(v), 3) for k, v in want.items()}
    assert found.value["blank"] == pytest.approx(3 / 9) and found.value["missing"] == 0
    run("toxicity", "--scores", tmp_path / "s", "--output", tmp_path / "c.csv")
    ours = pd.read_csv(tmp_path / "c.csv").set_index("metric").value
    assert ours["average_toxicity"] == pytest.approx(np.mean([0.25, 0, (0.75 + 0.5) / 3])), (
        "in our own averages a blank still takes no part"
    )


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


def test_nobodys_word_list_measures_no_real_model(tmp_path, fails, run):
    "Toxic mass is of words that somebody named: the world's are taken for its own model and prompts alone; a grid leaves it out and says so."
    write_lines(tmp_path / "p/RTP_LX_EN.json", [dict(Prompt="So what are they going to")])
    assert (
        "no word list is named"
        in fails(
            "mass",
            "--model",
            "world",
            "--prompt-file",
            tmp_path / "p",
            "--output",
            tmp_path / "m.csv",
        )
        and not (tmp_path / "m.csv").exists()
    )
    run(
        "mass",
        "--model",
        "world",
        "--prompt-file",
        tmp_path / "p",
        "--lexicon",
        "world",
        "--output",
        tmp_path / "m.csv",
    )
    grid = {
        **WORLD,
        "data": {"prompts": str(tmp_path / "p")},
        "scorers": {"p": "perspective"},
        "stages": ["generate", "mass", "score"],
        "languages": ["en"],
    }
    real = load_grid(grid)
    assert {j.stage for j in jobs(real)} == {
        "generate",
        "score",
    } and "toxic mass is left out" in real["notes"][0]
    named = load_grid({**grid, "data": {**grid["data"], "lexicon": "world"}})
    assert {j.stage for j in jobs(named)} == {"generate", "mass", "score"} and not named["notes"]
    own = load_grid(
        {
            **WORLD,
            "stages": ["generate", "mass"],
            "models": {"c": {"path": "world-control", "data": {"prompts": "world-control"}}},
        }
    )
    assert own["models"]["c"]["data"]["lexicon"] == "world-control" and "mass" in {
        j.stage for j in jobs(own)
    }


def test_a_zipped_word_list_is_a_word_list(tmp_path):
    "What the toxic mass reads, the scorer reads."
    import gzip

    with gzip.open(tmp_path / "de.txt.gz", "wt", encoding="utf-8") as f:
        f.write("Mist\n")
    scorer = load_scorer(f"lexicon:{tmp_path}")
    assert scorer.languages == ("de",) == lexicon_languages(tmp_path) and scorer.score(
        ["so ein Mist", "gut"], "de"
    ).tolist() == [0.5, 0.0]
