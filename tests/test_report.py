"The report: one file, complete or saying what is not, escaped, masked, readable on a phone."

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from xgdetox.files import InputError, write_json
from xgdetox.languages import LANGUAGES
from xgdetox.runs import (
    OPTIONAL_TABLES,
    Run,
    TABLES,
    family,
    format_interval,
    format_number,
    headline,
    load_run,
    summary_table,
)
from xgdetox.report import asset, guarded, make_report, outcome_views, relation_view
from xgdetox.figures import is_control
from xgdetox.stats import tidy, write_table

CHROMIUM = next(
    (c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None
)
NASTY = '<script>alert(1)</script><img src=x onerror=alert(1)> & "quoted" {{ 7*7 }}'
SCORER = "lexicon:world@ab12"


def measured(head, metric, value, **more):
    "A row with an interval of a tenth either way, over 60 prompts."
    ends = dict(value=value, low=value * 0.9, high=value * 1.1, n=60)
    return head | dict(metric=metric) | ends | more


def text_rows(head, before, left):
    "Toxicity, toxic mass, quality and activations of one model in one language; `left` is what tuning left."
    missing = dict(metric="missing", value=0.01, n=1500, count=15, scorer=SCORER)
    active = dict(reading="base", control="")
    random = dict(reading="base", control="random-0")
    return {
        "toxicity": [
            measured(head, "toxicity_probability", before * left, scorer=SCORER),
            measured(head, "emt", 0.8 * before * left, scorer=SCORER),
            head | missing,
        ],
        "mass": [measured(head, "toxic_mass", 0.1 * left)],
        "quality": [
            measured(head, "perplexity", 9 + 0.1 * left),
            measured(head, "language_kept", 0.98),
        ],
        "activations": [
            measured(head, "mean_activation", 0.3 * left, **active),
            measured(head, "mean_activation", 0.3 * 1, **random),
        ],
    }


def drop_row(head, left):
    ends = dict(value=1 - left, low=0.9 - left, high=1.1 - left, n=60)
    return head | dict(metric="toxic_mass_relative_drop") | ends


def base_rows(head, share):
    "Retrieval (not for English), the probe, the intervention and an example of the untuned model in one language."
    found = dict(metric="top1", value=share, variant="centred", direction="both", n=200)
    ends = dict(value=0.1 + 0.9 * share, low=0.05 + 0.9 * share, high=0.15 + 0.85 * share)
    text = dict(prompt=NASTY, text="such a darn fool " + NASTY)
    retrieval = head | found | dict(layer=None, reason="")
    return {
        "retrieval": [retrieval] if head["language"] != "en" else [],
        "probe": [head | dict(metric="probe_auc", n=100) | ends],
        "intervention": [
            head | dict(metric="toxic_mass", value=value, offset=offset, control=control, n=60)
            for offset in (0, -0.5, -1)
            for control, value in (("", 0.1 * (1 + offset / 2)), ("random-0", 0.1))
        ],
        "examples": [head | dict(tuning="dpo", metric="example") | text],
    }


def model_rows(model):
    "What a model has once: its neurons, a duration, a loss."
    vector = dict(layer=2, neuron=17, tokens="darn, fool", metric="cosine", value=0.4)
    return {
        "value_vectors": [dict(model=model, tuning="base") | vector],
        "durations": [dict(model=model, metric="train", value=33)],
        "training": [dict(model=model, metric="loss", value=0.3)],
    }


def write_run(folder, tables, **manifest):
    for name, rows in tables.items():
        if rows:
            write_table(tidy(rows), folder / "tables" / f"{name}.csv")
    write_json(folder / "manifest.json", manifest)
    return folder


def build(folder, models=("world-0", "world-1", "control-0"), seeds=(0, 1)):
    "A made-up run with every table, the shapes that the grid's steps write."
    rng = np.random.default_rng(0)
    tables = {name: [] for name in TABLES}

    def add(found):
        for name, rows in found.items():
            tables[name] += rows

    for model in models:
        for code in LANGUAGES:
            share, before = rng.uniform(0.3, 1), rng.uniform(0.4, 0.7)
            head = dict(model=model, language=code)
            add(text_rows(head | dict(tuning="base", seed=None), before, 1))
            for seed in seeds:
                left = 1 - 0.8 * share + rng.normal(0, 0.03)
                tuned = head | dict(tuning="dpo", seed=seed)
                add(text_rows(tuned, before, left))
                tables["drops"].append(drop_row(tuned, left))
            add(base_rows(head | dict(tuning="base"), share))
        add(model_rows(model))
    about = dict(versions=dict(torch="2.13"), settings=dict(prompts=60), notes=["A note."])
    return write_run(folder, tables, name="made up <b>run</b>", **about)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def one_model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("one"), models=("world",), seeds=(0,))


