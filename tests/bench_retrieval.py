"""What retrieval costs: 17 encodings once, against the released way and against the bare forward passes.

The released way goes pair by pair, English again each time, with the language-model head, in chunks of 50 padded to
the longest. One process, one thread, CPU time. Writes results/bench_retrieval.csv."""

import csv
import sys
from pathlib import Path
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from xgdetox.languages import LANGUAGES
from xgdetox.tokens import batch_tokens, length_batches
from xgdetox.retrieval import retrieve

sys.path.insert(0, str(Path(__file__).parent))
from measuring import timed
from tiny_models import word_tokenizer

VOCAB, WIDTH, LAYERS, SENTENCES, REPEATS = 8192, 256, 4, 200, 3
OTHERS = [c for c in LANGUAGES if c != "en"]


def setting():
    "A random GPT-2 and sentences with lengths like the 200 translated prompts (median 12 words, a long tail)."
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tok = word_tokenizer([f"w{i}" for i in range(VOCAB)], unknown="w0", pad_token="w0")
    tok.padding_side = "right"
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=4,
            n_positions=128,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    lengths = np.clip(rng.lognormal(np.log(14), 0.5, SENTENCES), 4, 60)
    texts = {
        c: [
            " ".join(f"w{i}" for i in rng.integers(1, VOCAB, int(n * rng.uniform(0.8, 1.6))))
            for n in lengths
        ]
        for c in LANGUAGES
    }
    return model, tok, texts


def released_way(model, tok, texts):
    "The mean cosines pair by pair: English encoded 16 times, logits made and thrown away, chunks padded."
    out = {}
    for c in OTHERS:
        total = []
        for i in range(0, SENTENCES, 50):
            sides = []
            for t in (texts["en"][i : i + 50], texts[c][i : i + 50]):
                x = tok(t, return_tensors="pt", padding=True)
                with torch.no_grad():
                    hidden = model(
                        input_ids=x["input_ids"],
                        attention_mask=x["attention_mask"],
                        output_hidden_states=True,
                    ).hidden_states
                mask = x["attention_mask"].unsqueeze(-1)
                sides.append([(h * mask).sum(1) / mask.sum(1) for h in hidden])
            total.append([torch.cosine_similarity(a, b, dim=1) for a, b in zip(*sides)])
        out[c] = float(np.mean([torch.cat(layer).mean().item() for layer in zip(*total)]))
    return out


@torch.inference_mode()
def bare_passes(model, tok, texts):
    "The floor: one pass of the base model over each of the 17 sets, batched by length, nothing read."
    rows = [ids for ts in texts.values() for ids in tok(ts)["input_ids"]]
    for batch in length_batches([len(r) for r in rows], batch_tokens(model)):
        x = tok.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt")
        model.base_model(
            input_ids=x["input_ids"], attention_mask=x["attention_mask"], use_cache=False
        )


class Counting:
    "A model whose base model counts the sentences that it reads while it is used."

    def __init__(self, model):
        self.model, self.seen, self.forward = model, 0, model.base_model.forward

    def __enter__(self):
        self.model.base_model.forward = self.count
        return self.model

    def __exit__(self, *error):
        self.model.base_model.forward = self.forward

    def count(self, *a, **k):
        self.seen += k["input_ids"].shape[0]
        return self.forward(*a, **k)


def write_rows(rows, ours, floor, theirs):
    seconds = [f"{ours:.2f}", f"{floor:.2f}", f"{theirs:.2f}"]
    Path("results").mkdir(exist_ok=True)
    with open("results/bench_retrieval.csv", "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["what", "value", "wanted", "seconds_ours", "seconds_bare", "seconds_released"])
        w.writerows([what, f"{value:.3g}", wanted, *seconds] for what, value, wanted in rows)
    for what, value, wanted in rows:
        side = ">=" if what.startswith("released") else "<="
        print(f"{what:40s} {value:8.3g}   (wanted {side} {wanted:g})")


def in_turn(*ways):
    "The least seconds of each way, and what the first turn gave: a machine that changes its speed slows all alike."
    turns = [[timed(way) for way in ways] for _ in range(REPEATS)]
    seconds = [[spent for spent, _ in turn] for turn in turns]
    return np.min(seconds, axis=0), [result for _, result in turns[0]]


def main():
    torch.set_num_threads(1)
    model, tok, texts = setting()
    pairs = {c: (texts[c], texts["en"]) for c in OTHERS}
    counting = Counting(model)
    bare_passes(model, tok, {"en": texts["en"][:8]})  # warm up

    def counted():
        with counting:
            return retrieve(model, pairs, tokenizer=tok)

    (floor, ours, paper, theirs), (_, _, raw, released) = in_turn(
        lambda: bare_passes(model, tok, texts),
        counted,
        lambda: retrieve(model, pairs, tokenizer=tok, paper=True),
        lambda: released_way(model, tok, texts),
    )
    mine = raw[(raw.metric == "mean_cosine") & raw.layer.isna()].set_index("language").value
    encoded = counting.seen / REPEATS / (17 * SENTENCES)
    rows = [
        ("released way / ours", theirs / ours, 2.0),
        ("ours / bare forward passes", ours / floor, 1.1),
        ("paper mode / bare forward passes", paper / floor, 1.1),
        ("sentences encoded / sentences", encoded, 1.0),
        (
            "largest difference of the mean cosine",
            max(abs(mine[c] - released[c]) for c in OTHERS),
            1e-5,
        ),
    ]
    write_rows(rows, ours, floor, theirs)


if __name__ == "__main__":
    sys.exit(main())
