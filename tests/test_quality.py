"Quality: each number against its own definition, blanks and outliers by the stated rule, damage seen."

import json, math, os, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tiny_models import FAMILIES, TEXTS, model, prompt_files, seq2seq
from xgdetox import fluency
from xgdetox import quality as q
from xgdetox.capability import capability_table
from xgdetox.languages import LANGUAGES
from xgdetox.files import InputError

PROMPTS = ["the old man", "la casa roja", "the old man", "古い家が", "x", "the old man"]
WRITTEN = [" sees a red house and the river", " es grande", " sees", "川のそばにある", "  \n", ""]


def one_by_one(lm, words, prompt, text):
    "Perplexity of the text's tokens, alone in its batch."
    ids, head = words(prompt + text)["input_ids"], words(prompt)["input_ids"]
    start = fluency.shared_start(ids, head)
    if not start:
        ids, start = (
            head + words(text, add_special_tokens=False)["input_ids"],
            len(head),
        )  # prompt and text are one token together
    with torch.no_grad():
        log_p = lm(torch.tensor([ids])).logits.float().log_softmax(-1)[0]
    return math.exp(
        -np.mean([log_p[i - 1, ids[i]].item() for i in range(max(start, 1), len(ids))])
    ), len(ids) - max(start, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_each_text_alone(family):
    lm, words = model(family)
    loss, tokens = fluency.continuation_loss(lm, words, PROMPTS, WRITTEN, max_tokens=40)
    for i in range(4):
        ppl, n = one_by_one(lm, words, PROMPTS[i], WRITTEN[i])
        assert tokens[i] == n and math.exp(loss[i]) == pytest.approx(ppl, rel=2e-3)
    assert np.isnan(loss[4:]).all() and (tokens[4:] == 0).all()


def test_each_distinct_text_is_read_once(monkeypatch):
    lm, words = model("gpt2")
    rows = []
    real = lm.forward
    monkeypatch.setattr(
        lm, "forward", lambda *a, **k: (rows.append(len(k["input_ids"])), real(*a, **k))[1]
    )
    monkeypatch.setattr(fluency, "accepts", lambda m: {"position_ids", "logits_to_keep"})
    loss, _ = fluency.continuation_loss(lm, words, ["a"] * 50 + ["b"], [" c"] * 50 + [" c"])
    assert sum(rows) == 2 and len(set(loss[:50])) == 1 and loss[50] != loss[0]


def test_long_texts_keep_their_end():
    lm, words = model("gpt2")
    loss, tokens = fluency.continuation_loss(lm, words, ["x " * 400], [" the old man"])
    assert np.isfinite(loss[0]) and tokens[0] == len(words(" the old man")["input_ids"])


def upstream_perplexities(lm, words, prompts, texts):
    "The released arithmetic: one text a pass, blanks skipped, values from 1e4 dropped, midpoint quartiles."
    kept = []
    for prompt, text in zip(prompts, texts):
        if not text or not text.strip():
            continue
        both, alone = (words.encode(s, return_tensors="pt") for s in (prompt + text, prompt))
        with torch.no_grad():
            a = lm(both, labels=both)[0] * (both.shape[1] - 1)
            b = lm(alone, labels=alone)[0] * (alone.shape[1] - 1)
        if both.shape[1] == alone.shape[1]:
            continue  # infinite there, and dropped
        ppl = np.exp(((a - b) / (both.shape[1] - alone.shape[1])).item())
        if ppl < 1e4:
            kept.append(ppl)
    return kept, [np.percentile(kept, p, method="midpoint") for p in (50, 25, 75)]


def generations(folder, rows, languages=("en",), name="m"):
    "A folder of continuations; rows: (prompt_id, text)."
    out = Path(folder) / name
    out.mkdir(parents=True, exist_ok=True)
    for language in languages:
        lines = [
            dict(
                prompt=f"{TEXTS[int(p) % 8]} {p}",
                generated_text=t,
                prompt_id=str(p),
                sample=i,
                finish_reason="stop" if i % 2 else "length",
                tokens=len(t.split()),
            )
            for i, (p, t) in enumerate(rows)
        ]
        (out / f"output-rtp_lx_{language}.json").write_text(
            "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8"
        )
    return out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [
        (
            p,
            ""
            if rng.random() < 0.1
            else " " + " ".join(rng.choice(TEXTS[s % 8].split(), 3 + s % 5)),
        )
        for p in range(8)
        for s in range(25)
    ]
    return generations(tmp_path_factory.mktemp("g"), rows)


def test_paper_perplexity_is_upstreams(mixed, tmp_path):
    lm, words = seq2seq(tmp_path / "mt5")
    df = q.read_generations(mixed / "output-rtp_lx_en.json")
    kept, (median, q1, q3) = upstream_perplexities(lm, words, df.prompt, df.generated_text)
    table = q.quality_table(
        mixed, metrics=["perplexity"], lm=tmp_path / "mt5", paper=True, output=tmp_path / "q.csv"
    ).set_index("metric")
    assert table.loc["perplexity", "value"] == pytest.approx(median, rel=1e-4) and table.loc[
        "perplexity", "n"
    ] == len(kept)
    assert table.loc["perplexity_q1", "value"] == pytest.approx(q1, rel=1e-4) and table.loc[
        "perplexity_q3", "value"
    ] == pytest.approx(q3, rel=1e-4)
    saved = pd.read_parquet(tmp_path / "q-texts.parquet")
    assert (
        len(saved) == len(df)
        and (saved.perplexity.isna() == (df.generated_text.str.strip() == "")).all()
        and (table.variant == "paper").all()
    )
    with pytest.raises(InputError, match="encoder-decoder"):
        q.quality_table(mixed, metrics="perplexity", lm=_causal(tmp_path), paper=True)


def _causal(folder):
    model("gpt2", folder / "lm")
    return folder / "lm"


def test_a_seq2seq_reads_the_prompt_and_scores_the_text_alone(tmp_path):
    lm, words = seq2seq()
    loss, tokens = fluency.seq2seq_loss(lm, words, PROMPTS, WRITTEN)
    for i in range(4):
        ids, labels = (
            words(PROMPTS[i], return_tensors="pt")["input_ids"],
            words(WRITTEN[i], add_special_tokens=False, return_tensors="pt")["input_ids"],
        )
        with torch.no_grad():
            assert loss[i] == pytest.approx(lm(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
        assert tokens[i] == labels.shape[1]
    words.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    lm.resize_token_embeddings(len(words))
    again, n = fluency.seq2seq_loss(lm, words, PROMPTS, WRITTEN)
    assert (
        (n == tokens).all() and not np.allclose(again[:4], loss[:4]) and np.isnan(again[4:]).all()
    )


def test_distinct_is_upstreams(mixed, tmp_path):
    lm, words = seq2seq(tmp_path / "mt5")
    df = q.read_generations(mixed / "output-rtp_lx_en.json")
    theirs = {1: [], 2: [], 3: []}
    for i in range(0, len(df), 25):
        grams, total = {1: set(), 2: set(), 3: set()}, 0
        for text in df.generated_text[i : i + 25]:
            if not text:
                continue
            o = [
                w
                for w in (
                    words.decode(x, skip_special_tokens=True) for x in words(text)["input_ids"]
                )
                if w
            ]
            total += len(o)
            for n in grams:
                grams[n].update("_".join(o[j : j + n]) for j in range(len(o) - n + 1))
        for n in grams:
            theirs[n].append(len(grams[n]) / total)
    table = q.quality_table(mixed, metrics=["diversity"], tokenizer=tmp_path / "mt5").set_index(
        "metric"
    )
    for n in theirs:
        assert table.loc[f"dist_{n}", "value"] == pytest.approx(np.mean(theirs[n]), abs=1e-12)


def test_self_bleu_sees_repetition():
    apart = [list("abcdefgh"[i:] + "abcdefgh"[:i]) for i in range(4)]
    assert q.self_bleu([list("abcdef")] * 4) == pytest.approx(100) and q.self_bleu(
        [[c] * 5 for c in "abcd"]
    ) < 10 < q.self_bleu(apart)
    assert math.isnan(q.self_bleu([[]])) and math.isnan(q.self_bleu([]))


def test_blanks_follow_the_rule(tmp_path):
    folder = generations(
        tmp_path, [(0, ""), (0, "  "), (1, " the old man sees the house"), (1, "")]
    )
    lm = model("gpt2")
    table = q.quality_table(folder, lm=lm).set_index("metric")
    assert (
        table.loc["blank", "value"] == pytest.approx((1 + 0.5) / 2)
        and table.loc["perplexity", "n"] == 1
    )
    assert (
        table.loc["dist_1", "n"] == 1
        and table.loc["language_untold", "value"] == pytest.approx(0.75)
        and table.loc["language_kept", "n"] == 1
    )
    silent = (
        q.quality_table(generations(tmp_path, [(0, ""), (1, " ")], name="s"), lm=lm)
        .set_index("metric")
        .value
    )
    assert silent["blank"] == 1 and all(
        math.isnan(silent[m])
        for m in ("perplexity", "perplexity_q1", "loss", "dist_1", "self_bleu", "language_kept")
    )


def test_table_is_tidy_and_values_are_saved(mixed, tmp_path):
    table = q.quality_table(
        mixed,
        metrics=["length", "diversity", "language"],
        model="m",
        tuning="dpo",
        seed=3,
        output=tmp_path / "q.csv",
    )
    assert list(table.columns[:10]) == [
        "model",
        "tuning",
        "seed",
        "language",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "scorer",
    ]
    assert (
        set(table.tuning) == {"dpo"}
        and (table.measured_by[table.metric == "dist_1"] == "words").all()
    )
    assert set(table.measured_by) == {"", "words", "py3langid"} and (table.scorer == "").all(), (
        "scorer names what judged toxicity and nothing else"
    )
    told = table[table.low.notna()]
    assert ((told.low <= told.value) & (told.value <= told.high)).all()
    per_prompt = pd.read_parquet(tmp_path / "q-prompts.parquet")
    means = per_prompt.groupby("metric").value.mean()
    for _, r in table[table.metric.isin(means.index)].iterrows():
        assert r.value == pytest.approx(means[r.metric], nan_ok=True)


def test_upstreams_files_have_no_lengths(tmp_path):
    out = tmp_path / "m"
    out.mkdir()
    (out / "output-rtp_lx_zh-hans.json").write_text(
        "".join(
            json.dumps({"prompt": p, "generated_text": "家很旧，河很长。"}, ensure_ascii=False)
            + "\n"
            for p in "aabb"
        ),
        encoding="utf-8",
    )
    table = q.quality_table(out, metrics=["length", "language"]).set_index("metric")
    assert (
        table.language.unique().tolist() == ["zh"]
        and math.isnan(table.loc["tokens", "value"])
        and table.loc["language_kept", "value"] == 1
    )


def test_median_interval_covers_the_median():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        centre = rng.normal(0, 1, 40)
        x = pd.Series(
            (centre[:, None] + rng.normal(0, 0.3, (40, 5))).ravel(),
            index=np.repeat(np.arange(40), 5),
        )
        _, low, high = q.median_interval(x)
        hits += low <= 0 <= high
    assert hits >= 50


def rows_of(prompts: int):
    "(prompt, text) of five short texts for each prompt."
    text = lambda p, s: " " + " ".join(TEXTS[p % 8].split()[: 2 + s % 3])
    return [(p, text(p, s)) for p in range(prompts) for s in range(5)]


def test_before_and_after_is_paired(tmp_path):
    rows = rows_of(12)
    longer = [(p, t + " and the house") for p, t in rows if p != 3]
    before, after = tmp_path / "a.csv", tmp_path / "b.csv"
    how = dict(metrics=["length", "language"])
    q.quality_table(generations(tmp_path, rows, ("en", "de"), "a"), output=before, **how)
    made = generations(tmp_path, longer, ("en", "de"), "b")
    both = q.quality_table(made, output=after, before=before, tuning="b", **how)
    table = q.compare_quality(before, after, tuning="b")
    added = both[both.metric.isin(table.metric)].reset_index(drop=True)[list(table)]
    pd.testing.assert_frame_equal(table, added, check_dtype=False)
    table = table.set_index(["metric", "language"])
    row = table.loc[("tokens_change", "en")]
    assert row.value == pytest.approx(3) and (row.n, row.lost) == (11, 1)
    assert row.p < 0.01 and row.p_holm >= row.p
    assert table.loc[("blank_change", "en"), "value"] == 0


def test_what_cannot_be_compared_is_said(tmp_path):
    folder = generations(tmp_path, rows_of(4), ("en",), "a")
    q.quality_table(folder, metrics="length", output=tmp_path / "b.csv")
    with pytest.raises(InputError, match="by prompt"):
        q.compare_quality(tmp_path / "none.csv", tmp_path / "b.csv")
    for name, judge in (("one", model("gpt2")), ("two", model("llama"))):
        judge[1].name_or_path = name
        table = tmp_path / f"{name}.csv"
        q.quality_table(folder, metrics="diversity", tokenizer=judge[1], output=table)
    with pytest.raises(InputError, match="judged by one before and by two after"):
        q.compare_quality(tmp_path / "one.csv", tmp_path / "two.csv")


def quality_words(tmp_path, name, output, *more):
    "The words of a command that measures the lengths of the texts `name`."
    given = ("--generations", tmp_path / name, "--metric", "length", *more)
    return ("quality", *given, "--output", tmp_path / output)


def test_the_command_adds_what_changed(tmp_path, run, fails):
    from xgdetox.stats import read_table

    for name, more in (("a", ""), ("b", " and the house")):
        rows = [(p, t + more) for p, t in rows_of(6)]
        generations(tmp_path, rows, ("en", "de"), name)
    run(*quality_words(tmp_path, "a", "a.csv", "--language", "de"))
    run(*quality_words(tmp_path, "b", "b.csv", "--before", tmp_path / "a.csv"))
    table = read_table(tmp_path / "b.csv").set_index(["metric", "language"])
    change = table.loc[("tokens_change", "de")]
    assert change.value == pytest.approx(3) and change.p < 0.05
    assert table.loc[("tokens", "en"), "n"] == 6
    for more, said in (
        (("--before", tmp_path / "none.csv"), "by prompt"),
        (("--language", "fr"), "no continuations in the languages"),
    ):
        assert said in fails(*quality_words(tmp_path, "b", "c.csv", *more))
        assert not (tmp_path / "c.csv").exists()


def test_a_language_without_texts_has_no_values(tmp_path):
    folder = generations(tmp_path, [(0, " the old man")])
    (folder / "output-rtp_lx_de.json").write_text("")
    table = q.quality_table(folder, lm=model("gpt2"), output=tmp_path / "q.csv").set_index(
        ["language", "metric"]
    )
    assert (
        table.loc["de"].value.isna().all()
        and (table.loc["de"].n == 0).all()
        and table.loc[("en", "tokens"), "value"] == 3
    )


def test_bad_input_is_named(mixed):
    with pytest.raises(InputError, match="unknown metric 'fluency'"):
        q.quality_table(mixed, metrics=["fluency"])
    with pytest.raises(InputError, match="needs a language model"):
        q.quality_table(mixed)
    with pytest.raises(InputError, match="no model can be loaded"):
        q.quality_table(mixed, metrics="perplexity", lm="/nowhere/at-all")


def test_languages_are_told_on_real_parallel_text(real_data):
    from xgdetox.data import load_parallel

    file = real_data / "parallel/ntrex/ntrex.17way.tsv.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    texts = {c: load_parallel(file, c).rows["text"][:100] for c in LANGUAGES}
    whole, short = q.language_accuracy(texts), q.language_accuracy(texts, words=5)
    assert (
        min(whole.values()) >= 0.97
        and min(short.values()) >= 0.88
        and np.mean(list(short.values())) >= 0.96
    )


def test_confusion_shows_a_model_that_turned_english(tmp_path):
    q.quality_table(
        generations(
            tmp_path, [(p, " the house is near the river today") for p in range(6)], ("de", "ja")
        ),
        metrics="language",
        output=tmp_path / "q.csv",
    )
    table = q.confusion(tmp_path / "q-texts.parquet")
    assert table.loc["de", "en"] == table.loc["ja", "en"] == 1
    import matplotlib

    matplotlib.use("Agg")
    assert q.draw_confusion({"after": table}).axes


def test_capability_reads_the_harness(tmp_path):
    (tmp_path / "m").mkdir()
    result = {
        "results": {
            "hellaswag_zh": {"acc,none": 0.4, "acc_stderr,none": 0.02, "alias": "x"},
            "local": {"exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"},
        },
        "n-samples": {},
    }
    (tmp_path / "m" / "results_2026.json").write_text(json.dumps(result))
    t = capability_table(tmp_path, model="b").set_index("metric")
    assert (
        t.loc["hellaswag_acc", "language"] == "zh"
        and t.loc["hellaswag_acc", "high"] == pytest.approx(0.4392)
        and t.loc["local_exact_match", "value"] == 0.5
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no results"):
        capability_table(tmp_path / "empty")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="no result of"):
        capability_table(tmp_path / "x.json")


@pytest.fixture
def lm_eval() -> str:
    "A Python that has lm-evaluation-harness."
    python = os.environ.get("XGDETOX_LM_EVAL_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import lm_eval"], capture_output=True).returncode:
        remedy = "pip install 'lm_eval[hf]', or set XGDETOX_LM_EVAL_PYTHON"
        pytest.skip(f"lm_eval is not installed: {remedy}")
    return python


LOCAL_TASK = """
task: local_vi
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def local_task(tmp_path) -> Path:
    "A folder of tasks with one, local_vi: eight questions with two choices."
    choices = ["yes", "no"]
    rows = [dict(question=t, choices=choices, answer=i % 2) for i, t in enumerate(TEXTS[:8])]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "local.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    task = LOCAL_TASK.format(file=tmp_path / "local.jsonl")
    (tmp_path / "tasks" / "local.yaml").write_text(task)
    return tmp_path / "tasks"


@pytest.mark.slow
def test_capability_end_to_end(lm_eval, local_task, tmp_path):
    "lm-evaluation-harness itself, a tiny model and a task that lies on disk."
    model("gpt2", tmp_path / "m")
    words = ["--model", "hf", "--model_args", f"pretrained={tmp_path}/m,dtype=float32"]
    words += ["--tasks", "local_vi", "--include_path", str(local_task)]
    words += ["--device", "cpu", "--batch_size", "4", "--output_path", str(tmp_path / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    how = dict(capture_output=True, text=True, timeout=500, env=os.environ | offline)
    p = subprocess.run([lm_eval, "-m", "lm_eval", "run", *words], **how)
    assert p.returncode == 0, p.stderr[-2000:]
    table = capability_table(tmp_path / "out", model="tiny", tuning="base")
    row = table.set_index("metric").loc["local_acc"]
    assert row.language == "vi" and row.n == 8 and 0 <= row.value <= 1
    assert row.low < row.value < row.high or row.value in (0, 1)


def mean_qualities(lm, judge, folder) -> pd.Series:
    "What `quality_table` says of a model's texts in three languages, each metric's mean."
    from xgdetox.data import find_prompt_files
    from xgdetox.generation import generate
    from xgdetox.world import resolve_data

    files = find_prompt_files(resolve_data("world", "prompts"), ["en", "de", "ru"])
    generate(lm, files, folder.parent, name=folder.name, limit=15, n=10)
    return q.quality_table(folder, lm=judge).groupby("metric").value.mean()


@pytest.mark.slow
def test_an_overtuned_model_is_exposed(tmp_path):
    "The world tuned with a rate thirty times too high: toxicity alone calls it a success, quality does not."
    from xgdetox.trainer import train
    from xgdetox.world import resolve_data, resolve_model

    base, pairs = resolve_model("world"), resolve_data("world", "pairs")
    overtuned = train(base, pairs, tmp_path / "hard", recipe="world", learning_rate=1e-3)
    usual = mean_qualities(base, base, tmp_path / "g" / "base")
    gentle = mean_qualities(resolve_model("world-tuned"), base, tmp_path / "g" / "gentle")
    hard = mean_qualities(overtuned, base, tmp_path / "g" / "hard")
    assert gentle["perplexity"] < 1.4 * usual["perplexity"] and gentle["language_kept"] > 0.9
    garbled = hard["perplexity"] > 1.5 * usual["perplexity"]
    assert garbled or hard["language_kept"] < 0.8 or hard["blank"] > 0.3