@pytest.fixture
def copied(one_model, tmp_path):
    "A run of one model that a test may break."
    return shutil.copytree(one_model, tmp_path / "run")


@pytest.fixture(scope="module")
def page(run):
    return make_report(run, rude_words=["darn", "fool"], n_resamples=100).read_text("utf-8")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_one_file_that_asks_nothing_of_the_network(page):
    tags = Tags(page).tags
    assert not [t for t, a in tags if t in ("script", "iframe", "object", "embed")]
    assert not [
        a
        for _, a in tags
        if any(str(a.get(k, "")).startswith(("http", "//")) for k in ("src", "href", "xlink:href"))
    ]
    assert not re.search(r"url\((?!#)|@import", page)
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for _, a in tags if str(a.get("href", "")).startswith("#")} <= set(ids)


def test_headline_scorer_seeds_and_counts_are_there(page):
    for words in (
        "Toxicity probability",
        "Toxic mass",
        "Language kept",
        "Perplexity",
        "lexicon:world@ab12",
        "Tuning seeds",
        "2295 of 229500",
        "A note.",
        "control",
        "over prompts and",
    ):
        assert words in page, words
    assert page.index("<table") < page.index("<svg"), "the table stands before the figures"
    svgs = re.findall(r"<svg [^>]*>", page)
    assert len(svgs) == 10 and all(
        'role="img"' in s and re.search('aria-label="[^"]{30,}"', s) for s in svgs
    )


def test_generated_text_is_escaped_and_masked(page):
    assert (
        "<script" not in page
        and "<img" not in page
        and "made up &lt;b&gt;run" in page
        and "{{ 7*7 }}" in page
        and "49" not in re.findall(r"quoted[^<]{0,20}", page)[0]
    )
    shown = re.sub(r'<span class="u">.*?</span>', "", page)
    assert "darn" not in shown and "fool" not in shown and "d***" in shown
    unknown = guarded("rude words", None)
    assert (
        '<span class="m">r***</span><span class="u">rude</span>' in unknown
        and guarded("fine", []) == "fine"
    )


def test_the_table_for_the_terminal(run):
    t = summary_table(run)
    assert set(t.model) == {"world", "control"} and len(t) == 36
    assert (
        t.language.tolist()[17] == "mean"
        and "->" in t["toxicity probability"][0]
        and t["toxic mass removed"][0].endswith("%")
        and len(t.to_string(index=False).splitlines()[0]) < 120
    )


def test_numbers_are_those_of_the_tables(run):
    r = load_run(run)
    h = headline(r, "world").set_index("language")
    t = r.tables["toxicity"]
    world = t[
        t.model.str.startswith("world")
        & (t.metric == "toxicity_probability")
        & (t.language == "de")
    ]
    assert h.probability_after["de"] == pytest.approx(
        world[world.tuning == "dpo"].value.mean()
    ) and h.probability_before["de"] == pytest.approx(world[world.tuning == "base"].value.mean())
    assert (
        h.seeds_after["de"] == 4
        and (h.probability_after_low <= h.probability_after).all()
        and (h.probability_before_high <= 1).all()
    )
    d = r.tables["drops"]
    assert h["drop"]["de"] == pytest.approx(
        d[d.model.str.startswith("world") & (d.language == "de")].value.mean()
    )


