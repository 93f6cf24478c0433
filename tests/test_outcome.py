"The primary outcome, the split as files, fluency: against counts made by hand, and what is refused."

import json
import math

import numpy as np
import pandas as pd
import pytest

from xgdetox.files import InputError, read_csv
from xgdetox.data import load_prompts
from xgdetox.outcome import compare_arms, first_tokens, outcome_table, read_values
from xgdetox.fluency import fluency_changes, fluency_table
from xgdetox.splits import aligned_rows, write_split
from xgdetox.stats import holm, read_table
from xgdetox.scorers.base import Scored, Scorer
from xgdetox.scoring import score_generations

GERMAN, ENGLISH, SHORT = (
    "Das ist ein ganz gewöhnlicher deutscher Satz",
    "This is a perfectly ordinary English sentence",
    "ah",
)


class Marked(Scorer):
    "A judge of made-up texts: toxic where there is an exclamation mark, no score where there is a question mark."

    id, revision, languages = "marked", "1", ("de", "en")

    def stream(self, texts, language):
        yield [
            Scored(t, math.nan, "no answer") if "?" in t else Scored(t, float("!" in t))
            for t in texts
        ]


class Letters:
    "A tokenizer of single letters."

    is_fast = True

    def __call__(self, texts, **_):
        return {"offset_mapping": [[(i, i + 1) for i in range(len(t))] for t in texts]}


PROMPTS = {  # prompt: its continuations
    "kept": [GERMAN + "!", ENGLISH],
    "switched": [ENGLISH + "!", GERMAN],
    "short": [SHORT + "!", GERMAN],
    "mild": [GERMAN, GERMAN],
    "late": [GERMAN + " und so weiter!", ""],
    "unscored": [GERMAN + "?", GERMAN + "??"],
    "half": [GERMAN + "?", GERMAN],
}
EXPECTED = {  # outcome, with untold texts as German, toxic in whatever language
    "kept": (1, 1, 1),
    "switched": (0, 0, 1),
    "short": (0, 1, 1),
    "mild": (0, 0, 0),
    "late": (1, 1, 1),
    "unscored": (math.nan,) * 3,
    "half": (0, 0, 0),
}


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "generations"
    folder.mkdir()
    rows = [
        dict(
            prompt_id=p,
            sample=i,
            prompt=p,
            generated_text=t,
            tokens=len(t),
            finish_reason="stop" if i else "length",
        )
        for p, ts in PROMPTS.items()
        for i, t in enumerate(ts)
    ]
    (folder / "output-rtp_lx_de.json").write_text(
        "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
    )
    score_generations({"de": folder / "output-rtp_lx_de.json"}, Marked(), tmp_path / "scores")
    return folder, tmp_path / "scores"


def test_outcome_counts_what_is_toxic_and_in_its_language(texts, tmp_path):
    how = dict(tokenizer=Letters(), first=len(GERMAN) + 1, scorer=Marked(), model="m")
    table = outcome_table(*texts, output=tmp_path / "o.csv", **how).set_index("metric")
    values = read_values(tmp_path / "o.csv").loc["de"]
    for prompt, wanted in EXPECTED.items():
        got = values.loc[prompt, ["outcome", "outcome_untold", "toxic"]].tolist()
        assert np.array_equal(got, wanted, equal_nan=True), (prompt, got)
    assert table.n["outcome"] == 6 and (table.scorer == "marked@1").all()
    shares = {
        "outcome": 2 / 6,
        "outcome_untold": 3 / 6,
        "toxic": 4 / 6,
        "first_outcome": 1 / 6,  # what is toxic only later is no longer
        "language_other": (0.5 + 0.5 + 0 * 5) / 7,
        "missing": (1 + 0.5) / 7,
        "blank": 0.5 / 7,
        "ended": 0.5,
    }
    assert table.value[list(shares)].to_dict() == pytest.approx(shares)
    bounds = [table[f"bound_{end}"]["outcome"] for end in ("low", "high")]
    assert bounds == pytest.approx([2 / 7, 4 / 7])


def test_scores_of_other_texts_and_of_another_judge_are_refused(texts):
    generations, scores = texts
    other = Marked()
    other.revision = "2"
    with pytest.raises(InputError, match="was scored by marked@1, not by marked@2"):
        outcome_table(generations, scores, tokenizer=Letters(), scorer=other)
    with pytest.raises(InputError, match="name the scorer"):
        outcome_table(generations, scores, tokenizer=Letters())
    file = scores / "scores-rtp_lx_de.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="does not score these continuations"):
        outcome_table(generations, scores, first=None)


def test_first_tokens_end_with_a_token():
    assert (
        first_tokens(Letters(), ["abc", "a", "", "äöü"], 2) == ["ab", "a", "", "äö"]
        and first_tokens(Letters(), [], 2) == []
    )


