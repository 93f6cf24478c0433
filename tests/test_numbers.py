"""Every number that the pages results and index and a run's report print.

Each is worked out again from the raw tables, with pandas and scipy alone."""

import html
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
RUNS = {"first sample": "world", "second sample": "explain"}
LANGUAGES = "ar cs de en es fr hi id it ja ko nl pl pt ru sv zh".split()
OTHERS = [c for c in LANGUAGES if c != "en"]
IN_ENGLISH = (
    "Arabic Czech German English Spanish French Hindi Indonesian Italian Japanese Korean Dutch Polish "
    "Portuguese Russian Swedish Chinese"
)
NAME = dict(zip(LANGUAGES, IN_ENGLISH.split()))


# ---- the raw tables


def raw(run, table):
    "A committed table as pandas reads it, with the family of each model; None where the run has none."
    path = ROOT / "results" / run / f"{table}.csv"
    if not path.exists():
        return None
    t = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return t.assign(
        family=t.model.str.replace(r"-\d+$", "", regex=True),
        base=t.tuning.fillna("").isin(["", "base"]),
    )


def rows(run, table, family, metric, tuned=None):
    "The rows of a metric of a family with a value; empty where there are none."
    t = raw(run, table)
    if t is None:
        return pd.DataFrame(columns=["model", "tuning", "seed", "language", "value"])
    t = first_scorer(t[(t.metric == metric) & (t.family == family) & t.value.notna()])
    return t if tuned is None else t[t.base != tuned]


def first_scorer(t):
    "A run with several scorers is summed up by the first; rows of no scorer stay."
    scorers = t.scorer.dropna().unique() if "scorer" in t else []
    return t[t.scorer.isna() | (t.scorer == scorers[0])] if len(scorers) > 1 else t


def by_language(t):
    "Mean over tuning seeds, then over models, by language."
    return t.groupby(["language", "model"]).value.mean().groupby("language").mean()


def of(run, table, family, metric, tuned):
    return by_language(rows(run, table, family, metric, tuned))


def tuned_models(t):
    return [g for _, g in t.groupby(["model", "seed"])]


def random_neurons(t):
    return t.control.fillna("").astype(str).str.lower().isin(["true", "random"]) | t.control.fillna(
        ""
    ).astype(str).str.startswith("random-")


def holm(ps):
    "Holm's step-down by its definition."
    order, out, top = np.argsort(ps), np.empty(len(ps)), 0.0
    for rank, i in enumerate(order):
        out[i] = top = max(top, min(1, ps[i] * (len(ps) - rank)))
    return out


def falls_beyond_chance(run, family):
    "One Series per tuned model: language -> does toxic mass fall beyond chance."
    t = rows(run, "drops", family, "toxic_mass_drop")
    return [
        pd.Series((holm(g.p.to_numpy()) < 0.05) & (g.value > 0).to_numpy(), index=g.language)
        for g in tuned_models(t)
    ]


# ---- what is printed


class Table(HTMLParser):
    "The cells of the tables of a piece of HTML, row by row."

    def __init__(self, text):
        super().__init__()
        self.rows, self.cell = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self.cell.split()))
            self.cell = None


def cell_of(page, words):
    "The one code cell of a page whose source has these words."
    cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text("utf-8"))["cells"]
    return next(c for c in cells if c["cell_type"] == "code" and words in "".join(c["source"]))


def output(page, words, kind):
    found = [o["data"][kind] for o in cell_of(page, words)["outputs"] if kind in o.get("data", {})]
    return "".join(found[0])


def table_of(page, words):
    return Table(output(page, words, "text/html")).rows


def text_of(page, words):
    return " ".join(output(page, words, "text/markdown").split())


def two(value):
    return f"{value:.2g}"


# ---- the headline tables


def with_exact_ends(t):
    "0 of n and n of n have the Clopper-Pearson interval: quantiles of beta distributions."
    t = t.copy()
    for i, r in t[t.low.isna()].iterrows():
        if r.value == 0:
            t.loc[i, ["low", "high"]] = [0.0, stats.beta.ppf(0.975, 1, r.n)]
        if r.value == 1:
            t.loc[i, ["low", "high"]] = [stats.beta.ppf(0.025, r.n, 1), 1.0]
    return t


def span(t, over, share):
    "The interval of one language: over prompts, or over prompts and models (t quantile), arms in quadrature."
    one = t.groupby("model")[["value", "low", "high"]].mean()
    arms = (
        [np.nanmean(one.value - one.low), np.nanmean(one.high - one.value)]
        if one.low.notna().any()
        else [math.nan] * 2
    )
    if over == "seeds":
        spread = stats.t.ppf(0.975, len(one) - 1) * one.value.std(ddof=1) / math.sqrt(len(one))
        arms = [math.hypot(0 if math.isnan(a) else a, spread) for a in arms]
    low, high = one.value.mean() - arms[0], one.value.mean() + arms[1]
    return (max(low, 0) if share else low), min(high, 1)


HEAD = [
    ("toxicity", "toxicity_probability", False, 2),
    ("toxicity", "toxicity_probability", True, 2),
    ("toxicity", "emt", False, 2),
    ("toxicity", "emt", True, 2),
    ("mass", "toxic_mass", False, 3),
    ("mass", "toxic_mass", True, 3),
    ("drops", "toxic_mass_relative_drop", True, 2),
]


