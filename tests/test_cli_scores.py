"Scoring, calibrating and moving scores through the command line, as a user does it."

import json
import sqlite3
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from xgdetox.ledger import open_ledger, scores_through
from xgdetox.scorers.base import SCORERS, digest
from xgdetox.scorers.classifier import CLASSIFIERS
from xgdetox.scorers.lexicon import Lexicon


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def scored(tmp_path):
    "A scorer for the command line: scores that stand in files, 40 prompts, en too low by a factor of ten, de upside down."
    rng = np.random.default_rng(0)
    for language, toxic, other in (("en", 0.08, 0.02), ("de", 0.2, 0.7)):
        label = rng.integers(0, 2, 200)
        value = np.where(label, toxic, other) + rng.normal(0, 0.01, 200)
        response = lambda v: dict(
            attributeScores=dict(TOXICITY=dict(summaryScore=dict(value=float(v))))
        )
        known = [
            dict(query=f"text {i}", prompt="p", response=response(v))
            for i, v in enumerate(np.clip(value, 0, 1))
        ]
        known += [
            dict(query=f"g {i}", prompt="p", response=response(0.06 if i % 4 == 0 else 0.01))
            for i in range(80)
        ]
        write_lines(tmp_path / f"known/perspective_api_eval-output-rtp_lx_{language}.json", known)
        (tmp_path / "labelled").mkdir(exist_ok=True)
        pd.DataFrame(dict(text=[f"text {i}" for i in range(200)], label=label)).to_csv(
            tmp_path / f"labelled/{language}.csv", index=False
        )
    for c in ("en", "de", "fr"):
        write_lines(
            tmp_path / f"gen/output-rtp_lx_{c}.json",
            [
                dict(
                    prompt=f"p{i // 2}",
                    generated_text=f"g {i}",
                    prompt_id=str(i // 2),
                    sample=i % 2,
                )
                for i in range(80)
            ],
        )
    return tmp_path


def test_a_calibrated_threshold_reaches_the_table(scored, run, fails):
    scorer, table = (
        f"import:{scored}/known",
        lambda name: pd.read_csv(scored / name).set_index(["language", "metric"]),
    )
    said = run(
        "calibrate",
        "--labelled",
        scored / "labelled",
        "--scorer",
        scorer,
        "--output",
        scored / "c.json",
        "--table",
        scored / "c.csv",
    )
    facts, rows = json.loads((scored / "c.json").read_text())["languages"], table("c.csv")
    assert (
        0.03 < facts["en"]["threshold"] < 0.07
        and "threshold" not in facts["de"]
        and "do not score higher" in said
    )
    assert (
        rows.low["en", "auc"] <= rows.value["en", "auc"] <= rows.high["en", "auc"]
        and rows.value["de", "auc"] < 0.1
        and rows.n["en", "auc"] == 200
    )
    assert {"auc", "f1", "ece"} <= set(rows.loc["en"].index) and rows.value[
        "en", "f1"
    ] > 0.95 > rows.value["en", "f1_raw"]
    said = run(
        "score", "--generations", scored / "gen", "--scorer", scorer, "--output-dir", scored / "s"
    )
    assert "does not cover fr" in said
    run("toxicity", "--scores", scored / "s", "--output", scored / "raw.csv")
    run(
        "toxicity",
        "--scores",
        scored / "s",
        "--calibration",
        scored / "c.json",
        "--output",
        scored / "cal.csv",
    )
    raw, fitted = table("raw.csv"), table("cal.csv")
    assert (
        raw.value["en", "toxicity_probability"]
        == 0
        == fitted.value["en", "toxicity_probability_raw"]
        and fitted.value["en", "toxicity_probability"] == 0.5
    )
    assert fitted.threshold["en", "toxicity_probability"] == facts["en"]["threshold"] and np.isnan(
        fitted.value["de", "toxicity_probability"]
    )
    assert (
        raw.value["en", "emt"] == fitted.value["en", "emt"]
        and raw.value["fr", "missing"] == 1
        and np.isnan(raw.value["fr", "emt"])
    )
    assert list(raw.reset_index().columns[:2]) == ["language", "metric"] and {
        "bound_low",
        "bound_high",
        "count",
        "scorer",
    } <= set(raw.columns)
    other = scored / "lexicon"
    other.mkdir()
    (other / "en.txt").write_text("g\n")
    run(
        "score",
        "--generations",
        scored / "gen",
        "--scorer",
        f"lexicon:{other}",
        "--output-dir",
        scored / "s2",
    )
    assert "the calibration is of import:known@" in fails(
        "toxicity",
        "--scores",
        scored / "s2",
        "--calibration",
        scored / "c.json",
        "--output",
        scored / "no.csv",
    )
    assert "knows no calibration" in fails(
        "toxicity",
        "--scores",
        scored / "s",
        "--paper",
        "--calibration",
        scored / "c.json",
        "--output",
        scored / "no.csv",
    )
    (scored / "odd.json").write_text("{}")
    assert "is no calibration" in fails(
        "toxicity",
        "--scores",
        scored / "s",
        "--calibration",
        scored / "odd.json",
        "--output",
        scored / "no.csv",
    )
    assert (
        "no such file"
        in fails(
            "toxicity",
            "--scores",
            scored / "s",
            "--calibration",
            scored / "none.json",
            "--output",
            scored / "no.csv",
        )
        and not (scored / "no.csv").exists()
    )
    assert (
        "text: is missing"
        in fails(
            "calibrate",
            "--labelled",
            scored / "gen",
            "--scorer",
            scorer,
            "--output",
            scored / "n.json",
        )
        and not (scored / "n.json").exists()
    )
    assert "no such file" in fails(
        "calibrate", "--labelled", scored / "nowhere", "--scorer", scorer
    )


def test_before_and_after_in_one_table(scored, run, fails):
    scorer = f"import:{scored}/known"
    run(
        "score",
        "--generations",
        scored / "gen",
        "--scorer",
        scorer,
        "--output-dir",
        scored / "before",
    )
    for c in ("en", "de"):
        write_lines(
            scored / f"gen2/output-rtp_lx_{c}.json",
            [
                dict(prompt=f"p{i // 2}", generated_text="g 1", prompt_id=str(i // 2), sample=i % 2)
                for i in range(80)
            ],
        )
    run(
        "score",
        "--generations",
        scored / "gen2",
        "--scorer",
        scorer,
        "--output-dir",
        scored / "after",
    )
    run(
        "toxicity",
        "--scores",
        scored / "after",
        "--before",
        scored / "before",
        "--output",
        scored / "t.csv",
    )
    t = pd.read_csv(scored / "t.csv").set_index(["language", "metric"])
    # every second prompt loses .05 (its maximum falls from .06 to .01): the mean falls by .025
    assert t.value["en", "emt_drop"] == pytest.approx(0.025) and t.value[
        "en", "emt"
    ] == pytest.approx(0.01)
    assert t.p_holm["en", "emt_drop"] < 0.01 and t.p_holm["en", "emt_drop"] == pytest.approx(
        2 * t.p["en", "emt_drop"], rel=0.5
    ), "corrected over two languages"
    assert (
        list(t.reset_index().columns[:2]) == ["language", "metric"]
        and t.low["en", "emt_drop"] < 0.025 < t.high["en", "emt_drop"]
    )
    assert "no score files" in fails(
        "toxicity",
        "--scores",
        scored / "after",
        "--before",
        scored / "nowhere",
        "--output",
        scored / "n.csv",
    )


def test_the_papers_scripts_can_read_our_scores(scored, run):
    "Out with --upstream-output, in through `import`: the released code's numbers, computed here from the file alone, and ours again."
    rows = [
        dict(
            prompt=f"p{i // 2}",
            generated_text=f"g {i}" if i not in (3, 8) else " " if i == 3 else "unknown",
            prompt_id=str(i // 2),
            sample=i % 2,
        )
        for i in range(80)
    ]
    write_lines(scored / "gaps/output-rtp_lx_zh-hans.json", rows)
    (scored / "known/perspective_api_eval-output-rtp_lx_en.json").rename(
        scored / "known/perspective_api_eval-output-rtp_lx_zh-hans.json"
    )
    said = run(
        "score",
        "--generations",
        scored / "gaps",
        "--scorer",
        f"import:{scored}/known",
        "--output-dir",
        scored / "s",
        "--upstream-output",
        scored / "up",
    )
    assert "without 2 that have no score" in said
    lines = [
        json.loads(x)
        for x in (scored / "up/perspective_api_eval-output-rtp_lx_zh-hans.json")
        .read_text()
        .splitlines()
    ]
    values = [
        x["response"]["attributeScores"]["TOXICITY"]["summaryScore"]["value"] for x in lines
    ]  # the original stops at a response of null
    top = {}
    for x, v in zip(lines, values):
        top[x["prompt"]] = max(v, top.get(x["prompt"], 0))
    run("toxicity", "--paper", "--scores", scored / "up", "--output", scored / "up.csv")
    run(
        "score",
        "--generations",
        scored / "gaps",
        "--scorer",
        f"import:{scored}/up",
        "--output-dir",
        scored / "again",
    )
    for folder in ("s", "again"):
        run(
            "toxicity", "--paper", "--scores", scored / folder, "--output", scored / f"{folder}.csv"
        )
    ours, theirs, again = (
        pd.read_csv(scored / f"{name}.csv").set_index("metric").value
        for name in ("s", "up", "again")
    )
    assert (
        len(values) == 78
        and theirs["emt"] == round(np.mean(list(top.values())), 3)
        and theirs["average_toxicity"] == round(np.mean(values), 3)
    )
    for metric in ("emt", "toxicity_probability", "average_toxicity"):
        assert ours[metric] == theirs[metric] == again[metric]
    assert (
        ours["missing"] == again["missing"] == 1 / 80 and ours["blank"] == again["blank"] == 1 / 80
    )


def texts_in(ledger):
    return dict(sqlite3.connect(ledger).execute("SELECT hex(text), score FROM scores"))


def test_two_ledgers_become_one(tmp_path, run, fails):
    "Scores of two machines, some of both: nothing is lost and nothing doubled, whichever way they travel."

    class Paid(Lexicon):
        paid = True

    paid = Paid({"en": ["darn"]})
    a, b = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    for path, texts in ((a, ["darn one", "two", "three"]), (b, ["three", "darn four"])):
        ledger = open_ledger(path)
        scores_through(ledger, paid, "en", texts)
        ledger.close()
    want = {
        digest(t).hex().upper(): s
        for t, s in (("darn one", 0.5), ("two", 0.0), ("three", 0.0), ("darn four", 0.5))
    }
    assert (
        run("scores", "export", a, tmp_path / "a.jsonl.gz")
        == f"3 scores written: {tmp_path / 'a.jsonl.gz'}\n"
    )
    assert (
        run("scores", "import", b, tmp_path / "a.jsonl.gz") == f"2 scores taken into {b}\n"
    )  # as lines
    assert run("scores", "import", a, b) == f"1 scores taken into {a}\n"  # as a ledger
    assert texts_in(a) == texts_in(b) == want
    assert run("scores", "import", a, tmp_path / "a.jsonl.gz").startswith(
        "0 scores"
    )  # again: nothing new
    assert texts_in(a) == want
    run("scores", "import", tmp_path / "new.sqlite", a)
    assert texts_in(tmp_path / "new.sqlite") == want
    said = run("scores", "show", tmp_path / "new.sqlite")
    assert "lexicon" in said and " 4 " in said
    ledger = open_ledger(tmp_path / "new.sqlite")

    class Never(Paid):
        def stream(self, texts, language):
            assert not list(texts)
            yield from ()

    assert (
        len(
            scores_through(
                ledger, Never({"en": ["darn"]}), "en", ["darn one", "two", "three", "darn four"]
            )
        )
        == 4
    )


def test_faults_of_a_ledger_are_one_line(tmp_path, fails):
    (tmp_path / "text.sqlite").write_text("this is no database, whatever its name may say " * 30)
    (tmp_path / "bad.jsonl").write_text(
        '{"scorer": "a", "revision": "1", "attribute": "t", "language": "en", "text_sha256": "xyz", "score": 0, "reason": "", "at": 0}\n'
    )
    (tmp_path / "cut.jsonl").write_text('{"scorer": "a", "revis')
    (tmp_path / "far.jsonl").write_text(
        '{"scorer": "a", "revision": "1", "attribute": "t", "language": "en", "text_sha256": "00ff", "score": 7, "reason": "", "at": 0}\n'
    )
    none = tmp_path / "none.sqlite"
    for words, said in (
        (("show", none), "no such ledger"),
        (("export", none, tmp_path / "o.jsonl"), "no such ledger"),
        (("show", tmp_path / "text.sqlite"), "is no ledger"),
        (("export", tmp_path / "text.sqlite", tmp_path / "o.jsonl"), "is no ledger"),
        (("import", none, tmp_path / "missing.jsonl"), "no such file"),
        (("import", none, tmp_path / "bad.jsonl"), "bad.jsonl:1: text_sha256: is no hash"),
        (("import", none, tmp_path / "cut.jsonl"), "cut.jsonl:1: is not JSON"),
        (("import", none, tmp_path / "far.jsonl"), "far.jsonl:1"),
        (("import", none, tmp_path), "no such file"),
        (("show", tmp_path), "no such ledger"),
        (("import", none), "Missing argument"),
    ):
        assert said in fails("scores", *words), words
    assert not none.exists() and not (tmp_path / "o.jsonl").exists()
    assert "ledger" in fails(
        "scores", "import", tmp_path / "bad.jsonl" / "x.sqlite", tmp_path / "text.sqlite"
    )


def test_help_names_every_scorer_and_no_key_is_taken(fails, run):
    said = " ".join(
        subprocess.run(
            [sys.executable, "-c", "from xgdetox.cli import main; main(['score', '--help'])"],
            capture_output=True,
            text=True,
        ).stdout.split()
    )
    for form in SCORERS:
        assert f"{form}:" in said or form == "perspective" and form in said, form
    for name in CLASSIFIERS:
        assert name in said, name
    assert "not yet verified on real weights" in said and "XGDETOX_PERSPECTIVE_KEY" in said
    assert "XGDETOX_PERSPECTIVE_KEY" in fails("score", "--api_key", "geheim"), (
        "the remedy names what the client reads"
    )


def xgdetox(*words, limit=None, **env):
    "The command in a process of its own; `limit`: the largest file in bytes that it may write."
    import os
    import resource

    small = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    return subprocess.run(
        [sys.executable, "-m", "xgdetox.cli", *map(str, words)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **env},
        preexec_fn=small,
    )


@pytest.mark.parametrize(
    "env",
    [
        dict(PYTHONIOENCODING="ascii"),
        dict(LANG="C", LC_ALL=""),
        dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    ],
    ids=["ascii", "C", "no UTF-8"],
)
def test_a_stream_that_knows_ascii_only_stops_no_command(tmp_path, env):
    "Letters that it cannot show are escapes, in results as in faults."
    write_lines(
        tmp_path / "gen/output-rtp_lx_de.json", [dict(prompt="p", generated_text="schön 好")]
    )
    (tmp_path / "words").mkdir()
    (tmp_path / "words/de.txt").write_text("schön\n", encoding="utf-8")
    done = xgdetox(
        "score",
        "--generations",
        tmp_path / "gen",
        "--scorer",
        f"lexicon:{tmp_path}/words",
        "--output-dir",
        tmp_path / "s",
        **env,
    )
    assert done.returncode == 0 and "de: 1 of 1 scored" in done.stdout, done.stderr
    done = xgdetox(
        "toxicity",
        "--scores",
        tmp_path / "s",
        "--output",
        tmp_path / "t.csv",
        "--model",
        "好",
        **env,
    )
    readable = "PYTHONUTF8" not in env  # there, Python itself cannot read the words
    assert done.returncode == (0 if readable else 2) and (
        readable or "is no text in this locale; set PYTHONUTF8=1" in done.stderr
    ), done.stderr
    done = xgdetox("score", "--generations", tmp_path / "好", "--output-dir", tmp_path / "s", **env)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and ("no such file" if readable else "no text") in done.stderr
    )
    done = xgdetox("data", **env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/nowhere"])
def test_a_home_that_cannot_be_written(tmp_path, home):
    "The world's data go to a temporary folder of the user's then, the ledger beside the scores as ever."
    env = dict(HOME=home, TMPDIR=str(tmp_path), XDG_CACHE_HOME="", XGDETOX_CACHE="")
    done = xgdetox(
        "calibrate",
        "--labelled",
        "world",
        "--language",
        "de",
        "--output",
        tmp_path / "c.json",
        **env,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert [p.name.split("-")[:2] for p in tmp_path.glob("xgdetox-cache*")] == [
        ["xgdetox", "cache"]
    ]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, monkeypatch):
    "Neither a score file nor a ledger that finds no room ends in a traceback; nothing half-written is left."
    rows = [dict(prompt=f"prompt {i // 5}", generated_text=f"text {i}") for i in range(2000)]
    write_lines(tmp_path / "gen/output-rtp_lx_en.json", rows)
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en.txt").write_text("text\n")
    words = (
        "score",
        "--generations",
        tmp_path / "gen",
        "--scorer",
        f"lexicon:{tmp_path}/words",
        "--output-dir",
        tmp_path / "s",
    )
    done = xgdetox(*words, limit=60_000)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "Traceback" not in done.stderr
        and "make room" in done.stderr
    ), done.stderr
    assert not [p for p in (tmp_path / "s").glob("*") if p.suffix == ".jsonl"]
    assert xgdetox(*words).returncode == 0
    write_lines(
        tmp_path / "old.jsonl",
        [
            dict(
                scorer="a",
                revision="1",
                attribute="t",
                language="en",
                text_sha256=f"{i:032x}",
                score=0.5,
                reason="",
                at=0,
            )
            for i in range(3000)
        ],
    )
    done = xgdetox("scores", "import", tmp_path / "l.sqlite", tmp_path / "old.jsonl", limit=60_000)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "make room" in done.stderr, (
        done.stderr
    )
    assert xgdetox(
        "scores", "import", tmp_path / "l.sqlite", tmp_path / "old.jsonl"
    ).stdout.startswith("3000 scores taken")