def drawn(rate, seed, n=400, auc=None):
    "Made-up values of single prompts."
    auc, draw = auc or {"en": 0.9, "de": 0.9, "fr": 0.8, "id": 0.6}, np.random.default_rng(seed)
    rows = [
        dict(
            language=c,
            prompt_id=str(i),
            outcome=float(draw.random() < rate.get(c, rate["*"])),
            auc_low=low,
        )
        for c, low in auc.items()
        for i in range(n)
    ]
    return pd.DataFrame(rows).set_index(["language", "prompt_id"])


@pytest.fixture
def arms():
    "A base, an arm of three seeds and a placebo of two; the base's rate is low in French."
    base = drawn({"*": 0.5, "fr": 0.05}, 0)
    return base, [drawn({"*": 0.2}, s) for s in (1, 2, 3)], [drawn({"*": 0.5}, s) for s in (4, 5)]


def test_arms_are_compared_by_prompt(arms):
    base, arm, placebo = arms
    value = compare_arms(*arms, model="m").set_index(["metric", "language"]).value
    for language in ("en", "de"):
        mean = lambda tables: np.mean([t.outcome[language].mean() for t in tables])
        b, a, p = mean([base]), mean(arm), mean(placebo)
        assert value["outcome_drop", language] == pytest.approx(b - a)
        assert value["outcome_relative_drop", language] == pytest.approx(1 - a / b)
        assert value["outcome_beyond_placebo", language] == pytest.approx(p - a)


def test_holm_corrects_over_what_can_be_tested_and_nothing_else_is_pooled(arms):
    table = compare_arms(*arms, model="m")
    by = table.set_index(["metric", "language"])
    assert by.not_tested["outcome_drop"].to_dict() == {
        "en": "",
        "de": "",
        "fr": "base rate too low",
        "id": "judge not good enough",
        "pooled": "",
    }
    family = table[(table.metric == "outcome_drop") & table.language.isin(["en", "de"])]
    assert family.p_holm.tolist() == pytest.approx(holm(family.p.tolist()).tolist())
    assert table[table.language.isin(["fr", "id"])].p_holm.isna().all()
    pooled = by.xs("pooled", level="language")  # German alone: English is not pooled
    assert pooled.languages.eq(1).all() and pooled.seeds.eq(3).all()
    for metric in ("outcome_drop", "outcome_beyond_placebo"):
        assert pooled.value[metric] == pytest.approx(by.value[metric, "de"])
    assert pooled.low["outcome_drop"] < pooled.value["outcome_drop"] < pooled.high["outcome_drop"]


def test_a_scorer_without_an_auc_is_described_and_not_tested(arms):
    base, arm, _ = arms
    table = compare_arms(base.assign(auc_low=math.nan), arm, model="m")
    assert set(table.not_tested) == {"the judge states no AUC"} and table.p.notna().any()
    assert "pooled" not in set(table.language) and "p_holm" not in table.dropna(axis=1, how="all")


def test_a_keyword_that_is_no_label_is_refused(arms, texts):
    base, arm, _ = arms
    with pytest.raises(TypeError, match="unknown keyword modle"):
        compare_arms(base, arm, modle="m")
    with pytest.raises(TypeError, match="unknown keyword resamples"):
        outcome_table(*texts, first=None, resamples=10)


def test_the_pooled_interval_covers_the_truth():
    "In 95 of 100 samples or so; seeds alike, so that prompts alone matter."
    auc = {"de": 0.9, "fr": 0.9}
    hits = 0
    for s in range(60):
        table = compare_arms(
            drawn({"*": 0.5}, 3 * s, 80, auc), [drawn({"*": 0.3}, 3 * s + 1, 80, auc)]
        )
        row = table[(table.language == "pooled") & (table.metric == "outcome_drop")].iloc[0]
        hits += row.low <= 0.2 <= row.high
    assert 51 <= hits <= 60


def test_a_prompt_without_a_value_is_in_no_pair():
    base, arm = drawn({"*": 0.5}, 0, 50), drawn({"*": 0.5}, 1, 50)
    arm.loc[("de", "3"), "outcome"] = math.nan
    table = compare_arms(base, [arm, drawn({"*": 0.5}, 2, 50)]).set_index(["metric", "language"])
    assert table.n["outcome_drop", "de"] == 49 and table.n["outcome_drop", "en"] == 50
    assert compare_arms(drawn({"*": 0.01}, 0), [drawn({"*": 0.01}, 1)]).language.ne("pooled").all()


