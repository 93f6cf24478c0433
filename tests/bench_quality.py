"""What quality costs on one CPU core.

Perplexity against the released way (one text per pass, each prompt read again for each continuation) and against the
unavoidable passes; diversity against its tokenising alone. CPU time, within one run.
Writes results/bench_quality.csv."""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import MT5Config, MT5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parent))
from measuring import keep, ratio, say, timed
from tiny_models import TEXTS, tokenizer
from xgdetox.tokens import length_batches, token_ids
from xgdetox.quality import distinct_n, paper_perplexity, text_pieces

PROMPTS, N = 12, 25


def setting():
    "Prompts of 6 to 40 words and 25 continuations of 4 to 16 words each."
    rng = np.random.default_rng(0)
    words = [w for t in TEXTS[:8] for w in t.split()]
    some = lambda least, most: " ".join(rng.choice(words, rng.integers(least, most)))
    prompts = [some(6, 40) for _ in range(PROMPTS)]
    pairs = [(p, " " + some(4, 16)) for p in prompts for _ in range(N)]
    tok = tokenizer(vocabulary=500)
    torch.manual_seed(0)
    model = MT5ForConditionalGeneration(
        MT5Config(
            vocab_size=8192,
            d_model=256,
            d_kv=64,
            d_ff=512,
            num_layers=4,
            num_heads=4,
            decoder_start_token_id=2,
        )
    ).eval()
    return model, tok, *map(list, zip(*pairs))


def released(model, tok, prompts, texts):
    "One text a pass, the prompt again for every continuation, gradients kept."
    for p, t in zip(prompts, texts):
        for s in (p + t, p):
            ids = tok.encode(s, return_tensors="pt")
            model(ids, labels=ids)[0]


@torch.inference_mode()
def floor(model, tok, prompts, texts):
    "One pass over each distinct text in batches of like length: nothing read off."
    rows = token_ids(
        tok, list(dict.fromkeys(s for p, t in zip(prompts, texts) for s in (p, p + t)))
    )
    for batch in length_batches([2 * len(r) for r in rows], 1024, 128):
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [2] * (width - len(rows[i])) for i in batch])
        model(input_ids=ids, attention_mask=(ids != 2).long(), labels=ids)


def released_diversity(tok, texts):
    for i in range(0, len(texts), N):
        grams, total = (set(), set(), set()), 0
        for t in texts[i : i + N]:
            o = [
                w
                for w in (tok.decode(x, skip_special_tokens=True) for x in tok(t)["input_ids"])
                if w
            ]
            total += len(o)
            for n, g in enumerate(grams, 1):
                g.update("_".join(o[j : j + n]) for j in range(len(o) - n + 1))


def ours_diversity(tok, texts):
    rows = text_pieces(tok, texts)
    return [distinct_n(rows[i : i + N], n) for i in range(0, len(rows), N) for n in (1, 2, 3)]


def perplexity_rows(model, tok, prompts, texts):
    few = slice(0, N)
    paper_perplexity(model, tok, prompts[few], texts[few])
    floor(model, tok, prompts[few], texts[few])
    ways = paper_perplexity, floor, released
    mine, bare, slow = (timed(lambda: way(model, tok, prompts, texts))[0] for way in ways)
    unavoidable = dict(ours=mine, other=bare)
    return [
        ratio("perplexity: released way / ours", slow, mine, 2.5),
        ratio("perplexity: ours / unavoidable passes", mine, bare, 1.2, **unavoidable),
    ]


def diversity_rows(tok, texts):
    ways = ours_diversity, lambda tok, texts: tok(texts)["input_ids"], released_diversity
    # in turn: a machine that changes its speed slows all alike
    turns = [[timed(lambda: way(tok, texts))[0] for way in ways] for _ in range(20)]
    mine, cut, slow = np.min(turns, axis=0)
    return [
        ratio("diversity: ours / tokenising", mine, cut, 1.4, ours=mine, other=cut, digits=3),
        ratio("diversity: released way / ours", slow, mine, digits=3),
    ]


def main():
    torch.set_num_threads(1)
    model, tok, prompts, texts = setting()
    rows = perplexity_rows(model, tok, prompts, texts) + diversity_rows(tok, texts * 4)
    say(rows)
    keep(rows, "bench_quality")


if __name__ == "__main__":
    main()
