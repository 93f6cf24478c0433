"The report: one file, complete or saying what is not, escaped, masked, readable on a phone."

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
import numpy as np
import pandas as pd
import pytest
from xgdetox.files import InputError, write_json
from xgdetox.languages import LANGUAGES
from xgdetox.runs import (
    OPTIONAL,
    TABLES,
    family,
    headline,
    interval,
    load_run,
    number,
    summary_table,
    variants,
)
from xgdetox.report import asset, guarded, make_report, relation_view
from xgdetox.figures import is_control
from xgdetox.stats import tidy, write_table

CHROMIUM = next(
    (c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None
)
NASTY = '<script>alert(1)</script><img src=x onerror=alert(1)> & "quoted" {{ 7*7 }}'


def build(folder, models=("world-0", "world-1", "control-0"), seeds=(0, 1)):
    "A made-up run with every table, the shapes that the grid's steps write."
    rng = np.random.default_rng(0)
    T = {k: [] for k in TABLES}
    for m in models:
        for c in LANGUAGES:
            share, b = rng.uniform(0.3, 1), rng.uniform(0.4, 0.7)
            for s in (None, *seeds):
                left = 1 if s is None else 1 - 0.8 * share + rng.normal(0, 0.03)
                head = dict(model=m, tuning="base" if s is None else "dpo", seed=s, language=c)
                add = lambda table, metric, v, **kw: T[table].append(
                    head | dict(metric=metric, value=v, low=v * 0.9, high=v * 1.1, n=60) | kw
                )
                for metric, v in (("toxicity_probability", b), ("emt", 0.8 * b)):
                    add("toxicity", metric, v * left, scorer="lexicon:world@ab12")
                T["toxicity"].append(
                    head
                    | dict(
                        metric="missing", value=0.01, n=1500, count=15, scorer="lexicon:world@ab12"
                    )
                )
                add("mass", "toxic_mass", 0.1 * left)
                add("quality", "perplexity", 9 + 0.1 * left)
                add("quality", "language_kept", 0.98)
                for control in ("", "random-0"):
                    add(
                        "activations",
                        "mean_activation",
                        0.3 * (1 if control else left),
                        reading="base",
                        control=control,
                    )
                if s is not None:
                    T["drops"].append(
                        head
                        | dict(
                            metric="toxic_mass_relative_drop",
                            value=1 - left,
                            low=0.9 - left,
                            high=1.1 - left,
                            n=60,
                        )
                    )
            one = dict(model=m, tuning="base", language=c)
            if c != "en":
                T["retrieval"].append(
                    one
                    | dict(
                        metric="top1",
                        value=share,
                        variant="centred",
                        direction="both",
                        n=200,
                        layer=None,
                        reason="",
                    )
                )
            T["probe"].append(
                one
                | dict(
                    metric="probe_auc",
                    value=0.1 + 0.9 * share,
                    low=0.05 + 0.9 * share,
                    high=0.15 + 0.85 * share,
                    n=100,
                )
            )
            for o in (0, -0.5, -1):
                for control in ("", "random-0"):
                    T["intervention"].append(
                        one
                        | dict(
                            metric="toxic_mass",
                            value=0.1 * (1 + o / 2 * (control == "")),
                            offset=o,
                            control=control,
                            n=60,
                        )
                    )
            T["examples"].append(
                one
                | dict(
                    tuning="dpo", metric="example", prompt=NASTY, text="such a darn fool " + NASTY
                )
            )
        T["value_vectors"].append(
            dict(
                model=m,
                tuning="base",
                metric="cosine",
                value=0.4,
                layer=2,
                neuron=17,
                tokens="darn, fool",
            )
        )
        T["durations"].append(dict(model=m, metric="train", value=33))
        T["training"].append(dict(model=m, metric="loss", value=0.3))
    for name, rows in T.items():
        if rows:
            write_table(tidy(rows), folder / "tables" / f"{name}.csv")
    write_json(
        folder / "manifest.json",
        dict(
            name="made up <b>run</b>",
            versions=dict(torch="2.13"),
            settings=dict(prompts=60),
            notes=["A note."],
        ),
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build(tmp_path_factory.mktemp("run"))


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
def test_any_missing_table_is_said(tmp_path, gone):
    build(tmp_path, models=("world",), seeds=(0,))
    for t in TABLES:
        if t == gone or gone == "all but toxicity" and t != "toxicity":
            (tmp_path / "tables" / f"{t}.csv").unlink(missing_ok=True)
    if gone == "manifest":
        (tmp_path / "manifest.json").unlink()
    page = make_report(tmp_path, tmp_path / "out" / "page.html", n_resamples=50).read_text("utf-8")
    if gone == "manifest":
        assert "No manifest.json" in page
    elif gone == "all but toxicity":
        assert page.count("Not shown:") >= 4 and "tables/drops.csv is not there" in page
    elif gone not in (*OPTIONAL, "relation"):
        assert f"tables/{gone}.csv is not there or empty" in page
    assert "nan" not in re.sub(r"<[^>]+>", " ", page).lower().split()


def test_a_broken_table_and_missing_values_are_said(tmp_path):
    build(tmp_path, models=("world",), seeds=(0,))
    (tmp_path / "tables" / "probe.csv").write_text("not,a\ntable")
    t = pd.read_csv(tmp_path / "tables" / "toxicity.csv")
    t.loc[(t.language == "id") & (t.metric != "missing"), ["value", "low", "high"]] = np.nan
    write_table(t, tmp_path / "tables" / "toxicity.csv")
    page = make_report(tmp_path, n_resamples=50).read_text("utf-8")
    assert (
        "Not readable" in page
        and "probe.csv" in page
        and str(tmp_path) not in page
        and re.search(r"toxicity: 4 of \d+ values are missing \(id\)", page)
    )


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
        number(math.nan) == "\u2013"
        and number(0.00123) == "0.0012"
        and number(0.0104) == "0.010"
        and number(1234.5) == "1234"
        and interval(math.nan, 1) == ""
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


def small(
    folder,
    scorers=("one@1",),
    seeds=(0,),
    languages=("en", "de", "fr"),
    p=(0.0005, 0.02, 0.4),
    flags=(),
):
    "A run of three languages: toxicity by each scorer, toxic mass, drops with p, and the paired test of quality."
    T = {k: [] for k in ("toxicity", "mass", "drops", "quality")}
    for seed in (None, *seeds):
        for k, c in enumerate(languages):
            head = dict(
                model="m", tuning="base" if seed is None else "dpo", seed=seed, language=c, n=40
            )
            for j, scorer in enumerate(scorers):
                left = 1 if seed is None else 0 if c == "en" else 0.5 + 0.1 * j
                T["toxicity"] += [
                    head | dict(metric=m, value=v * left, scorer=scorer)
                    for m, v in (("toxicity_probability", 0.5), ("emt", 0.4))
                ]
                if seed is not None:
                    T["drops"].append(
                        head
                        | dict(
                            metric="toxicity_probability_relative_drop",
                            value=1 - left,
                            low=0.9 - left,
                            high=1.1 - left,
                            scorer=scorer,
                        )
                    )
                if seed is not None:
                    T["drops"].append(
                        head
                        | dict(
                            metric="toxicity_probability_drop",
                            value=0.5 - 0.5 * left,
                            p=p[k],
                            scorer=scorer,
                        )
                    )
            T["mass"].append(
                head | dict(metric="toxic_mass", value=0.1 if seed is None else 0.02 * (k + 1))
            )
            T["quality"].append(
                head | dict(metric="perplexity", value=9 if seed is None else 10, measured_by="m")
            )
            if seed is None:
                continue
            T["drops"] += [
                head
                | dict(metric="toxic_mass_relative_drop", value=0.8 - 0.2 * k, low=0.1, high=0.9),
                head | dict(metric="toxic_mass_drop", value=0.1 - 0.02 * (k + 1), p=p[k]),
            ]
            T["quality"].append(
                head
                | dict(
                    metric="perplexity_change", value=1 - k, p=0.001, p_holm=0.003, measured_by="m"
                )
            )
    for name, rows in T.items():
        write_table(tidy(rows), folder / "tables" / f"{name}.csv")
    write_json(folder / "manifest.json", dict(name="small"))
    return folder


def text_of(path):
    return " ".join(
        html.unescape(
            re.sub(
                r"<[^>]+>",
                " ",
                re.sub(r"<svg.*?</svg>|<style.*?</style>", "", path.read_text("utf-8"), flags=re.S),
            )
        ).split()
    )


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
    assert (
        "toxic mass falls beyond chance (p < .05) in all 2 tuned models in 2 of 3 languages, in none of the models in 1."
        in said
        and "80% [10%, 90%] 2 of 2" in said
    )


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
    from xgdetox.grid.tables import mass_drops

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


MEASURE = """<script>addEventListener('load', () => setTimeout(() => {
 const lum = c => { const v = c.map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4 }); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
 const rgb = s => (s.match(/[\\d.]+/g) || []).map(Number); const faint = [];
 ACT; document.querySelectorAll('details').forEach(d => d.open = true);
 for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
  let b = e; while (b && (rgb(getComputedStyle(b).backgroundColor)[3] ?? 1) === 0) b = b.parentElement;
  const s = getComputedStyle(e), svg = e.namespaceURI.includes('svg'), fg = rgb(svg && s.fill !== 'none' ? s.fill : s.color).slice(0, 3), bg = b ? rgb(getComputedStyle(b).backgroundColor).slice(0, 3) : [255, 255, 255];
  const [x, y] = [lum(fg), lum(bg)].sort((p, q) => q - p); if ((x + .05) / (y + .05) < 4.5) faint.push(e.tagName + ':' + e.textContent.slice(0, 20)); }
 const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className);
 const named = e => e.closest('[role=img][aria-label], [aria-hidden=true], img[alt]');
 setTimeout(() => parent.postMessage(JSON.stringify({faint: faint.slice(0, 5), wide: wide.slice(0, 5), scroll: document.documentElement.scrollWidth, inner: innerWidth, said: SAY,
  images: document.querySelectorAll('svg, img, canvas').length, nameless: [...document.querySelectorAll('svg, img, canvas')].filter(e => !named(e)).length,
  dark: matchMedia('(prefers-color-scheme: dark)').matches}), '*'), 300); }, 1500));</script>"""
FRAME = """<!doctype html><title>nothing</title><script>addEventListener('message', e => { document.title = e.data })</script>
<iframe src="page.html" style="width: %dpx; height: 900px; border: 0"></iframe>"""  # a browser window cannot be 390 wide, a frame can
in_chromium = lambda f: pytest.mark.slow(
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium")(
        pytest.mark.parametrize(
            "width, dark", [(390, False), (1280, False), (390, True), (1280, True)]
        )(f)
    )
)


def look(page, folder, width, dark, act="", say="''") -> dict:
    "Open a page from file:// in a frame of `width`, do `act`, measure it; no console message, no scroll, nothing faint or without a name."
    before, end, after = page.rpartition("</body>")
    (folder / "page.html").write_text(
        before + MEASURE.replace("ACT", act).replace("SAY", say) + end + after, "utf-8"
    )
    (folder / "frame.html").write_text(FRAME % width)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={folder}/profile",
            "--window-size=1400,1000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=12000",
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "CONSOLE" not in done.stderr, done.stderr[-800:]
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))
    assert (
        (found["dark"], found["inner"]) == (dark, width)
        and found["scroll"] <= width
        and not found["wide"]
        and not found["faint"]
    ), found
    assert found["images"] >= 4 and not found["nameless"], found
    return found