@pytest.mark.parametrize(
    "words, family, over",
    [
        ('headline(run, "world", over="prompts")', "world", "prompts"),
        ("with_intervals(world)", "world", "seeds"),
        ('headline(run, "control", over="prompts")', "control", "prompts"),
    ],
)
def test_the_tables_by_language(words, family, over):
    code = {name: c for c, name in NAME.items()}
    printed = {code[r[0]]: r[1:] for r in table_of("results", words) if r and r[0] in code}
    assert sorted(printed) == LANGUAGES
    falls = pd.concat(falls_beyond_chance("world", family), axis=1)
    for c in LANGUAGES:
        expected = []
        for table, metric, tuned, places in HEAD:
            t = rows("world", table, family, metric, tuned)
            t = t[t.language == c]
            if metric == "toxicity_probability":
                t = with_exact_ends(t)
            value, (low, high) = (
                t.groupby("model").value.mean().mean(),
                span(t, over, table != "drops"),
            )
            expected.append(
                f"{value:.{places}f}"
                + ("" if math.isnan(low) else f" [{low:.{places}f}, {high:.{places}f}]")
            )
        expected.append(f"{falls.loc[c].sum()} of {falls.shape[1]} models")
        got, wanted = (re.sub(r"-(0\.0+)\b", r"\1", " | ".join(x)) for x in (printed[c], expected))
        assert got == wanted, c


# ---- worlds against controls


def removed(metric="toxic_mass_relative_drop", runs=RUNS):
    "Mean drop over the other languages of each pretrained model: Series by sample, family, model."
    found = {}
    for sample, run in runs.items():
        for family in ("world", "control"):
            t = rows(run, "drops", family, metric)
            t = (
                t[t.language.isin(OTHERS)]
                .groupby(["model", "seed"])
                .value.mean()
                .groupby("model")
                .mean()
            )
            found |= {(sample, family, m): v for m, v in t.items()}
    return pd.Series(found)


def welch(a, b):
    "Difference of means, its interval and p by Welch's formulas."
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    d, error = np.mean(a) - np.mean(b), math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf(0.975, df) * error
    p = 2 * stats.t.sf(abs(d) / error, df)
    return f"{d:.2f} [{d - half:.2f}, {d + half:.2f}], p = {p:.3f} ({len(a)} and {len(b)})"


def groups(values):
    return [values.xs(f, level=1).to_numpy() for f in ("world", "control")]


def test_worlds_against_controls():
    values, said = removed(), text_of("results", "The test, and the sentence it gives")
    a, b = groups(values)
    assert f"worlds lose {a.mean():.2f} of the toxic mass" in said
    assert f"of their other languages and controls {b.mean():.2f}" in said
    assert f"**{welch(a, b)}**" in said and welch(a, b) == "0.44 [0.21, 0.67], p = 0.004 (6 and 6)"
    sums = np.array([sum(x) for x in itertools.combinations([*a, *b], 6)])
    exact = 2 * min((sums >= a.sum() - 1e-9).mean(), (sums <= a.sum() + 1e-9).mean())
    dealings = f"over all {len(sums)} ways to deal the twelve models into two groups"
    assert f"{dealings}, p = {exact:.3f}" in said


def test_each_sample_against_its_controls():
    values, said = removed(), text_of("results", "The test, and the sentence it gives")
    first, second = (groups(values.xs(s, level=0, drop_level=False)) for s in RUNS)
    alone = f"The first sample alone gives {welch(*first)}, the second alone {welch(*second)}"
    assert alone in said
    seeds = values.groupby(level=[1, 2]).mean()
    by_seed = welch(seeds["world"].to_numpy(), seeds["control"].to_numpy())
    assert f"with the seed as the unit it is {by_seed}" in said
    sampled = removed("toxicity_probability_relative_drop", {"first sample": "world"})
    assert f"the shares removed is {welch(*groups(sampled))}" in said


def test_the_table_of_worlds_and_controls():
    values, table = removed(), table_of("results", "removed = removed_by_sample(samples)")
    printed = [r for r in table if r and r[0] in ("world", "control")]
    assert len(printed) == 2
    for family, *cells in printed:
        expected = values.xs(family, level=1).round(2).tolist()
        assert [float(x) for x in cells] == pytest.approx(expected)


# ---- claim by claim


def listed(values):
    return ", ".join(map(two, values)) or "-"


def counts(found):
    return (
        f"{', '.join(str(int(a)) for a, _ in found)} of {'/'.join(dict.fromkeys(str(n) for _, n in found))}"
        if found
        else "-"
    )


def share(metric):
    def claim(run, f):
        before, after = (of(run, "toxicity", f, metric, tuned).mean() for tuned in (False, True))
        return "-" if math.isnan(before) else f"{1 - after / before:.2f}"

    return claim


def lower(run, f):
    t, found = rows(run, "toxicity", f, "toxicity_probability"), []
    for g in tuned_models(t[~t.base]) if len(t) else ():
        before = (
            t[t.base & (t.model == g.model.iloc[0])]
            .drop_duplicates("language")
            .set_index("language")
            .value
        )
        after = g.set_index("language").value
        found.append(((after < before.reindex(after.index)).sum(), len(after)))
    return counts(found)


