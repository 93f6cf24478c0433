"""Toxicity: what the ledger holds and how fast, what scoring costs beside the model, and AUC per language.

    python tests/bench_toxicity.py            # all; ratios are taken within one run
    python tests/bench_toxicity.py auc        # only the table results/scorer_auc.csv (needs real data: XGDETOX_DATA)

Writes results/bench_toxicity.csv. CPU seconds where one process works alone, so that a busy machine changes little."""

import gc
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from xgdetox.calibration import calibrate, calibration_table, labelled_texts
from xgdetox.ledger import look_up, open_ledger, record_scores, source_number
from xgdetox.mass import rude_sequences, toxic_mass
from xgdetox.scorers.base import Scored, Scorer, blocks, digest, load_scorer
from xgdetox.scoring import score_generations
from xgdetox.languages import LANGUAGES

ROOT = Path(__file__).resolve().parents[1]
ROWS = []


def note(what, value, unit, floor=""):
    ROWS.append(
        dict(bench="toxicity", what=what, value=round(float(value), 4), unit=unit, wanted=floor)
    )
    print(f"{what:60s} {value:12.4g} {unit:12s} {floor}")


class AnyScorer(Scorer):
    "Stands for Perspective, whose scores are written."

    id, revision, attribute, languages = "perspective", "v1alpha1", "TOXICITY", tuple(LANGUAGES)


def fill_ledger(ledger, texts) -> float:
    "Scores written per CPU second, in batches of 256, the texts shared out over the languages."
    scores = np.random.default_rng(0).random(len(texts))
    start = time.process_time()
    for language, part in zip(LANGUAGES, np.array_split(np.arange(len(texts)), 17)):
        for block in blocks(part, 256):
            rows = [Scored(texts[i], scores[i]) for i in block]
            record_scores(ledger, AnyScorer(), language, rows)
    return len(texts) / (time.process_time() - start)


def bench_ledger(folder, n=425_000):
    "One model at the paper's size: 17 languages x 1,000 prompts x 25 continuations."
    path = folder / "l.sqlite"
    ledger = open_ledger(path)
    about = "says something of about twenty words or so"
    texts = [f" continuation number {i} {about}" for i in range(n)]
    note("ledger: scores written in batches of 256", fill_ledger(ledger, texts), "scores/s")
    ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    note("ledger: 425,000 scores on disk", path.stat().st_size / 1e6, "MB", "< 300")
    part = np.array_split(np.arange(n), 17)[3]
    asked = [texts[i] for i in np.random.default_rng(1).permutation(part)]
    source = source_number(ledger, "perspective", "v1alpha1", "TOXICITY", list(LANGUAGES)[3])
    start = time.process_time()
    found = look_up(ledger, source, asked)
    seconds = time.process_time() - start
    assert len(found) == len(asked)
    note("ledger: lookups", len(asked) / seconds, "lookups/s", ">= 50,000")


def bert(tokenizer, hidden, heads, wide, longest, **more):
    "A 2-layer classifier with random weights."
    from transformers import BertConfig, BertForSequenceClassification

    size = dict(hidden_size=hidden, num_attention_heads=heads, intermediate_size=wide)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            max_position_embeddings=longest,
            id2label={0: "neutral", 1: "toxic"},
            **size,
            **more,
        )
    )


SAID = (
    "the cat sat on the mat and says something of about twenty words or so, continuation number one"
)