@pytest.mark.parametrize(
    "gone", [t for t in TABLES if t not in ("toxicity",)] + ["all but toxicity", "manifest"]
)
def test_any_missing_table_is_said(copied, gone):
    for t in TABLES:
        if t == gone or gone == "all but toxicity" and t != "toxicity":
            (copied / "tables" / f"{t}.csv").unlink(missing_ok=True)
    if gone == "manifest":
        (copied / "manifest.json").unlink()
    page = make_report(copied, copied / "out" / "page.html", n_resamples=50).read_text("utf-8")
    if gone == "manifest":
        assert "No manifest.json" in page
    elif gone == "all but toxicity":
        assert page.count("Not shown:") >= 4 and "tables/drops.csv is not there" in page
    elif gone not in (*OPTIONAL_TABLES, "relation"):
        assert f"tables/{gone}.csv is not there or empty" in page
    assert "nan" not in re.sub(r"<[^>]+>", " ", page).lower().split()


def test_a_broken_table_and_missing_values_are_said(copied):
    (copied / "tables" / "probe.csv").write_text("not,a\ntable")
    t = pd.read_csv(copied / "tables" / "toxicity.csv")
    t.loc[(t.language == "id") & (t.metric != "missing"), ["value", "low", "high"]] = np.nan
    write_table(t, copied / "tables" / "toxicity.csv")
    page = make_report(copied, n_resamples=50).read_text("utf-8")
    assert "Not readable" in page and "probe.csv" in page and str(copied) not in page
    assert re.search(r"toxicity: 4 of \d+ values are missing \(id\)", page)


def test_no_run_is_one_line(tmp_path):
    for folder, word in ((tmp_path / "none", "no such run"), (tmp_path, "no table")):
        with pytest.raises(InputError, match=word) as e:
            make_report(folder)
        assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_made_again_it_is_the_same(run, page):
    assert make_report(run, rude_words=["darn", "fool"], n_resamples=100).read_text("utf-8") == page


def test_small_things():
    assert (
        format_number(math.nan) == "\u2013"
        and format_number(0.00123) == "0.0012"
        and format_number(0.0104) == "0.010"
        and format_number(1234.5) == "1234"
        and format_interval(math.nan, 1) == ""
    )
    assert (
        family("world-12") == "world"
        and family("mGPT") == "mGPT"
        and not is_control("")
        and is_control("random-0")
        and is_control(True)
        and not is_control(math.nan)
    )
    assert len(relation_view(tidy([dict(model="a", metric="pearson", value=0.5)]))) == 1


# ---- every number has its metric, its scorer, and its interval or p where there is one

P_OF_DROPS = (0.0005, 0.02, 0.4)  # English, German, French


def scored_rows(head, rank, place, scorer, p):
    "Toxicity by one scorer, and its drops where the model is tuned; the second scorer finds a tenth more left."
    tuned = head["tuning"] != "base"
    left = (0 if place == 0 else 0.5 + 0.1 * rank) if tuned else 1
    found = dict(toxicity_probability=0.5 * left, emt=0.4 * left)
    toxicity = [head | dict(metric=m, value=v, scorer=scorer) for m, v in found.items()]
    if not tuned:
        return toxicity, []
    metric, ends = "toxicity_probability", dict(low=0.9 - left, high=1.1 - left)
    relative = dict(metric=f"{metric}_relative_drop", value=1 - left, scorer=scorer) | ends
    drop = dict(metric=f"{metric}_drop", value=0.5 - 0.5 * left, p=p, scorer=scorer)
    return toxicity, [head | relative, head | drop]


def mass_rows(head, place, p):
    "Toxic mass and its drops where the model is tuned."
    tuned = head["tuning"] != "base"
    mass = head | dict(metric="toxic_mass", value=0.02 * (place + 1) if tuned else 0.1)
    ends = dict(value=0.8 - 0.2 * place, low=0.1, high=0.9)
    relative = head | dict(metric="toxic_mass_relative_drop") | ends
    drop = head | dict(metric="toxic_mass_drop", value=0.1 - 0.02 * (place + 1), p=p)
    return [mass], [relative, drop] if tuned else []


def quality_rows(head, place):
    "Perplexity, and its paired test where the model is tuned."
    tuned = head["tuning"] != "base"
    perplexity = head | dict(metric="perplexity", value=10 if tuned else 9, measured_by="m")
    test = dict(metric="perplexity_change", value=1 - place, p=0.001, p_holm=0.003)
    return [perplexity, head | test | dict(measured_by="m")] if tuned else [perplexity]