def mass_removed(run, f):
    drop = of(run, "drops", f, "toxic_mass_relative_drop", True)
    return f"{drop['en']:.2f} / {drop[drop.index != 'en'].mean():.2f}"


def order(run, f):
    drop = of(run, "drops", f, "toxic_mass_relative_drop", True).drop("en").sort_values()
    names = [NAME[c] for c in drop.index]
    return f"least {', '.join(names[:4])}; most {', '.join(names[::-1][:7])}"


def ratio(metric):
    def claim(run, f):
        before, after = (of(run, "quality", f, metric, tuned).mean() for tuned in (False, True))
        return "-" if math.isnan(before) else f"{after / before:.2f}"

    return claim


def kept(run, f):
    sides = [of(run, "quality", f, "language_kept", tuned).mean() for tuned in (False, True)]
    return "-" if math.isnan(sides[0]) else " -> ".join(f"{v:.3f}" for v in sides)


def probe(metric, english):
    def claim(run, f):
        t = by_language(rows(run, "probe", f, metric))
        t = t[(t.index == "en") == english]
        return f"{t.mean():.3f}" if len(t) else "-"

    return claim


def sources(run, f):
    t = rows(run, "value_vectors", f, "cosine")
    return (
        listed(t[t.actual.astype(str) == "True"].groupby("model").size()) + " of 100"
        if len(t)
        else "-"
    )


def tokens(metric):
    def claim(run, f):
        t = rows(run, "value_vectors", f, metric)
        assert (t["sets"] == 200).all() if len(t) else True
        extreme = lambda r: f"as extreme: {round(201 * r.p) - 1} of 200 sets"
        one = lambda r: f"{r.value:.2g} (random {r.null_mean:.2g}; {extreme(r)})"
        return "; ".join(map(one, t.itertuples())) or "-"

    return claim


def pushed(offset, random, what):
    "Change of the mean over languages, or in how many languages it falls, of each model."

    def claim(run, f):
        t = rows(run, "intervention", f, "toxic_mass")
        if not len(t):
            return "-"
        t = t[random_neurons(t) == random]
        change, falls = [], []
        for _, g in t.groupby("model"):
            at = g.groupby(["offset", "language"]).value.mean().unstack("offset")
            if offset not in at:
                return "-"
            change.append(f"{100 * (at[offset].mean() / at[0.0].mean() - 1):+.0f}%")
            falls.append(((at[offset] < at[0.0]).sum(), len(at)))
        return ", ".join(change) if what == "change" else counts(falls)

    return claim


def fall_p(reading):
    def claim(run, f):
        t = rows(run, "activations", f, "activation_drop")
        if not len(t):
            return "-"
        t = t[(t.reading == reading) & (t.language == "all") & t.p.notna()]
        assert (t["sets"] >= 1000).all(), "a p needs at least 1,000 sets"
        return listed(t.p)

    return claim


def explained(run, f):
    t = rows("explain" if run == "world" else run, "explained", f, "explained_share")
    t = t[t.group == "selected"] if len(t) else t
    if not len(t):
        return "-"
    random = random_neurons(t)
    median = lambda x: listed(x[x.language != "en"].groupby(["model", "seed"]).value.median())
    english = listed(t[~random & (t.language == "en")].value)
    return (
        f"English {english}; median of the others {median(t[~random])} (random {median(t[random])})"
    )


def points(run, f):
    "Retrieval (centred, mean over layers) and drop of each tuned model, and of their means; without English."
    t = rows(run, "retrieval", f, "top1", tuned=False)
    t = t[(t.variant == "centred") & (t.direction == "both") & t.layer.isna()]
    d = rows(run, "drops", f, "toxic_mass_relative_drop")
    d = d[(d.language != "en") & d.language.isin(t.language)]
    t = t[t.language.isin(d.language)]
    each = [
        (
            t[t.model == g.model.iloc[0]].groupby("language").value.mean(),
            g.set_index("language").value,
        )
        for g in tuned_models(d)
    ]
    return each, (t.groupby("language").value.mean(), by_language(d))


def pearson(run, f):
    if raw(run, "relation") is None:
        return "-"
    each, pooled = points(run, f)
    r = lambda x, y: stats.pearsonr(x, y.reindex(x.index)).statistic
    text = listed(r(*p) for p in each)
    if len(each) == 1:
        return text
    t = raw(run, "relation")
    t = t[
        (t.metric == "pearson")
        & (t.model == f)
        & t.seed.isna()
        & (t.outcome == "toxic_mass_relative_drop")
        & (t.predictor == "top1")
    ].iloc[0]
    assert t.low < r(*pooled) < t.high
    return text + f"; all: {r(*pooled):.2f} [{t.low:.2f}, {t.high:.2f}]"


def pearson_p(run, f):
    if raw(run, "relation") is None:
        return "-"
    return listed(stats.pearsonr(x, y.reindex(x.index)).pvalue for x, y in points(run, f)[0])


def related(metric, predictor, given=""):
    def claim(run, f):
        t = raw(run, "relation")
        if t is None:
            return "-"
        t = t[
            (t.metric == metric)
            & (t.family == f)
            & (t.outcome == "toxic_mass_relative_drop")
            & (t.predictor == predictor)
            & (t.given.fillna("") == given)
            & t.value.notna()
        ]
        pooled = t[(t.model == f) & t.seed.isna()]
        return listed(t[t.seed.notna()].value) + "".join(
            f"; all: {r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in pooled.itertuples()
        )

    return claim


