"""Preference losses and methods on the embedded world at matched English effect (page 01, the figure of losses).

Each run trains on the same English pairs until English toxic mass has fallen by TARGET (looked at every LOOK steps, on prompts' exact
probabilities), or to its last step; then all 17 languages are read. One tidy row a run, language and metric.

    python experiments/ablation_losses.py [results/ablation_losses.csv] [seeds]
"""
import math, sys, tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import TrainerCallback

from xgdetox.data import LANGUAGES, find_prompt_files, load_lexicon, load_parallel, load_prompts
from xgdetox.generation import sample
from xgdetox.models import encode, load_model, load_tokenizer
from xgdetox.quality import continuation_loss
from xgdetox.stats import tidy, write_table
from xgdetox.toxicity import toxic_mass
from xgdetox.training import build_trainer, encode_pairs, load_recipe, quiet
from xgdetox.world import resolve_data, resolve_model, share_in_language

TARGET, LOOK, STEPS = .75, 4, 64
RUNS = {"dpo": {}, "ipo": dict(loss="ipo", learning_rate=3e-5), "hinge": dict(loss="hinge"), "kto": dict(loss="kto", learning_rate=1e-4),
        "simpo": dict(loss="simpo", beta=2.0, learning_rate=1e-5), "orpo": dict(loss="orpo", learning_rate=3e-4), "sft": dict(loss="sft", learning_rate=3e-4),
        "dpo-lora": dict(method="lora", learning_rate=3e-4, lora_r=8), "dpo-lora-gentle": dict(method="lora", learning_rate=1e-4, lora_r=64, lora_alpha=64),
        "dpo-qlora": dict(method="qlora", learning_rate=3e-4, lora_r=8)}

BASE = resolve_model("world")
TOKENIZER, BEFORE = load_tokenizer(BASE), load_model(BASE)
PROMPTS = {l: list(load_prompts(f, l).rows["prompt"]) for l, f in find_prompt_files(resolve_data("world", "prompts")).items()}
RUDE = {l: load_lexicon(resolve_data("world", "lexicon"), l) for l in LANGUAGES}
SENTENCES = {l: list(load_parallel(resolve_data("world", "parallel"), l).rows["text"])[:40] for l in LANGUAGES}


def mass(model, language): return float(toxic_mass(model, TOKENIZER, PROMPTS[language], RUDE[language]).mean())


def measure(model) -> dict[str, dict[str, float]]:
    "Per language: toxic mass, perplexity of the world's own sentences, share of words of a continuation that are of the language."
    found = {}
    for l in LANGUAGES:
        heads = [t.partition(" ")[0] for t in SENTENCES[l]]
        loss, n = continuation_loss(model, TOKENIZER, heads, [t[len(h):] for t, h in zip(SENTENCES[l], heads)])
        inputs = encode(TOKENIZER, PROMPTS[l][:32])
        texts = TOKENIZER.batch_decode(sample(model, inputs, 1, 20, .9, .8), skip_special_tokens=True)
        found[l] = dict(toxic_mass=mass(model, l), perplexity=math.exp((loss * n).sum() / n.sum()), right_language=float(np.nanmean([share_in_language(t, l) for t in texts])))
    return found


class UntilMatched(TrainerCallback):
    "Stop when English toxic mass has fallen by TARGET."
    def __init__(self, before): self.before, self.drop = before, 0.
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % LOOK and state.global_step < state.max_steps: return
        model.eval(); self.drop = 1 - mass(model, "en") / self.before; model.train()
        control.should_training_stop = control.should_training_stop or self.drop >= TARGET


def tune(settings: dict, seed: int, before: float):
    "The tuned model, the step it stopped at, and its English drop."
    settings = load_recipe("world", max_steps=STEPS, eval_steps=10**6, kl_texts=0, **settings)
    with tempfile.TemporaryDirectory() as d:
        trainer, _ = build_trainer(BASE, TOKENIZER, encode_pairs(TOKENIZER, resolve_data("world", "pairs"), settings)[0], settings, Path(d), seed)
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"; trainer.args.load_best_model_at_end = False
        trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if type(c).__name__ in ("DefaultFlowCallback",)]
        stop = UntilMatched(before); trainer.add_callback(stop)
        with quiet(): trainer.train()
    return trainer.model.eval(), trainer.state.global_step, stop.drop


def main(target="results/ablation_losses.csv", seeds=3, *only):
    torch.set_num_threads(1)
    before, rows = measure(BEFORE), []
    keep = lambda tuning, seed, found, **extra: rows.extend(dict(model="world", tuning=tuning, seed=seed, language=l, metric=m, value=v, n=len(PROMPTS[l]), **extra) for l, ms in found.items() for m, v in ms.items())
    keep("base", math.nan, before)
    for name, settings in RUNS.items():
        if only and name not in only: continue
        for seed in range(int(seeds)):
            model, step, drop = tune(settings, seed, before["en"]["toxic_mass"])
            found = measure(model)
            keep(name, seed, {l: ms | dict(drop=1 - ms["toxic_mass"] / before[l]["toxic_mass"]) for l, ms in found.items()}, steps=step, matched=drop >= TARGET)
            others = [l for l in found if l != "en"]
            print(name, seed, f"step {step} English drop {drop:.2f} others {np.mean([1 - found[l]['toxic_mass'] / before[l]['toxic_mass'] for l in others]):.2f}",
                  f"perplexity {np.mean([found[l]['perplexity'] for l in found]):.2f} language {np.mean([found[l]['right_language'] for l in found]):.3f}", flush=True)
            write_table(tidy(rows), target)


if __name__ == "__main__": main(*sys.argv[1:])