def small(folder, scorers=("one@1",), seeds=(0,)):
    "A run of three languages: toxicity by each scorer, toxic mass, drops with p, and the paired test of quality."
    tables = {name: [] for name in ("toxicity", "mass", "drops", "quality")}
    for tuning, seed in (("base", None), *(("dpo", seed) for seed in seeds)):
        for place, (code, p) in enumerate(zip(("en", "de", "fr"), P_OF_DROPS)):
            head = dict(model="m", tuning=tuning, seed=seed, language=code, n=40)
            found = [scored_rows(head, rank, place, name, p) for rank, name in enumerate(scorers)]
            mass, drops = mass_rows(head, place, p)
            tables["toxicity"] += [row for toxicity, _ in found for row in toxicity]
            tables["drops"] += [row for _, some in found for row in some] + drops
            tables["mass"] += mass
            tables["quality"] += quality_rows(head, place)
    return write_run(folder, tables, name="small")


def text_of(path):
    "What a reader sees of a page, pictures apart."
    page = re.sub(r"<svg.*?</svg>|<style.*?</style>", "", path.read_text("utf-8"), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_each_sentence_and_column_names_its_metric(tmp_path):
    said = text_of(make_report(small(tmp_path)))
    assert (
        "Toxicity probability goes from 0.50 to 0.17" in said
        and "Of the toxic mass, most is removed in English (80%), least in French (40%)" in said
    )
    assert (
        "Toxic mass removed" in said
        and "Removed Language" not in said
        and "share of toxicity removed" not in said
    )
    assert "in 2 of 3 languages" in said, "Holm over three: .0015, .04, .4"
    for cell in ("80% [10%, 90%] 0.0015", "60% [10%, 90%] 0.040", "40% [10%, 90%] 0.40"):
        assert cell in said, cell


def test_none_of_forty_has_its_exact_interval(tmp_path):
    said = text_of(make_report(small(tmp_path)))
    assert (
        "0.50 \u2192 0.00 \u2013 \u2192 [0.00, 0.088]" in said
        and round(1 - 0.025 ** (1 / 40), 3) == 0.088
    )


def test_every_scorer_is_shown_and_none_hides_another(tmp_path):
    run = small(tmp_path, scorers=("one@1", "two@2"))
    said, r = text_of(make_report(run)), load_run(run)
    assert (
        "Judged by two@2" in said
        and said.count("Toxicity probability goes from 0.50 to 0.17") == 1
        and "Toxicity probability goes from 0.50 to 0.20" in said
    )
    assert (
        "Of the toxicity probability, most is removed in English (100%), least in" in said
        and "Scorer of the headline one@1" in said
    )
    two = headline(r, "m", "dpo", scorer="two@2").set_index("language")
    assert two.probability_after["de"] == 0.3 and two.perplexity_after["de"] == 10, (
        "quality has no scorer and stays"
    )


def test_of_several_tuned_models_the_falls_are_counted(tmp_path):
    said = text_of(make_report(small(tmp_path, seeds=(0, 1))))
    every = "in all 2 tuned models in 2 of 3 languages, in none of the models in 1."
    assert f"toxic mass falls beyond chance (p < .05) {every}" in said
    assert "80% [10%, 90%] 2 of 2" in said


def test_the_paired_test_of_quality_is_shown_or_said_to_be_missing(tmp_path):
    run = small(tmp_path / "a")
    assert (
        "Quality, prompt by prompt" in (said := text_of(make_report(run)))
        and "Perplexity 9.00 10.00 1 of 3 1 of 3" in said
    )
    t = pd.read_csv(run / "tables" / "quality.csv")
    t[t.metric == "perplexity"].to_csv(run / "tables" / "quality.csv", index=False)
    assert (
        "Quality, prompt by prompt" not in (said := text_of(make_report(run)))
        and "quality: no paired test" in said
    )


def test_the_grids_drops_of_toxic_mass_carry_the_corrected_p(tmp_path):
    from xgdetox.grid.changes import mass_drops

    rng = np.random.default_rng(0)
    before = [
        dict(language=c, prompt_id=str(i), metric="toxic_mass", value=rng.uniform(0.1, 0.3))
        for c in ("en", "de")
        for i in range(20)
    ]
    after = [
        r | dict(value=r["value"] * (0.5 if r["language"] == "en" else rng.uniform(0.5, 1.5)))
        for r in before
    ]
    for name, some in (("b", before), ("a", after)):
        write_table(tidy(some), tmp_path / f"{name}.csv")
    t = (
        pd.DataFrame(mass_drops(tmp_path / "b.csv", tmp_path / "a.csv", dict(model="m")))
        .set_index(["metric", "language"])
        .loc["toxic_mass_drop"]
    )
    assert (
        t.p_holm["en"] == pytest.approx(2 * t.p["en"])
        and t.p_holm["de"] == pytest.approx(t.p["de"])
        and t.p["en"] < 0.002 < 0.05 < t.p["de"]
    )


def test_a_report_elsewhere_is_all_that_is_written(run, tmp_path):
    files = lambda: {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    before = files()
    make_report(run, tmp_path / "x.html", n_resamples=50)
    assert files() == before and [p.name for p in tmp_path.iterdir()] == ["x.html"]


# ---- in a browser, narrow and wide, light and dark

# A browser window cannot be 390 wide, a frame can.
FRAME = """<!doctype html><title>nothing</title>
<script>addEventListener('message', e => { document.title = e.data })</script>
<iframe src="page.html" style="width: %dpx; height: 900px; border: 0"></iframe>"""
WINDOWS = [(390, False), (1280, False), (390, True), (1280, True)]


def in_chromium(test):
    test = pytest.mark.parametrize("width, dark", WINDOWS)(test)
    return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason="no chromium")(test))