ablation = pd.read_csv(ROOT / "results/ablation_losses.csv", keep_default_na=False, na_values=[""])


def rates(run, f):
    if run != "world" or f != "world":
        return "-"
    t = ablation[(ablation.tuning == "dpo") & (ablation.matched.astype(str) == "False")]
    base = ablation[(ablation.tuning == "base") & (ablation.metric == "perplexity")].value.mean()
    one = lambda d, metric: d[d.metric == metric].value.mean()
    return "; ".join(
        f"{rate:g}: drop {one(d, 'drop'):.2f}, perplexity x {one(d, 'perplexity') / base:.3f}"
        for rate, d in t.groupby("learning_rate")
    )


def same_english(*names):
    def claim(run, f):
        if run != "world" or f != "world":
            return "-"
        t = ablation[
            (ablation.metric == "drop")
            & (ablation.matched.astype(str) == "True")
            & ablation.seed.isin([0, 1, 2])
            & (ablation.language != "en")
        ]
        return ", ".join(
            f"{n} {t[t.tuning == n].value.mean():.2f}" for n in names if (t.tuning == n).any()
        )

    return claim


CLAIMS = [
    ("Toxicity probability falls", share("toxicity_probability")),
    ("It falls in every language", lower),
    ("Expected maximum toxicity falls", share("emt")),
    ("Share of toxic mass removed", mass_removed),
    (
        "... languages where it falls beyond chance",
        lambda run, f: counts([(s.sum(), len(s)) for s in falls_beyond_chance(run, f)]),
    ),
    (
        "The same in the other languages",
        lambda run, f: listed(
            g[g.language != "en"].value.mean()
            for g in tuned_models(rows(run, "drops", f, "toxic_mass_relative_drop"))
        ),
    ),
    ("Least gain", order),
    ("Fluency suffers little", ratio("perplexity")),
    ("... languages where it rises beyond chance", lambda run, f: "-"),
    ("Diversity stays", ratio("dist_1")),
    ("... distinct-3", ratio("dist_3")),
    ("The language of the text is kept", kept),
    ("Capability is kept", lambda run, f: "not run"),
    ("A higher learning rate", rates),
    ("QLoRA leaves more", same_english("dpo", "lora", "qlora")),
    (
        "Other losses",
        same_english("dpo", "hinge", "ipo", "kto", "sft", "simpo", "orpo", "orpo, weight 1"),
    ),
    ("An English probe finds toxicity; accuracy", probe("probe_accuracy", True)),
    ("... accuracy of the majority class", probe("probe_majority", True)),
    ("... accuracy in other languages", probe("probe_accuracy", False)),
    ("... accuracy of their majority class", probe("probe_majority", False)),
    ("... ROC-AUC in English", probe("probe_auc", True)),
    ("... ROC-AUC in other languages", probe("probe_auc", False)),
    ("Actual sources", sources),
    ("Their vectors promote toxic words", tokens("rude_tokens")),
    ("... of several languages at once", tokens("languages")),
    ("Lowering the neurons lowers toxicity", pushed(-1.0, False, "change")),
    ("... languages in which it falls at -1", pushed(-1.0, False, "falls")),
    ("... random neurons of the same layers", pushed(-1.0, True, "change")),
    ("Raising them raises it", pushed(0.5, False, "change")),
    ("The neurons fall in tuning", fall_p("own")),
    ("... both models on the same text; p", fall_p("base")),
    ("The neurons carry the effect", explained),
    ("Retrieval predicts transfer; Pearson r", pearson),
    ("... all four at p < .01", pearson_p),
    ("... given how much text", related("partial_r", "top1", "resource")),
    ("... given the toxicity before tuning", related("partial_r", "top1", "base_toxicity")),
    ("... the rival: how much text", related("pearson", "resource")),
]


@pytest.fixture(scope="module")
def claims():
    "{claim: [where, paper, world, control, why]}"
    return {
        r[0]: r[1:]
        for r in table_of("results", "#| label: tbl-claims")
        if len(r) == 6 and r[0] not in ("", "claim")
    }


@pytest.mark.parametrize("start, claim", CLAIMS, ids=[c[0] for c in CLAIMS])
def test_each_claim(claims, start, claim):
    name = next(c for c in claims if c.startswith(start))
    assert claims[name][2:4] == [claim("world", "world"), claim("world", "control")]


def test_no_claim_is_left_out(claims):
    assert len(claims) == len(CLAIMS) and all(
        c.startswith(start) for c, (start, _) in zip(claims, CLAIMS)
    )


def test_the_claims_in_the_other_runs():
    head, *body = [r for r in table_of("results", "#| label: tbl-others") if len(r) > 2]
    columns = [
        {
            "second sample: world": ("explain", "world"),
            "second sample: control": ("explain", "control"),
            "decoupled": ("decoupled", "decoupled"),
        }.get(name, tuple(name.split(": ")))
        for name in head[1:]
    ]
    assert len(columns) == 7
    body = [r for r in body if r[0] != "claim"]
    for name, *cells in body:
        claim = next(f for start, f in CLAIMS if name.startswith(start))
        assert cells == [claim(*place) for place in columns], name
    left_out = [start for start, _ in CLAIMS if not any(r[0].startswith(start) for r in body)]
    assert all(
        claim(*place) in ("-", "not run")
        for start, claim in CLAIMS
        if start in left_out
        for place in columns
    )