@in_chromium
def test_in_a_browser(page, tmp_path, width, dark):
    look(page, tmp_path, width, dark)


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
        and page.count("</script>") == 3
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


def test_an_explorer_needs_something_to_explore(tmp_path):
    pytest.importorskip("vl_convert")
    from xgdetox.explorer import write_explorer

    build(tmp_path, models=("world",), seeds=(0,))
    for name in TABLES:
        if name != "probe":
            (tmp_path / "tables" / f"{name}.csv").unlink(missing_ok=True)
    with pytest.raises(InputError, match="to explore"):
        write_explorer(tmp_path)
    assert not (tmp_path / "explorer.html").exists()


CHOOSE = """const pick = (id, v) => { const e = document.getElementById(id); e.value = v; e.dispatchEvent(new Event(id === 'offset' ? 'input' : 'change')); };
 pick('language', 'en'); pick('offset', 0); document.getElementById('show').click()"""
SAID = """[document.getElementById('summary').textContent, document.querySelector('#numbers tbody td').textContent, document.getElementById('texts').innerText, document.querySelectorAll('#texts img, #texts script').length,
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
        and first.startswith(number(base))
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
        assert asset(name).strip() in page, (
            "xgdetox explore runs/quick --output nbs/explore/world.html"
        )
    assert len(page) < 2_000_000


@in_chromium
def test_the_committed_explorer_in_a_browser(root, tmp_path, width, dark):
    found = look(
        (root / "nbs" / "explore" / "world.html").read_text("utf-8"),
        tmp_path,
        width,
        dark,
        say="[document.getElementById('texts').innerText, document.querySelectorAll('#language option').length]",
    )
    assert found["said"][1] == 17 and "***" in found["said"][0]