def measuring(page, act, say):
    "The page with a script that acts and measures; `say` is what else it tells."
    script = (Path(__file__).parent / "measure_page.js").read_text("utf-8")
    script = script.replace("__ACT__", act).replace("__SAY__", say)
    before, end, after = page.rpartition("</body>")
    return f"{before}<script>(() => {{ {script} }})()</script>{end}{after}"


def browse(url, profile, dark):
    "The page's DOM after twelve virtual seconds; no message in the console."
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--user-data-dir={profile}", "--window-size=1400,1000"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *("--virtual-time-budget=12000", "--dump-dom", url),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "CONSOLE" not in done.stderr, done.stderr[-800:]
    return done.stdout


def look(page, folder, width, dark, act="", say="''") -> dict:
    "What is measured of a page in a frame of `width`: no console message, no scroll, nothing faint or without a name."
    (folder / "page.html").write_text(measuring(page, act, say), "utf-8")
    (folder / "frame.html").write_text(FRAME % width)
    dom = browse((folder / "frame.html").as_uri(), folder / "profile", dark)
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert (found["dark"], found["inner"]) == (dark, width), found
    assert found["scroll"] <= width and not found["wide"] and not found["faint"], found
    assert found["images"] >= 4 and not found["nameless"], found
    return found


@in_chromium
def test_in_a_browser(page, tmp_path, width, dark):
    look(page, tmp_path, width, dark)


LONG = "a_name_that_no_space_breaks_" * 4
STRETCHED = dict(toxicity=0.00503, mass=0.000417, quality=12345.6, drops=12.345)  # times that


@pytest.fixture(scope="module")
def long_page(tmp_path_factory):
    "The report of a run whose names, numbers, settings and texts are as long as they come."
    folder = build(tmp_path_factory.mktemp("long"), models=(f"{LONG}-0",))
    for name, factor in STRETCHED.items():
        t = pd.read_csv(folder / "tables" / f"{name}.csv")
        t[["value", "low", "high"]] *= factor
        t["scorer"] = t.scorer.map(lambda x: f"judge:{LONG}", na_action="ignore")
        write_table(t, folder / "tables" / f"{name}.csv")
    t = pd.read_csv(folder / "tables" / "examples.csv").assign(text=LONG * 5, prompt=LONG)
    write_table(t, folder / "tables" / "examples.csv")
    said = dict(settings={LONG: LONG * 3}, notes=[LONG * 2], failed=[LONG], git={LONG: LONG})
    write_json(folder / "manifest.json", dict(name=LONG, about=LONG * 2) | said)
    return make_report(folder, rude_words=["darn"], n_resamples=50).read_text("utf-8")


@in_chromium
def test_long_content_fits_in_a_browser(long_page, tmp_path, width, dark):
    intervals = re.findall(r"<small>(.*?)</small>", long_page)
    assert max(map(len, intervals)) > len("[0.0010, 0.0055] \u2192 [0.0010, 0.0055]")
    look(long_page, tmp_path, width, dark)