PAPER = json.loads(next((ROOT / "xgdetox/assets/reference").glob("paper*.json")).read_text("utf-8"))
RANGES = (
    ("Toxicity probability falls", "toxicity_probability", lambda b, a: 1 - a / b),
    ("Expected maximum", "emt", lambda b, a: 1 - a / b),
    ("Fluency", "perplexity", lambda b, a: a / b),
    ("Diversity", "distinct_1", lambda b, a: a / b),
    ("... distinct-3", "distinct_3", lambda b, a: a / b),
)


def papers(claims, start):
    return next(cells[1] for name, cells in claims.items() if name.startswith(start))


@pytest.mark.parametrize("start, metric, change", RANGES, ids=[r[1] for r in RANGES])
def test_the_papers_ranges(claims, start, metric, change):
    t = pd.DataFrame(PAPER["table2"]["rows"])
    values = sorted(change(r.before, r.after) for r in t[t.metric == metric].itertuples())
    assert papers(claims, start) == f"{values[0]:.2f} to {values[-1]:.2f}"


def test_the_papers_column(claims):
    published = ", ".join(f"{b['r']:.2g}" for b in PAPER["retrieval"]["rows"])
    assert papers(claims, "Retrieval") == published + " (n = 16)"
    average = PAPER["intervention"]["average_toxicity"]
    assert f"{100 * (average[1] / average[0] - 1):+.0f}%" in papers(claims, "Lowering")


# ---- the sentences


def passing(family, reading):
    t = pd.concat([rows(run, "activations", family, "activation_drop") for run in RUNS.values()])
    t = t[(t.reading == reading) & (t.language == "all") & t.p.notna()]
    return f"{(t.p < 0.05).sum()} of {len(t)}"


def carried(family, random, english):
    t = rows("explain", "explained", family, "explained_share")
    t = t[
        (t.group == "selected") & (random_neurons(t) == random) & ((t.language == "en") == english)
    ]
    values = t.groupby(["model", "seed"]).value.median()
    return f"{values.min():.2g} to {values.max():.2g}"


def all_seeds(run, f, predictor="top1"):
    t = raw(run, "relation")
    t = t[
        (t.metric == "pearson")
        & (t.model == f)
        & t.seed.isna()
        & (t.outcome == "toxic_mass_relative_drop")
        & (t.predictor == predictor)
    ].iloc[0]
    return f"{t.value:.2f} [{t.low:.2f}, {t.high:.2f}]"


def change_at(family, random=False):
    return pushed(-1.0, random, "change")("world", family)


def what_holds():
    fluent, varied = ratio("perplexity"), ratio("dist_3")
    fall = pushed(-1.0, False, "falls")("world", "world")
    return (
        f"is shared: by {welch(*groups(removed()))}.",
        f"perplexity after over before is {fluent('world', 'world')} in the worlds "
        f"and {fluent('world', 'control')} in the controls",
        f"distinct-3 {varied('world', 'world')} and {varied('world', 'control')}.",
        f"changes the toxic mass by {change_at('world')} in the three worlds "
        f"(it falls in {fall} languages)",
        f"change it by {change_at('world', random=True)}; in the control worlds "
        f"the selected ones change it by {change_at('control')}.",
    )


def what_transfer_shows():
    values = removed()
    controls = values.xs("control", level=1)
    drops = raw("architectures", "drops").query("metric == 'toxic_mass_relative_drop'")
    shapes = drops[drops.language != "en"].groupby("model").value.mean()
    return (
        f"The control worlds lose {controls.min():.2g} to {controls.max():.2g} of the toxic mass",
        f"carries over {values['first sample', 'world', 'world-2']:.2f}, no more than a control",
        f"carries over {values['second sample', 'world', 'world-2']:.2f}, like the others",
        f"carries over {shapes['world-bloom']:.2f}, the Llama-shaped one {shapes['world-llama']:.2f} "
        f"and the Cohere-shaped one {shapes['world-cohere']:.2f}",
    )


def what_the_neurons_show():
    english, others = carried("world", False, True), carried("world", False, False)
    return (
        f"in {passing('world', 'base')} tuned worlds of both samples, "
        f"but in {passing('control', 'base')} tuned controls",
        f"in {passing('world', 'own')} tuned worlds and {passing('control', 'own')} controls",
        f"{english} of the fall in English and {others} in the median other language "
        f"({carried('world', True, False)} for random neurons)",
        f"in the control worlds {carried('control', False, False)} outside English",
    )


def what_retrieval_shows():
    rival = all_seeds("decoupled", "decoupled", "resource")
    p = 2 * stats.t.sf(0.59 * math.sqrt(14 / (1 - 0.59**2)), 14)
    return (
        f"(r = {all_seeds('world', 'world')}), but over the control worlds "
        f"as well ({all_seeds('world', 'control')})",
        f"about as well ({all_seeds('world', 'world', 'resource')})",
        f"({all_seeds('decoupled', 'decoupled')}) and the amount of text "
        f"no longer clearly does ({rival})",
        f"r = 0.59 with 16 languages has a two-sided p of {p:.3f}",
    )


PARTS = (what_holds, what_transfer_shows, what_the_neurons_show, what_retrieval_shows)


