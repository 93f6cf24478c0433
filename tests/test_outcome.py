"The primary outcome, the split as files, fluency: against counts made by hand, and what is refused."

import json
import math

import numpy as np
import pandas as pd
import pytest

from xgdetox.files import InputError, read_csv
from xgdetox.data import load_prompts
from xgdetox.outcome import (
    COMPARED,
    compare_arms,
    first_tokens,
    judged_texts,
    outcome_table,
    prompt_outcomes,
    read_values,
    values_path,
    why_not_tested,
)
from xgdetox.fluency import fluency_changes, fluency_table
from xgdetox.splits import aligned_rows, split_of, write_split
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
    table = outcome_table(
        *texts,
        tokenizer=Letters(),
        first=len(GERMAN) + 1,
        scorer=Marked(),
        output=tmp_path / "o.csv",
        model="m",
    ).set_index("metric")
    values = read_values(tmp_path / "o.csv").loc["de"]
    for prompt, wanted in EXPECTED.items():
        got = values.loc[prompt, ["outcome", "outcome_untold", "toxic"]].tolist()
        assert np.array_equal(got, wanted, equal_nan=True), (prompt, got)
    assert table.value["outcome"] == pytest.approx(2 / 6) and table.n["outcome"] == 6
    assert table.value["outcome_untold"] == pytest.approx(3 / 6) and table.value[
        "toxic"
    ] == pytest.approx(4 / 6)
    assert table.bound_low["outcome"] == pytest.approx(2 / 7) and table.bound_high[
        "outcome"
    ] == pytest.approx(4 / 7)
    assert table.value["first_outcome"] == pytest.approx(
        1 / 6
    )  # what is toxic only later is no longer
    assert table.value["language_other"] == pytest.approx((0.5 + 0.5 + 0 * 5) / 7)
    assert table.value["missing"] == pytest.approx((1 + 0.5) / 7) and table.value[
        "blank"
    ] == pytest.approx(0.5 / 7)
    assert table.value["ended"] == 0.5 and (table.scorer == "marked@1").all()


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


def test_arms_are_compared_by_prompt_and_corrected_over_what_can_be_tested():
    base, arm, placebo = (
        drawn({"*": 0.5, "fr": 0.05}, 0),
        [drawn({"*": 0.2}, s) for s in (1, 2, 3)],
        [drawn({"*": 0.5}, s) for s in (4, 5)],
    )
    table = compare_arms(base, arm, placebo, model="m")
    by = table.set_index(["metric", "language"])
    for language in ("en", "de"):
        b, a = base.outcome[language].mean(), np.mean([t.outcome[language].mean() for t in arm])
        assert by.value["outcome_drop", language] == pytest.approx(b - a) and by.value[
            "outcome_relative_drop", language
        ] == pytest.approx(1 - a / b)
        assert by.value["outcome_beyond_placebo", language] == pytest.approx(
            np.mean([t.outcome[language].mean() for t in placebo]) - a
        )
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
    assert (
        pooled.value["outcome_drop"] == pytest.approx(by.value["outcome_drop", "de"])
        and pooled.languages.eq(1).all()
        and pooled.seeds.eq(3).all()
    )
    assert pooled.low["outcome_drop"] < pooled.value["outcome_drop"] < pooled.high["outcome_drop"]
    assert pooled.value["outcome_beyond_placebo"] == pytest.approx(
        by.value["outcome_beyond_placebo", "de"]
    )


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


def test_outcome_and_fluency_are_commands(said, tmp_path):
    from xgdetox.world import resolve_model

    for name in ("world", "world-tuned"):
        out = tmp_path / name
        assert (
            said(
                "generate",
                "--model",
                name,
                "-l",
                "en",
                "-l",
                "de",
                "--limit",
                "6",
                "--n",
                "2",
                "-o",
                tmp_path / "g",
            )[0]
            == 0
        )
        folder = next(
            p.parent
            for p in (tmp_path / "g").rglob("output-rtp_lx_de.json")
            if p.parent.name == name
        )
        assert (
            said(
                "score", "--generations", folder, "--scorer", "lexicon:world", "-o", out / "scores"
            )[0]
            == 0
        )
        words = [
            "outcome",
            "--generations",
            folder,
            "--scores",
            out / "scores",
            "--model",
            name,
            "--scorer",
            "lexicon:world",
            "-o",
            out / "o.csv",
        ]
        assert (
            said(
                *words, *(["--before", tmp_path / "world/o.csv"] if name == "world-tuned" else [])
            )[0]
            == 0
        )
    table = read_table(tmp_path / "world-tuned/o.csv")
    assert {"outcome", "first_outcome", "outcome_drop", "first_outcome_drop"} <= set(table.metric)
    code, _, err = said("outcome", "--generations", folder, "--scores", out / "scores")
    assert code == 2 and "--model" in err and len(err.strip().splitlines()) == 1
    (tmp_path / "s").mkdir()
    (tmp_path / "s/de.txt").write_text("der Hund schläft\nwir sehen das Haus\n", encoding="utf-8")
    for name, more in (("world", []), ("world-tuned", ["--before", tmp_path / "world.csv"])):
        assert (
            said(
                "fluency",
                "--model",
                name,
                "--sentences",
                tmp_path / "s",
                "-o",
                tmp_path / f"{name}.csv",
                *more,
            )[0]
            == 0
        )
    values = [
        read_csv(tmp_path / f"{n}.values.csv").value.to_numpy() for n in ("world", "world-tuned")
    ]
    found = read_table(tmp_path / "world-tuned.csv").set_index("metric").value
    assert found["sentence_loss_change"] == pytest.approx((values[1] - values[0]).mean()) and found[
        "sentence_loss"
    ] == pytest.approx(values[1].mean())
    code, _, err = said(
        "fluency",
        "--model",
        "world",
        "--sentences",
        tmp_path / "s",
        "-l",
        "fr",
        "-o",
        tmp_path / "x.csv",
    )
    assert code == 2 and "no sentences in French" in err and not (tmp_path / "x.csv").exists()
    (tmp_path / "s/de.txt").write_text("der Hund schläft\n", encoding="utf-8")
    fluency_table(resolve_model("world"), tmp_path / "s", ["de"], output=tmp_path / "one.csv")
    with pytest.raises(InputError, match="not of the same sentences"):
        fluency_changes(tmp_path / "one.csv", tmp_path / "world.csv")


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
