"""What toxic mass costs on a real list of words and a vocabulary of 262,144.

Gemma 3 270M, the English list, RTP-LX prompts. CPU seconds of one process and one thread, in one run: a row of the
prompt's cache for each word, our walk over the tree of prefixes without a threshold, and with one. Writes
results/bench_mass.csv; without the model or the data it says so and writes nothing."""

import copy
import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch

from xgdetox.data import load_lexicon, load_prompts
from xgdetox.files import InputError
from xgdetox.mass import mass_bounds, rude_sequences
from xgdetox.models import load
from xgdetox.tokens import encode
from xgdetox.weights import model_folder

sys.path.insert(0, str(Path(__file__).parent))
from measuring import timed

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("XGDETOX_DATA", ROOT / "../shared/data"))
PROMPTS, THRESHOLD, WANTED = 10, 1e-6, 5
FEW = 3  # prompts for the slow ways
AT_ONCE = 64  # words whose rows are read together by the direct way


def padded(sequences) -> tuple:
    "Ids and mask, (word, piece), padded on the right."
    width = max(map(len, sequences))
    ids = [list(s) + [0] * (width - len(s)) for s in sequences]
    mask = [[1] * len(s) + [0] * (width - len(s)) for s in sequences]
    return torch.tensor(ids), torch.tensor(mask)


@torch.inference_mode()
def word_by_word(model, tokenizer, prompt: str, sequences) -> float:
    "The direct way: the prompt is read once, then each word is a row of its repeated cache."
    inputs = encode(tokenizer, [prompt])
    out = model(**inputs, use_cache=True)
    first, total = out.logits[0, -1].float().log_softmax(-1), 0.0
    for i in range(0, len(sequences), AT_ONCE):
        ids, mask = padded(sequences[i : i + AT_ONCE])
        n, width = ids.shape
        cache = copy.deepcopy(out.past_key_values)
        cache.batch_repeat_interleave(n)
        position = inputs["position_ids"][:, -1:] + 1 + torch.arange(width - 1)
        whole = torch.cat([inputs["attention_mask"].repeat(n, 1), mask[:, :-1]], 1)
        new = dict(input_ids=ids[:, :-1], attention_mask=whole, position_ids=position.repeat(n, 1))
        logits = model(**new, past_key_values=cache).logits
        steps = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        log_p = first[ids[:, 0]] + (steps * mask[:, 1:]).sum(-1)
        total += float(log_p.exp().double().sum())
    return total


def setting():
    "Model, tokenizer, prompts and words; `InputError` where one is not at hand."
    model, tokenizer = load(model_folder("gemma-3-270m"))
    rows = load_prompts(DATA / "prompts" / "RTP_LX_EN.json", "en", PROMPTS).rows
    words = load_lexicon(DATA / "lexicons" / "ldnoobw", "en")
    return model, tokenizer, list(rows["prompt"]), words


def ratio_row(what: str, ours: float, slow: float, wanted="") -> dict:
    "How many times as fast as the direct way, from seconds per prompt."
    row = dict(what=f"a row for each word / {what}", value=round(slow / ours, 2), wanted=wanted)
    return row | dict(ours=round(ours, 3), other=round(slow, 3))


def mean_row(what: str, values) -> dict:
    "The mean of some masses, two digits of it."
    return dict(what=what, value=float(f"{values.mean():.2g}"), wanted="")


def measure(model, tokenizer, prompts, words) -> list[dict]:
    "The table: CPU seconds per prompt, how many times as fast, and how far apart the bounds are."
    sequences, few = rude_sequences(tokenizer, words)[0], prompts[:FEW]
    tree = lambda some, least: mass_bounds(model, tokenizer, some, words, threshold=least)
    direct = lambda: [word_by_word(model, tokenizer, p.rstrip(), sequences) for p in few]
    slow, by_word = timed(direct)
    exact, masses = timed(lambda: tree(few, 0.0))
    quick, (lower, upper) = timed(lambda: tree(prompts, THRESHOLD))
    print(f"mass: a row for each word {by_word}, the tree {masses[0]}")
    assert np.allclose(masses[0], by_word, rtol=0.5)  # 16-bit logits of 20 are rounded by .06
    assert np.allclose(lower[:FEW], masses[0], rtol=0.5, atol=1e-4)
    slow, exact, quick = slow / FEW, exact / FEW, quick / len(prompts)
    return [
        ratio_row("the tree, exact", exact, slow),
        ratio_row(f"the tree, threshold {THRESHOLD:g}", quick, slow, WANTED),
        mean_row(f"mean mass, lower bound, threshold {THRESHOLD:g}", lower),
        mean_row(f"mean of upper - lower bound, threshold {THRESHOLD:g}", upper - lower),
    ]


def main():
    torch.set_num_threads(1)
    try:
        given = setting()
    except InputError as e:
        return print(f"nothing is measured: {e}")
    rows = measure(*given)
    for r in rows:
        print(f"{r['what']}: {r['value']}" + f" (wanted {r['wanted']})" * bool(r["wanted"]))
    with open(ROOT / "results" / "bench_mass.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