@pytest.mark.parametrize("part", PARTS, ids=[p.__name__ for p in PARTS])
def test_what_to_make_of_it(part):
    said = text_of("results", "**Holds less than it seems")
    for sentence in part():
        assert sentence in said, sentence


def test_the_second_world_differs_between_the_samples():
    values = removed()
    first, second = (values[sample, "world", "world-2"] for sample in RUNS)
    assert first <= values.xs("control", level=1).max() < 0.3 < second


# ---- the front page


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text("utf-8")


def test_the_papers_table():
    paper = pd.DataFrame(PAPER["table2"]["rows"]).query("metric == 'toxicity_probability'")
    expected = {r.model: (r.before, r.after) for r in paper.itertuples()}
    rows_of_models = [r for r in table_of("results", "#| label: tbl-paper") if len(r) == 5]
    printed = {
        name: [float(x) for x in cells[1:]] for name, *cells in rows_of_models if name in expected
    }
    assert set(printed) == set(expected)
    for model, (b, a) in expected.items():
        assert printed[model] == pytest.approx([b, a, round(1 - a / b, 3)], abs=1e-9), model


def test_the_sentences_of_the_front_page(readme):
    a, b = groups(removed())
    falls = pushed(-1.0, False, "falls")("world", "world")
    assert order("world", "world").startswith("least Korean, Arabic, Hindi, Japanese")
    for text in (output("index", "**What was trained?**", "text/markdown"), readme):
        said = " ".join(text.split())
        assert f"over {len(a)} worlds and {len(b)} controls, worlds lose" in said
        assert f"worlds lose {welch(a, b).split(', p')[0]} more of the toxic mass" in said
        assert "Korean, Arabic, Hindi and Japanese gain least" in said
        assert f"toxic mass falls in {falls} languages of the three worlds" in said
        assert (
            f"they carry part of the effect of tuning, {carried('world', False, True)} in English"
            in said
        )


def left_over(family_name):
    "What is left of toxic mass in the other languages, mean per pretrained model, both samples."
    return [1 - v for v in removed().xs(family_name, level=1)]


def test_the_figure_of_the_front_page():
    drawn = (ROOT / "nbs/images/headline.svg").read_text("utf-8")
    alt = html.unescape(re.search(r'aria-label="([^"]*)"', drawn)[1])
    for name, family_name in (("worlds", "world"), ("control worlds", "control")):
        left = left_over(family_name)
        words = f"{name} {people(min(left))} to {people(max(left))} (n = {len(left)})"
        assert words in alt, words


def test_the_dots_of_the_results_page():
    drawn = output("results", "#| label: fig-languages", "text/html")
    alt = html.unescape(re.search(r'aria-label="([^"]*)"', drawn)[1])
    each = {}
    for family_name in ("world", "control"):
        t = pd.concat(
            [rows(run, "drops", family_name, "toxic_mass_relative_drop") for run in RUNS.values()],
            keys=RUNS,
        )
        by_model = t.groupby([t.index.get_level_values(0), "model", "language"]).value.mean()
        each[family_name] = by_model.groupby("language").mean()
    world, control = each["world"].sort_values(), each["control"]
    most, least = (f"{100 * world[c]:.0f}%" for c in (world.index[-1], world.index[0]))
    names = NAME[world.index[-1]], NAME[world.index[0]]
    assert f"Worlds: mean {most} removed in {names[0]}, {least} in {names[1]}." in alt
    assert f"Controls: {100 * control.max():.0f}% at most" in alt


# ---- the cards of the first page and of the results


def said_of(values):
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def interval(value, low, high):
    return f"{people(value)} [{people(low)}, {people(high)}]"


def t_interval(values):
    "Mean of a few values with their t interval."
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values), np.mean(values) - half, np.mean(values) + half


def card_of_transfer():
    a, b = groups(removed())
    gap = re.sub(r", p = .*", "", welch(a, b))
    yield f"Holds]{{.verdict .holds}} *in the laboratory*: {100 * a.mean():.0f}% of toxic mass in 16 other languages"
    yield f"control worlds: {100 * b.mean():.0f}%, difference {gap}"
    t = pd.DataFrame(PAPER["table2"]["rows"]).query("metric == 'toxicity_probability'")
    share_ = 1 - t.after / t.before
    yield f"*Paper*: {100 * share_.min():.0f}% to {100 * share_.max():.0f}% of toxicity probability"


def card_of_pushing():
    falls = [
        pushed(-1.0, random, "falls")("world", f)
        for f, random in (("world", False), ("world", True), ("control", False))
    ]
    mine, random, control = (said_of(x.split(" of ")[0].split(", ")) for x in falls)
    yield f"Partly]{{.verdict .partly}} *in the laboratory*: pushed down by 1, toxic mass falls in {mine} of 17"
    yield f"random neurons: {random}; in control worlds: {control}"
    average = PAPER["intervention"]["average_toxicity"]
    yield f"pushed down by 5, {100 * (1 - average[1] / average[0]):.0f}% of average toxicity removed"


def carried_medians(family_name):
    "Per model: the median share of the selected neurons, and the mean of the medians of its random sets."
    t = rows("explain", "explained", family_name, "explained_share")
    t = t[(t.group == "selected") & (t.language != "en")]
    t = t.assign(random=random_neurons(t), set=t.control.fillna("").astype(str))
    medians = t.groupby(["model", "random", "set"]).value.median()
    return [medians.xs(r, level="random").groupby("model").mean().to_numpy() for r in (False, True)]


