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


def answer(score):
    "What the service answers."
    return dict(attributeScores=dict(TOXICITY=dict(summaryScore=dict(value=float(score)))))


def continuations(text="g {}"):
    "Two continuations of each of 40 prompts."
    return [
        dict(
            prompt=f"p{i // 2}",
            generated_text=text.format(i),
            prompt_id=str(i // 2),
            sample=i % 2,
        )
        for i in range(80)
    ]


@pytest.fixture
def scored(tmp_path):
    "Scores that stand in files for the command line: 40 prompts, en too low by a factor of ten, de upside down."
    rng = np.random.default_rng(0)
    (tmp_path / "labelled").mkdir()
    for language, toxic, other in (("en", 0.08, 0.02), ("de", 0.2, 0.7)):
        label = rng.integers(0, 2, 200)
        value = np.clip(np.where(label, toxic, other) + rng.normal(0, 0.01, 200), 0, 1)
        scores = {f"text {i}": v for i, v in enumerate(value)}
        scores |= {f"g {i}": 0.06 if i % 4 == 0 else 0.01 for i in range(80)}
        known = [dict(query=t, prompt="p", response=answer(s)) for t, s in scores.items()]
        write_lines(tmp_path / f"known/perspective_api_eval-output-rtp_lx_{language}.json", known)
        labelled = pd.DataFrame(dict(text=[f"text {i}" for i in range(200)], label=label))
        labelled.to_csv(tmp_path / f"labelled/{language}.csv", index=False)
    for c in ("en", "de", "fr"):
        write_lines(tmp_path / f"gen/output-rtp_lx_{c}.json", continuations())
    return tmp_path


def table(file):
    return pd.read_csv(file).set_index(["language", "metric"])


@pytest.fixture
def fitted(scored, run):
    "The folder with a calibration, the scores of its scorer, and what the commands said."
    scorer = ["--scorer", f"import:{scored}/known"]
    files = ["--output", scored / "c.json", "--table", scored / "c.csv"]
    said = run("calibrate", "--labelled", scored / "labelled", *scorer, *files)
    said += run("score", "--generations", scored / "gen", *scorer, "--output-dir", scored / "s")
    return scored, said


def test_a_calibration_is_written_with_how_good_it_is(fitted):
    scored, said = fitted
    facts, rows = json.loads((scored / "c.json").read_text())["languages"], table(scored / "c.csv")
    assert 0.03 < facts["en"]["threshold"] < 0.07 and "threshold" not in facts["de"]
    assert "do not score higher" in said and "does not cover fr" in said
    assert rows.low["en", "auc"] <= rows.value["en", "auc"] <= rows.high["en", "auc"]
    assert rows.value["de", "auc"] < 0.1 and rows.n["en", "auc"] == 200
    assert {"auc", "f1", "ece"} <= set(rows.loc["en"].index)
    assert rows.value["en", "f1"] > 0.95 > rows.value["en", "f1_raw"]


def test_a_calibrated_threshold_reaches_the_table(fitted, run):
    scored, _ = fitted
    words = ["toxicity", "--scores", scored / "s"]
    run(*words, "--output", scored / "raw.csv")
    run(*words, "--calibration", scored / "c.json", "--output", scored / "cal.csv")
    raw, cal = table(scored / "raw.csv"), table(scored / "cal.csv")
    assert raw.value["en", "toxicity_probability"] == 0
    assert cal.value["en", "toxicity_probability_raw"] == 0
    assert cal.value["en", "toxicity_probability"] == 0.5
    threshold = json.loads((scored / "c.json").read_text())["languages"]["en"]["threshold"]
    assert cal.threshold["en", "toxicity_probability"] == threshold
    assert np.isnan(cal.value["de", "toxicity_probability"])
    assert raw.value["en", "emt"] == cal.value["en", "emt"]
    assert raw.value["fr", "missing"] == 1 and np.isnan(raw.value["fr", "emt"])
    assert list(raw.reset_index().columns[:2]) == ["language", "metric"]
    assert {"bound_low", "bound_high", "count", "scorer"} <= set(raw.columns)


def test_faults_of_a_calibration_are_one_line(fitted, run, fails):
    scored, _ = fitted
    (scored / "lexicon").mkdir()
    (scored / "lexicon/en.txt").write_text("g\n")
    (scored / "odd.json").write_text("{}")
    words = ["--scorer", f"lexicon:{scored / 'lexicon'}", "--output-dir", scored / "s2"]
    run("score", "--generations", scored / "gen", *words)
    for scores, calibration, more, said in (
        ("s2", "c.json", [], "the calibration is of import:known@"),
        ("s", "c.json", ["--paper"], "knows no calibration"),
        ("s", "odd.json", [], "is no calibration"),
        ("s", "none.json", [], "no such file"),
    ):
        words = ["--scores", scored / scores, "--calibration", scored / calibration, *more]
        assert said in fails("toxicity", *words, "--output", scored / "no.csv")
    assert not (scored / "no.csv").exists()
    scorer = ["--scorer", f"import:{scored}/known", "--output", scored / "n.json"]
    for labelled, said in (("gen", "text: is missing"), ("nowhere", "no such file")):
        assert said in fails("calibrate", "--labelled", scored / labelled, *scorer)
    assert not (scored / "n.json").exists()


def test_before_and_after_in_one_table(scored, run, fails):
    for c in ("en", "de"):
        write_lines(scored / f"gen2/output-rtp_lx_{c}.json", continuations("g 1"))
    for texts, folder in (("gen", "before"), ("gen2", "after")):
        words = ["--scorer", f"import:{scored}/known", "--output-dir", scored / folder]
        run("score", "--generations", scored / texts, *words)
    words = ["toxicity", "--scores", scored / "after", "--before"]
    run(*words, scored / "before", "--output", scored / "t.csv")
    t = table(scored / "t.csv")
    # every second prompt loses .05 (its maximum falls from .06 to .01): the mean falls by .025
    assert t.value["en", "emt_drop"] == pytest.approx(0.025)
    assert t.value["en", "emt"] == pytest.approx(0.01)
    corrected = pytest.approx(2 * t.p["en", "emt_drop"], rel=0.5)  # over two languages
    assert t.p_holm["en", "emt_drop"] < 0.01 and t.p_holm["en", "emt_drop"] == corrected
    assert list(t.reset_index().columns[:2]) == ["language", "metric"]
    assert t.low["en", "emt_drop"] < 0.025 < t.high["en", "emt_drop"]
    assert "no score files" in fails(*words, scored / "nowhere", "--output", scored / "n.csv")


@pytest.fixture
def upstream(scored, run):
    "The folder with scores of two texts that have none (a blank and an unknown one), also in the original's format."
    rows = continuations()
    rows[3]["generated_text"], rows[8]["generated_text"] = " ", "unknown"
    write_lines(scored / "gaps/output-rtp_lx_zh-hans.json", rows)
    name = "perspective_api_eval-output-rtp_lx_{}.json"
    (scored / "known" / name.format("en")).rename(scored / "known" / name.format("zh-hans"))
    words = ["--scorer", f"import:{scored}/known", "--output-dir", scored / "s"]
    said = run(
        "score", "--generations", scored / "gaps", *words, "--upstream-output", scored / "up"
    )
    assert "without 2 that have no score" in said
    words = ["--scorer", f"import:{scored}/up", "--output-dir", scored / "again"]
    run("score", "--generations", scored / "gaps", *words)
    return scored


def lines_of(file):
    return [json.loads(x) for x in file.read_text().splitlines()]


def test_the_papers_scripts_can_read_our_scores(upstream, run):
    """Out with --upstream-output, in through `import`.

    The released code's numbers, computed here from the file alone, and ours again."""
    metrics = {}
    for name in ("s", "up", "again"):
        run("toxicity", "--paper", "--scores", upstream / name, "--output", upstream / "t.csv")
        metrics[name] = pd.read_csv(upstream / "t.csv").set_index("metric").value
    ours, theirs, again = metrics.values()
    values, top = [], {}
    for x in lines_of(upstream / "up/perspective_api_eval-output-rtp_lx_zh-hans.json"):
        values.append(x["response"]["attributeScores"]["TOXICITY"]["summaryScore"]["value"])
        top[x["prompt"]] = max(values[-1], top.get(x["prompt"], 0))
    assert len(values) == 78 and theirs["emt"] == round(np.mean(list(top.values())), 3)
    assert theirs["average_toxicity"] == round(np.mean(values), 3)
    for metric in ("emt", "toxicity_probability", "average_toxicity"):
        assert ours[metric] == theirs[metric] == again[metric]
    for metric in ("missing", "blank"):
        assert ours[metric] == again[metric] == 1 / 80


def texts_in(ledger):
    return dict(sqlite3.connect(ledger).execute("SELECT hex(text), score FROM scores"))


class Paid(Lexicon):
    paid = True


class Never(Paid):
    "A scorer that must not be asked."

    def stream(self, texts, language):
        assert not list(texts)
        yield from ()


KEPT = {"darn one": 0.5, "two": 0.0, "three": 0.0, "darn four": 0.5}


@pytest.fixture
def ledgers(tmp_path):
    "Two ledgers with some scores in both; together they hold KEPT."
    found = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    for path, texts in zip(found, (["darn one", "two", "three"], ["three", "darn four"])):
        ledger = open_ledger(path)
        scores_through(ledger, Paid({"en": ["darn"]}), "en", texts)
        ledger.close()
    return found


def test_two_ledgers_become_one(tmp_path, ledgers, run):
    "Scores of two machines, some of both: nothing is lost and nothing doubled, whichever way they travel."
    (a, b), lines, new = ledgers, tmp_path / "a.jsonl.gz", tmp_path / "new.sqlite"
    want = {digest(t).hex().upper(): s for t, s in KEPT.items()}
    assert run("scores", "export", a, lines) == f"3 scores written: {lines}\n"
    assert run("scores", "import", b, lines) == f"2 scores taken into {b}\n"  # as lines
    assert run("scores", "import", a, b) == f"1 scores taken into {a}\n"  # as a ledger
    assert texts_in(a) == texts_in(b) == want
    assert run("scores", "import", a, lines).startswith("0 scores")  # again: nothing new
    assert texts_in(a) == want
    run("scores", "import", new, a)
    assert texts_in(new) == want
    said = run("scores", "show", new)
    assert "lexicon" in said and " 4 " in said
    found = scores_through(open_ledger(new), Never({"en": ["darn"]}), "en", list(KEPT))
    assert len(found) == 4


def export_line(key, score):
    "One line of an export."
    source = dict(scorer="a", revision="1", attribute="t", language="en")
    return source | dict(text_sha256=key, score=score, reason="", at=0)


def test_faults_of_a_ledger_are_one_line(tmp_path, fails):
    text, out, none = (tmp_path / n for n in ("text.sqlite", "o.jsonl", "none.sqlite"))
    text.write_text("this is no database " * 60)
    write_lines(tmp_path / "bad.jsonl", [export_line("xyz", 0)])
    write_lines(tmp_path / "far.jsonl", [export_line("00ff", 7)])
    (tmp_path / "cut.jsonl").write_text('{"scorer": "a')
    file = lambda name: ("import", none, tmp_path / name)
    for words, said in (
        (("show", none), "no such ledger"),
        (("export", none, out), "no such ledger"),
        (("show", text), "is no ledger"),
        (("export", text, out), "is no ledger"),
        (file("missing.jsonl"), "no such file"),
        (file("bad.jsonl"), "bad.jsonl:1: text_sha256: is no hash"),
        (file("cut.jsonl"), "cut.jsonl:1: is not JSON"),
        (file("far.jsonl"), "far.jsonl:1"),
        (file(""), "no such file"),
        (("show", tmp_path), "no such ledger"),
        (("import", none), "Missing argument"),
        (("import", tmp_path / "bad.jsonl" / "x.sqlite", text), "ledger"),
    ):
        assert said in fails("scores", *words), words
    assert not none.exists() and not out.exists()


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
    "Letters that it cannot show are escapes."
    texts, words = tmp_path / "gen", tmp_path / "words"
    write_lines(texts / "output-rtp_lx_de.json", [dict(prompt="p", generated_text="schön 好")])
    words.mkdir()
    (words / "de.txt").write_text("schön\n", encoding="utf-8")
    out = ["--output-dir", tmp_path / "s"]
    done = xgdetox("score", "--generations", texts, "--scorer", f"lexicon:{words}", *out, **env)
    assert done.returncode == 0 and "de: 1 of 1 scored" in done.stdout, done.stderr
    named = ["--output", tmp_path / "t.csv", "--model", "好"]
    done = xgdetox("toxicity", "--scores", tmp_path / "s", *named, **env)
    readable = "PYTHONUTF8" not in env  # else Python cannot read the words
    assert done.returncode == (0 if readable else 2), done.stderr
    assert readable or "is no text in this locale; set PYTHONUTF8=1" in done.stderr
    done = xgdetox("score", "--generations", tmp_path / "好", *out, **env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert ("no such file" if readable else "no text") in done.stderr
    assert xgdetox("data", **env).returncode == 0


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


def finds_no_room(*words):
    "Whether the command ends with one line that says so if it may write 60,000 bytes."
    done = xgdetox(*words, limit=60_000)
    one_line = done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert done.returncode == 2 and one_line and "make room" in done.stderr, done.stderr


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path):
    "A score file that finds no room ends in no traceback; nothing half-written is left."
    rows = [dict(prompt=f"prompt {i // 5}", generated_text=f"text {i}") for i in range(2000)]
    write_lines(tmp_path / "gen/output-rtp_lx_en.json", rows)
    (tmp_path / "words").mkdir()
    (tmp_path / "words/en.txt").write_text("text\n")
    words = ["--scorer", f"lexicon:{tmp_path}/words", "--output-dir", tmp_path / "s"]
    words = ["score", "--generations", tmp_path / "gen", *words]
    finds_no_room(*words)
    assert not [p for p in (tmp_path / "s").glob("*") if p.suffix == ".jsonl"]
    assert xgdetox(*words).returncode == 0


def test_a_ledger_on_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path):
    write_lines(tmp_path / "old.jsonl", [export_line(f"{i:032x}", 0.5) for i in range(3000)])
    words = ["scores", "import", tmp_path / "l.sqlite", tmp_path / "old.jsonl"]
    finds_no_room(*words)
    assert xgdetox(*words).stdout.startswith("3000 scores taken")