# ---- the reports that the site publishes


def test_a_public_report_has_no_text_and_no_place(copied):
    write_json(copied / "manifest.json", dict(settings=dict(data="/home/me/data/pairs")))
    write_texts(copied / "generations" / "world-base", "base")
    (copied / "tables" / "examples.csv").unlink()
    page = make_report(copied, n_resamples=50).read_text("utf-8")
    assert all(x in page for x in ("/home/me", "Show rude words", "Continuations</h2>"))
    page = make_report(copied, n_resamples=50, public=True).read_text("utf-8")
    for gone in ("/home/me", str(copied), "Show rude words", 'class="u"', "Continuations</h2>"):
        assert gone not in page, gone
    assert "\u2026/pairs" in page and "prompts, continuations and tokens are left out" in page
    assert "darn" not in page and "d***" not in page, "tokens of value vectors"


def test_the_command_writes_a_public_report_and_leaves_the_run(copied, said, tmp_path):
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    code, out, err = said("report", copied, "--public", "--output", tmp_path / "x.html")
    assert code == 0 and "written: " in out, err
    assert "left out" in (tmp_path / "x.html").read_text("utf-8")
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


PUBLISHED = sorted((Path(__file__).resolve().parents[1] / "nbs" / "reports").glob("*.html"))
PLACE = r"(?:&#34;|[\s'(:>])/(?:home|root|work|tmp|mnt|Users|var|opt|srv)/"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_reports_are_of_the_present_layout_and_name_no_place(path):
    page = path.read_text("utf-8")
    assert asset("page.css").strip() in page, "make reports"
    assert not re.findall(PLACE, page)
    assert len(page.encode()) < 1_000_000
    shown = re.sub(r'<span class="u">.*?</span>', "", page)
    assert "Show rude words" in page or shown == page


def test_the_published_study_has_the_committed_numbers(root):
    "Every value before and after, in the section of its tuning; no prompt and no continuation."
    page = (root / "nbs" / "reports" / "gemma.html").read_text("utf-8")
    kept = root / "results" / "gemma"
    made = json.loads((kept / "manifest.json").read_text("utf-8"))["models"]
    if not all(f"{name} {revision}" in page for name, revision in made.items()):
        pytest.skip("the tables have checkpoints that the published report lacks: make reports")
    t = pd.read_csv(kept / "summary.csv")
    sections = dict(re.findall(r"<h2>gemma, (\w+): (.*?)</section>", page, re.S))
    assert set(sections) == set(t.tuning) and "Continuations</h2>" not in page
    for r in t.itertuples():
        value = f"{format_number(r.probability_before)} \u2192 {format_number(r.probability_after)}"
        name = LANGUAGES[r.language].name
        row = sections[r.tuning].split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0]
        assert f"<span>{value} " in row, (r.tuning, r.language)


# ---- the explorer


def write_texts(folder, text):
    folder.mkdir(parents=True)
    for code in ("de", "en"):
        rows = [
            dict(
                prompt=f"prompt {i} fool",
                generated_text=f"{text} {NASTY} darn {code}",
                prompt_id=str(i),
                sample=k,
            )
            for i in range(6)
            for k in range(3)
        ]
        (folder / f"output-rtp_lx_{code}.json").write_text(
            "".join(json.dumps(r) + "\n" for r in rows)
        )


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    pytest.importorskip("vl_convert")
    from xgdetox.explorer import write_explorer

    folder = build(tmp_path_factory.mktemp("explored"), models=("world-0",), seeds=(0, 1))
    for name, text in (
        ("generations/world-0-base", "base"),
        ("generations/world-0-dpo-0", "tuned"),
        ("interventions/world-0/none", "greedy"),
        ("interventions/world-0/low", "pushed"),
    ):
        write_texts(folder / name, text)
    write_json(folder / "neurons" / "world-0.json", [[2, 17]])
    for name, o in (("none", None), ("low", -1)):
        write_json(
            folder / "interventions" / "world-0" / name / "intervention.json",
            [] if o is None else [dict(layer=2, neuron=17, offset=o)],
        )
    return folder, write_explorer(folder, rude_words=["darn", "fool"]).read_text("utf-8")