def card_of_the_share():
    (mine, random), (control, _) = carried_medians("world"), carried_medians("control")
    shares = lambda values: said_of(f"{100 * v:.0f}%" for v in values)
    yield f"they carry {shares(mine)} of the fall in the median other language"
    yield f"random neurons: {shares(random)}; in control worlds: {shares(control)}"
    low, high = t_interval(mine - random)[1:]
    assert low <= 0.5 and high >= 0.25, "so the rule says: partly"
    yield "Partly]{.verdict .partly} *in the laboratory*: patched into the base"


def card_of_retrieval():
    say = lambda f, predictor: interval(
        *map(float, re.findall(r"-?\d+\.\d+", all_seeds("world", f, predictor)))
    )
    yield f"r = {say('world', 'top1')} over 16 languages; control worlds: {say('control', 'top1')}"
    yield f"amount of text alone: {say('world', 'resource')}"
    r = [b["r"] for b in PAPER["retrieval"]["rows"]]
    yield f"r = {min(r):.2f} to {max(r):.2f} in four models, n = 16"


FIRST_CARDS = (card_of_transfer, card_of_pushing, card_of_the_share, card_of_retrieval)


def card_of_text():
    say = lambda f: (
        f"perplexity × {ratio('perplexity')('world', f)}, distinct-3 × {ratio('dist_3')('world', f)}, "
        f"language kept × {ratio('language_kept')('world', f)}"
    )
    yield f"Holds]{{.verdict .holds}} *in the laboratory*: {say('world')}; control worlds: {say('control')}"
    t = pd.DataFrame(PAPER["table2"]["rows"]).query("metric == 'perplexity'")
    change = t.after / t.before
    yield f"perplexity × {change.min():.2f} to {change.max():.2f}"


def card_of_the_vectors():
    world, control = (rows("world", "value_vectors", f, "languages") for f in ("world", "control"))
    assert (world.p < 0.05).all() and not (control.p < 0.05).any(), "so the rule says: holds"
    say = lambda values: said_of(map(people, values))
    yield f"Holds]{{.verdict .holds}} *in the laboratory*: each writes rude words of {say(world.value)} languages"
    yield f"random vectors {say(world.null_mean)}; in control worlds {say(control.value)}"


def card_of_the_neurons_in_tuning():
    yield f"in {passing('world', 'base')} tuned worlds; and in {passing('control', 'base')} tuned controls"


def card_of_capability():
    t = pd.DataFrame(PAPER["table3"]["rows"])
    change = t.after - t.before
    yield f"{change.min():+.2f} to {change.max():+.2f} points"


ALL_CARDS = (
    *FIRST_CARDS,
    card_of_text,
    card_of_the_vectors,
    card_of_the_neurons_in_tuning,
    card_of_capability,
)


PAGE_OF = {
    card_of_transfer: "03_toxicity",
    card_of_text: "04_quality",
    card_of_capability: "04_quality",
    card_of_the_vectors: "06_value_vectors",
    card_of_pushing: "07_intervention",
    card_of_the_neurons_in_tuning: "08_activations",
    card_of_the_share: "08_activations",
    card_of_retrieval: "09_retrieval",
}


@pytest.mark.parametrize("card", ALL_CARDS, ids=[c.__name__ for c in ALL_CARDS])
def test_the_cards(card):
    pages = [text_of("results", "cards(verdicts.values(), whole=True)")]
    pages.append(text_of(PAGE_OF[card], "Markdown(cards(["))
    if card in FIRST_CARDS:
        pages.append(text_of("index", "cards(claims[key] for key in"))
    for said, words in itertools.product(pages, card()):
        assert words in said, words


def test_the_first_cards_stand_in_the_readme(readme):
    plain = " ".join(readme.split())
    for words in itertools.chain(*(card() for card in FIRST_CARDS)):
        words = re.sub(r"(\w+)\]\{\.verdict [.\w]+\}", r"**\1**", words)
        assert words in plain, words


# ---- a run's report, and the summaries that are kept


def small_run(folder, tunings=(0, 1)):
    "The world family of the committed tables with some of its tunings, as a run's folder."
    (folder / "tables").mkdir(parents=True)
    for name in ("toxicity", "mass", "drops", "quality"):
        t = pd.read_csv(ROOT / f"results/world/{name}.csv", keep_default_na=False, na_values=[""])
        t[t.model.str.startswith("world-0") & (t.tuning.eq("base") | t.seed.isin(tunings))].to_csv(
            folder / "tables" / f"{name}.csv", index=False
        )
    return folder


def people(x):
    if math.isnan(x):
        return "\u2013"
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:#.2g}" if 0 < abs(x) < 0.1 else f"{x:.2f}"


COLUMNS = "Toxicity probability|Toxic mass|Toxic mass removed|p (Holm)|Language kept|Perplexity"
CELLS = (
    (0, "toxicity", "toxicity_probability"),
    (1, "mass", "toxic_mass"),
    (4, "quality", "language_kept"),
    (5, "quality", "perplexity"),
)
NAMES = {"en": "English", "de": "German", "zh": "Chinese", "hi": "Hindi"}