def test_the_split_gives_the_same_rows_in_every_language(real_data, tmp_path):
    counts = write_split(real_data / "prompts", tmp_path, ["ar", "zh"])
    assert counts == {"evaluation": 500, "fitting": 300}
    files = {
        c: load_prompts(tmp_path / "prompts" / f"RTP_LX_{n}.json").rows
        for c, n in (("en", "EN"), ("ar", "AR"), ("zh", "ZH-Hans"))
    }
    assert files["en"]["prompt_id"] == files["ar"]["prompt_id"] == files["zh"]["prompt_id"]
    rows = aligned_rows(real_data / "prompts" / "rtp_source_map.tsv.gz", "evaluation")
    own = dict(
        zip(
            *[
                load_prompts(real_data / "prompts" / "RTP_LX_AR.json").rows[k]
                for k in ("prompt_id", "prompt")
            ]
        )
    )
    assert files["ar"]["prompt"] == [own[r["ar"]] for r in rows]
    assert [
        len((tmp_path / f"parallel/{c}.txt").read_text(encoding="utf-8").splitlines())
        for c in ("en", "ar", "zh")
    ] == [300] * 3
    assert not set(files["en"]["prompt"]) & set(
        (tmp_path / "parallel/en.txt").read_text(encoding="utf-8").splitlines()
    )


def test_a_folder_without_a_source_map_is_not_split(tmp_path):
    with pytest.raises(InputError, match="no RTP-LX source map"):
        write_split(tmp_path, tmp_path / "out", ["de"])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def runs(said):
    "Run a command that must succeed."

    def runs(*words):
        code, out, err = said(*words)
        assert code == 0, err
        return out

    return runs


def test_outcome_is_a_command(said, runs, tmp_path):
    notes = {}
    for name, before in (("world", []), ("world-tuned", ["--before", tmp_path / "world/o.csv"])):
        out, folder = tmp_path / name, tmp_path / "g" / name
        some = ["-l", "en", "-l", "de", "--limit", "6", "--n", "2"]
        runs("generate", "--model", name, *some, "-o", tmp_path / "g")
        folder = next(
            p.parent for p in (tmp_path / "g").rglob("*_de.json") if p.parent.name == name
        )
        scored = ["--generations", folder, "--scorer", "lexicon:world"]
        runs("score", *scored, "-o", out / "scores")
        words = [*scored, "--scores", out / "scores", "--model", name, "-o", out / "o.csv"]
        notes[name] = runs("outcome", *words, *before)
    table = read_table(tmp_path / "world-tuned/o.csv")
    assert {"outcome", "first_outcome", "outcome_drop", "first_outcome_drop"} <= set(table.metric)
    said_so = "this scorer states no AUC, so the drops are described and not tested"
    assert said_so in notes["world-tuned"] and said_so not in notes["world"]


def test_the_first_tokens_need_the_model(said, texts):
    generations, scores = texts
    code, _, err = said("outcome", "--generations", generations, "--scores", scores)
    assert code == 2 and "--model" in err and len(err.strip().splitlines()) == 1


def test_fluency_is_a_command(said, runs, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/de.txt").write_text("der Hund schläft\nwir sehen das Haus\n", encoding="utf-8")
    for name, more in (("world", []), ("world-tuned", ["--before", tmp_path / "world.csv"])):
        words = ["--model", name, "--sentences", tmp_path / "s", "-o", tmp_path / f"{name}.csv"]
        runs("fluency", *words, *more)
    names = ("world", "world-tuned")
    before, after = (read_csv(tmp_path / f"{n}.values.csv").value.to_numpy() for n in names)
    found = read_table(tmp_path / "world-tuned.csv").set_index("metric").value
    assert found["sentence_loss_change"] == pytest.approx((after - before).mean())
    assert found["sentence_loss"] == pytest.approx(after.mean())
    words = ["--model", "world", "--sentences", tmp_path / "s", "-l", "fr"]
    code, _, err = said("fluency", *words, "-o", tmp_path / "x.csv")
    assert code == 2 and "no sentences in French" in err and not (tmp_path / "x.csv").exists()


def test_changes_of_fluency_are_of_the_same_sentences(tmp_path):
    from xgdetox.world import resolve_model

    (tmp_path / "s").mkdir()
    for name, text in (
        ("one", "der Hund schläft"),
        ("two", "der Hund schläft\nwir sehen das Haus"),
    ):
        (tmp_path / "s/de.txt").write_text(text + "\n", encoding="utf-8")
        output = tmp_path / f"{name}.csv"
        fluency_table(resolve_model("world"), tmp_path / "s", ["de"], output=output)
    with pytest.raises(InputError, match="not of the same sentences"):
        fluency_changes(tmp_path / "one.csv", tmp_path / "two.csv")


def test_sentence_loss_is_the_mean_over_tokens_of_the_whole_text(tmp_path):
    "Against the model's own loss on one sentence."
    import torch
    from xgdetox.models import load_model
    from xgdetox.tokens import load_tokenizer
    from xgdetox.world import resolve_model

    (tmp_path / "en.txt").write_text("we see the dog in the house\n")
    path = resolve_model("world")
    model, tokenizer = load_model(path), load_tokenizer(path)
    ids = torch.tensor([tokenizer("we see the dog in the house")["input_ids"]])
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).loss.item()
    assert fluency_table(path, tmp_path, ["en"]).value[0] == pytest.approx(wanted, rel=1e-4)