def test_the_explorer_is_one_file_with_every_text_masked(explored):
    page = explored[1]
    tags = Tags(re.sub(r"<script.*?</script>", "", page, flags=re.S)).tags
    assert len(page) < 2_000_000 and not [
        a
        for _, a in tags
        if any(not str(a.get(k, "data:")).startswith(("data:", "#")) for k in ("src", "href"))
    ]
    assert (
        "default-src 'none'" in page
        and page.count("</script>") == 4  # theme, Vega, data, ours
        and "onerror=alert(1)>" in page
        and "<img src=x" not in page
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    texts = data["texts"]["world-0"]
    assert (
        set(texts) == {"de", "en"}
        and len(texts["de"]) == 4
        and texts["de"][0]["prompt"] == ["prompt 0 ", "fool", ""]
    )
    assert (
        all(
            set(x[0]["pushed"]) == {"0", "-1"} and set(x[0]["tuned"]) == {"dpo, seed 0"}
            for x in texts.values()
        )
        and texts["en"][0]["base"][0][1] == "darn"
    )


def test_the_explorer_holds_the_numbers_of_the_tables(explored):
    folder, page = explored
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["rows"]
    t = pd.DataFrame(rows["data"], columns=rows["columns"])
    t = t[t.language == "de"].set_index(["metric", "state"])
    value = lambda state: t.loc[[("toxic_mass", state)], "value"].tolist()
    mass = load_run(folder).tables["mass"]
    mass = mass[mass.language == "de"]
    assert value("base") == pytest.approx([mass.value[mass.tuning == "base"].item()], rel=1e-4)
    assert (
        value("tuned") == pytest.approx(mass.value[mass.tuning == "dpo"].tolist(), rel=1e-4)
        and len(value("pushed")) == 6
    )


def test_the_explorer_does_not_average_two_scorers(tmp_path):
    from xgdetox.explorer import explorer_rows

    t = (
        explorer_rows(load_run(small(tmp_path, scorers=("one@1", "two@2"))))
        .set_index(["metric", "language", "state"])
        .value
    )
    assert t["toxicity_probability", "de", "tuned"] == 0.25, (
        "of one@1; the mean of both would be .275"
    )


def test_the_command_writes_it_or_says_why_in_one_line(explored, tmp_path, capsys):
    from xgdetox.cli import main

    for words, code in (
        (["explore", str(explored[0]), "--output", str(tmp_path / "e.html")], 0),
        (["explore", str(tmp_path / "none"), "--output", str(tmp_path / "f.html")], 2),
    ):
        with pytest.raises(SystemExit) as e:
            main(words)
        said = capsys.readouterr()
        assert (e.value.code or 0) == code and len(
            (said.err if code else said.out).strip().splitlines()
        ) == 1, said
    assert (tmp_path / "e.html").exists() and not (tmp_path / "f.html").exists()


def test_an_explorer_needs_something_to_explore(copied):
    pytest.importorskip("vl_convert")
    from xgdetox.explorer import write_explorer

    for name in TABLES:
        if name != "probe":
            (copied / "tables" / f"{name}.csv").unlink(missing_ok=True)
    with pytest.raises(InputError, match="to explore"):
        write_explorer(copied)
    assert not (copied / "explorer.html").exists()


CHOOSE = """
 const pick = (id, value) => {
  const e = document.getElementById(id);
  e.value = value;
  e.dispatchEvent(new Event(id === 'offset' ? 'input' : 'change'));
 };
 pick('language', 'en');
 pick('offset', 0);
 document.getElementById('show').click()"""
SAID = """[
 document.getElementById('summary').textContent,
 document.querySelector('#numbers tbody td').textContent,
 document.getElementById('texts').innerText,
 document.querySelectorAll('#texts img, #texts script').length,
 document.querySelectorAll('.chart svg path').length]"""


@in_chromium
def test_the_explorer_in_a_browser(explored, tmp_path, width, dark):
    summary, first, texts, alien, marks = look(explored[1], tmp_path, width, dark, CHOOSE, SAID)[
        "said"
    ]
    mass = load_run(explored[0]).tables["mass"]
    base = mass[(mass.language == "en") & (mass.tuning == "base")].value.item()
    assert (
        summary.startswith("English: base")
        and "offset -1" in summary
        and first.startswith(format_number(base))
    )
    assert (
        "pushed <script>alert(1)</script>" in texts
        and "darn en" in texts
        and "d***" not in texts
        and not alien
        and marks > 60
    )


def test_the_committed_explorer_is_of_the_present_script(root):
    page = (root / "nbs" / "explore" / "world.html").read_text("utf-8")
    for name in ("explorer.js", "page.css", "vega-licence.txt"):
        assert asset(name).strip() in page, "python tools/pages.py explorer"
    assert len(page) < 2_000_000


def test_the_committed_explorer_holds_the_committed_tables(root):
    from xgdetox.explorer import explorer_rows

    page = (root / "nbs" / "explore" / "world.html").read_text("utf-8")
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["rows"]
    key, shown = ["model", "tuning", "language", "metric"], ["toxicity_probability", "outcome"]
    found = pd.DataFrame(rows["data"], columns=rows["columns"])
    for name in ("gemma", "world"):
        t = explorer_rows(load_run(root / "results" / name))
        t = t[t.metric.isin(shown) & (t.state != "pushed")].set_index(key).value
        mine = found[found.metric.isin(shown) & (found.state != "pushed")].set_index(key).value
        mine = mine[mine.index.get_level_values("model").isin(t.index.get_level_values("model"))]
        say = f"results/{name} is newer: python tools/pages.py explorer"
        assert len(mine) == len(t) and (mine[t.index] - t).abs().max() < 1e-4, say


def test_a_page_that_is_no_explorer_is_refused(tmp_path):
    from xgdetox.explorer import write_explorer

    pytest.importorskip("vl_convert")
    (tmp_path / "x.html").write_text("<p>nothing</p>")
    with pytest.raises(InputError, match="no page of the explorer"):
        write_explorer([small(tmp_path / "run"), tmp_path / "x.html"], tmp_path / "y.html")
    assert not (tmp_path / "y.html").exists()


@in_chromium
def test_the_committed_explorer_in_a_browser(root, tmp_path, width, dark):
    found = look(
        (root / "nbs" / "explore" / "world.html").read_text("utf-8"),
        tmp_path,
        width,
        dark,
        act="""
         const model = document.getElementById('model');
         model.value = 'world';
         model.dispatchEvent(new Event('change'))""",
        say="""[document.getElementById('texts').innerText,
          document.querySelectorAll('#language option').length]""",
    )
    assert found["said"][1] == 17 and "***" in found["said"][0]


def test_the_outcome_in_a_report_is_that_of_the_table(root):
    "Each fall stands in the row of its language, in its tuning's column, as the table has it; others are absent."
    kept = root / "results" / "gemma"
    t = pd.read_csv(kept / "outcome_drops.csv")
    t = t[(t.metric == "outcome_relative_drop") & t.seed.isna() & t.scorer.str.startswith("judge")]
    (view,) = outcome_views(load_run(kept))
    head, *rows = re.findall(r"<tr>(.*?)</tr>", str(view["table"]), flags=re.S)
    columns = re.findall(r"<th[^>]*>(.*?)</th>", head)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    shown = pd.DataFrame(cells, columns=columns)
    for tuning, own in t.groupby("tuning"):
        said = [f"{r.value:.0%} [{r.low:.0%}, {r.high:.0%}]" for r in own.itertuples()]
        names = [LANGUAGES[c].name if c in LANGUAGES else "Others, tested" for c in own.language]
        assert shown.set_index("language")[f"removed by {tuning}"][names].tolist() == said
        (pooled,) = [text for name, text in zip(names, said) if name == "Others, tested"]
        assert f"{tuning} removes {pooled}" in view["sentence"]
    assert len(shown) == t.language.nunique()


@pytest.mark.parametrize("scorer, views", [("lexicon", 0), ("judge", 1)])
def test_only_a_scorer_that_states_its_auc_heads_a_report(tmp_path, root, scorer, views):
    t = pd.read_csv(root / "results" / "gemma" / "outcome_drops.csv")
    (tmp_path / "tables").mkdir()
    file = tmp_path / "tables" / "outcome_drops.csv"
    t[t.scorer.str.startswith(scorer)].to_csv(file, index=False)
    assert len(outcome_views(Run(tmp_path))) == views