class Report:
    "A run's report beside the raw tables that it was made from."

    def __init__(self, page, tables):
        self.page = page
        self.tables = {p.stem: pd.read_csv(p) for p in tables.glob("*.csv")}
        self.rows = {r[0]: r[1:] for r in Table(page).rows if len(r) == 7}
        drops = self.tables["drops"].query("metric == 'toxic_mass_drop'").set_index("language")
        self.fall = drops.value
        self.p = pd.Series(holm(drops.p.to_numpy()), index=drops.index)

    def get(self, table, metric, tuned, language, column="value"):
        t = self.tables[table]
        t = t[(t.metric == metric) & (t.language == language) & ((t.tuning != "base") == tuned)]
        return t[column].iloc[0]


@pytest.fixture
def report(tmp_path, run):
    folder = small_run(tmp_path / "r", tunings=(0,))
    run("report", folder, "--output", tmp_path / "page.html")
    return Report((tmp_path / "page.html").read_text("utf-8"), folder / "tables")


def test_a_runs_report(report):
    assert report.rows["Language"] == COLUMNS.split("|")
    for code, name in NAMES.items():
        for cell, table, metric in CELLS:
            get = lambda tuned, column="value": report.get(table, metric, tuned, code, column)
            values = f"{people(get(False))} \u2192 {people(get(True))}"
            ends = f"[{people(get(False, 'low'))}, {people(get(False, 'high'))}]"
            printed = report.rows[name][cell]
            assert printed.startswith(values) and ends in printed, (name, metric)
    assert report.get("toxicity", "toxicity_probability", True, "en") == 0
    exact = f"\u2192 [0.00, {people(stats.beta.ppf(0.975, 1, 64))}]"
    assert report.rows["English"][0].endswith(exact), "0 of 64 has its exact interval"


def test_the_drops_of_a_runs_report(report):
    for code, name in NAMES.items():
        ends = [
            100 * report.get("drops", "toxic_mass_relative_drop", True, code, column)
            for column in ("value", "low", "high")
        ]
        assert report.rows[name][2] == "{:.0f}% [{:.0f}%, {:.0f}%]".format(*ends)
        assert report.rows[name][3] == people(report.p[code])


def test_the_sentence_of_a_runs_report(report):
    said = html.unescape(re.sub(r"<[^>]+>", " ", report.page))
    t = report.tables["toxicity"].query("metric == 'toxicity_probability'")
    before, after = (
        people(t[(t.tuning != "base") == tuned].value.mean()) for tuned in (False, True)
    )
    assert f"goes from {before} to {after} on average over 17 languages." in said
    drops = report.tables["drops"].query("metric == 'toxic_mass_relative_drop'")
    drops = drops.set_index("language").value
    assert drops.idxmax() == "en"
    assert f"most is removed in English ({100 * drops.max():.0f}%)" in said
    assert f"({100 * drops.min():.0f}%)." in said
    falls = ((report.p < 0.05) & (report.fall > 0)).sum()
    assert f"falls beyond chance (p < .05) in {falls} of 17 languages" in said


def test_this_file_is_independent_of_the_report():
    assert not re.search(r"^\s*(from|import) xgdetox", Path(__file__).read_text("utf-8"), re.M)


SUMMARISED = {  # column of a summary -> table, metric
    "probability": ("toxicity", "toxicity_probability"),
    "emt": ("toxicity", "emt"),
    "mass": ("mass", "toxic_mass"),
    "language_kept": ("quality", "language_kept"),
    "perplexity": ("quality", "perplexity"),
}


@pytest.mark.parametrize(
    "run_name", [p.parent.name for p in sorted((ROOT / "results").glob("*/summary.csv"))]
)
def test_the_kept_summaries(run_name):
    "Every mean of results/*/summary.csv from the tables beside it."
    summary = pd.read_csv(ROOT / f"results/{run_name}/summary.csv")
    for (f, arm), t in summary.groupby(["model", "tuning"]):
        t = t.set_index("language")
        only = lambda table, metric: by_language(
            (found := rows(run_name, table, f, metric, True))[found.tuning == arm]
        )
        for key, (table, metric) in SUMMARISED.items():
            for side, tuned in (("before", False), ("after", True)):
                expected = only(table, metric) if tuned else of(run_name, table, f, metric, tuned)
                assert t[f"{key}_{side}"].dropna().to_dict() == pytest.approx(
                    expected.to_dict(), rel=2e-5, abs=1e-9
                ), (f, key, side)
        # a run without toxic mass is summed up by EMT
        expected = only("drops", "toxic_mass_relative_drop")
        expected = expected if len(expected) else only("drops", "emt_relative_drop")
        assert t["drop"].dropna().to_dict() == pytest.approx(expected.to_dict(), rel=2e-5)


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for p in (ROOT / "results").glob("*/*.csv")
        if p.stem in ("quality", "intervention", "toxicity", "drops", "mass")
    ),
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_the_column_scorer_names_what_judged_toxicity_and_nothing_else(path):
    t = pd.read_csv(path)
    toxic = t.metric.str.contains("toxic|emt") | t.metric.isin(["missing", "blank"])
    assert (
        t[~toxic].scorer.isna().all()
        and t.scorer.dropna().astype(str).str.match(r"\w+(:[^@]*)?@\w+").all()
    )
    if "perplexity" in set(t.metric):
        assert t[t.metric == "perplexity"].measured_by.notna().all()