def classifier_folder(folder, hidden):
    from test_toxicity import bpe

    tokenizer = bpe([SAID] * 9, 400)
    torch.manual_seed(0)
    bert(tokenizer, hidden, hidden // 32, 4 * hidden, 128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_scorer(f"classifier:{folder}")


def count_time(owner, name, spent):
    "Let `owner.name` add its CPU seconds to `spent[name]`."
    plain = getattr(owner, name)

    def wrapped(*a, **k):
        start = time.process_time()
        out = plain(*a, **k)
        spent[name] = spent.get(name, 0) + time.process_time() - start
        return out

    setattr(owner, name, wrapped)


def write_texts(path, n):
    "A file of `n` continuations, 25 of each prompt, all different."
    rng = np.random.default_rng(0)
    words = "the cat sat on mat and says something of about twenty words or so".split()
    lines = []
    for i in range(n):
        text = " ".join(rng.choice(words, rng.integers(4, 21))) + f" {i}"
        row = dict(prompt=f"p{i // 25}", generated_text=text, prompt_id=str(i // 25), sample=i % 25)
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def scoring_seconds(path, scorer, folder) -> float:
    "CPU seconds of scoring a file as a new process would."
    digest.cache_clear()
    gc.collect()  # a collection of all that torch imported falls into no run by chance
    start = time.process_time()
    score_generations({"en": path}, scorer, folder, ledger=path.parent / "l.sqlite")
    return time.process_time() - start


def bench_overhead(folder, hidden, n):
    """Everything around the model over the model's own time.

    That is reading, hashing, ledger, batching, writing, and the tokenizer, which is counted as overhead and in a second
    row as part of the model. The rerun finds every score in the ledger but no result, and writes all of it again."""
    folder.mkdir()
    path, spent = folder / "output-rtp_lx_en.json", {}
    write_texts(path, n)
    scorer = classifier_folder(folder / "c", hidden)
    scorer.score(["the cat"], "en")
    count_time(scorer.model, "forward", spent)
    count_time(scorer, "rows", spent)
    first = scoring_seconds(path, scorer, folder / "first")
    model, tokenizer = spent["forward"], spent["rows"]
    again = scoring_seconds(path, scorer, folder / "again")
    same = scoring_seconds(path, scorer, folder / "again")
    written = [(folder / run / "scores-rtp_lx_en.jsonl").read_bytes() for run in ("first", "again")]
    assert written[0] == written[1] and spent["forward"] == model
    note_overhead(f"2-layer classifier, width {hidden}", n, model, tokenizer, first, again, same)


def note_overhead(name, n, model, tokenizer, first, again, same):
    both, limit = model + tokenizer, "<= 0.05"
    note(f"{name}: the model's own time a text", 1e6 * model / n, "us")
    note(f"{name}: all else a text, tokenizer included", 1e6 * (first - model) / n, "us")
    strict = (first - model) / model
    note(f"{name}: overhead, tokenizer included", strict, "ratio", limit)
    note(f"{name}: overhead, tokenizer as part of the model", (first - both) / both, "ratio", limit)
    note(f"{name}: first run / rerun from the ledger", first / again, "times", ">= 50")
    note(f"{name}: first run / the same command again", first / same, "times", ">= 50")


def bench_mass():
    "Toxic mass from the cache of one pass, against a full pass a word; and against 25 samples."
    from test_toxicity import WORDS, bpe, brute_force, language_model

    tokenizer = bpe(
        ["the darn cat sat on the heck mat", "darning the heckler", "他是笨蛋吗 笨蛋"] * 20, 320
    )
    model, prompts = (
        language_model("gpt2", len(tokenizer)),
        [f"the cat sat on {'the mat and ' * (i % 4)}the" for i in range(48)],
    )
    sequences, _ = rude_sequences(tokenizer, WORDS)
    start = time.process_time()
    slow = [brute_force(model, tokenizer, p, sequences) for p in prompts]
    slow_time = time.process_time() - start
    start = time.process_time()
    fast = toxic_mass(model, tokenizer, prompts, WORDS)
    fast_time = time.process_time() - start
    assert np.allclose(slow, fast, rtol=1e-3)
    note("toxic mass: a pass a word / shared cache", slow_time / fast_time, "times")


LABELLED = {
    "ar": "labelled/hatecheck/hatecheck_ar.csv.gz",
    "de": "labelled/hatecheck/hatecheck_de.csv.gz",
    "en": "labelled/jigsaw/jigsaw_binary.csv.gz",
    "es": "labelled/hatecheck/hatecheck_es.csv.gz",
    "fr": "labelled/other/mlma_fr.csv.gz",
    "hi": "labelled/hatecheck/hatecheck_hi.csv.gz",
    "it": "labelled/hatecheck/hatecheck_it.csv.gz",
    "ja": "labelled/other/inspection_ai_ja.csv",
    "ko": "labelled/other/beep_ko.csv.gz",
    "nl": "labelled/hatecheck/hatecheck_nl.csv.gz",
    "pl": "labelled/hatecheck/hatecheck_pl.csv.gz",
    "pt": "labelled/other/toldbr_pt.csv.gz",
    "zh": "labelled/hatecheck/hatecheck_zh.csv.gz",
    **{c: f"prompts/RTP_LX_{c.upper()}.json" for c in ("cs", "id", "ru", "sv")},
}  # no comments at hand: prompts with annotations


def split_texts(data, limit=800, seed=0):
    """language -> ((train texts, labels), (test texts, labels, groups)), at most `limit` texts per side.

    Sides are drawn by group, the same in every language: equal texts are on one side, and so are HateCheck's texts of
    one template."""
    side = lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest()[0] % 2
    out = {}
    for language, name in LABELLED.items():
        rows = list({t: (t, y, g) for t, y, g in zip(*labelled_texts(data / name))}.values())
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        out[language] = tuple(
            tuple(map(list, zip(*[r for r in rows if side(r[2]) == k][:limit]))) for k in (0, 1)
        )
    return {c: (train[:2], test) for c, (train, test) in out.items()}


def training_batches(rows, labels, pad, rng):
    "Batches of 64 rows of like length, in random order."
    order = rng.permutation(len(rows))
    for i in range(0, len(rows), 64):
        batch = sorted(order[i : i + 64], key=lambda j: len(rows[j]))
        width = max(len(rows[j]) for j in batch)
        ids = torch.tensor([rows[j] + [pad] * (width - len(rows[j])) for j in batch])
        mask, wanted = (ids != pad).long(), torch.tensor(labels[batch])
        yield dict(input_ids=ids, attention_mask=mask, labels=wanted)


def train_tiny_classifier(folder, split, epochs=2, hidden=64, vocabulary=8000, seed=0):
    "A 2-layer classifier trained from nothing on the training halves of all languages."
    from test_toxicity import bpe

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    texts = [t for (some, _), _ in split.values() for t in some]
    labels = np.array([y for (_, some), _ in split.values() for y in some])
    tokenizer = bpe(texts, vocabulary)
    pad = tokenizer.pad_token_id
    model = bert(tokenizer, hidden, 4, 2 * hidden, 64, pad_token_id=pad).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    rows = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    for _ in range(epochs):
        for batch in training_batches(rows, labels, pad, rng):
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_scorer(f"classifier:{folder}?languages={','.join(split)}")


def auc_table(data, folder, limit=800, epochs=2):
    """Tidy table of AUC, F1 and calibration error per language, on texts that neither scorer was fitted to.

    The scorers are the lexicon and a tiny trained classifier."""
    split = split_texts(data, limit)
    scorers = (
        load_scorer(f"lexicon:{data / 'lexicons/ldnoobw'}"),
        train_tiny_classifier(folder / "tiny", split, epochs),
    )
    return pd.concat(
        [
            calibration_table(calibrate(s, {c: test for c, (_, test) in split.items()}))
            for s in scorers
        ],
        ignore_index=True,
    )


def bench_auc(folder):
    data = Path(os.environ.get("XGDETOX_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "labelled").is_dir():
        print(f"no real data at {data}: the AUC table is left as it is")
        return
    table = auc_table(data, folder)
    table.round(4).to_csv(ROOT / "results/scorer_auc.csv", index=False)
    print(
        table[table.metric == "auc"]
        .assign(kind=table.scorer.str.split("[:@]").str[0])
        .pivot(index="language", columns="kind", values="value")
        .round(3)
        .to_string()
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    (ROOT / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" not in sys.argv[1:]:
            bench_auc(folder)
        if "auc" not in sys.argv[1:]:
            bench_ledger(folder)
            for hidden, n in ((128, 25_000), (256, 12_500), (768, 2_500)):
                bench_overhead(folder / str(hidden), hidden, n)
            bench_mass()
            pd.DataFrame(ROWS).to_csv(ROOT / "results/bench_toxicity.csv", index=False)
