"""Preference losses, and full tuning against LoRA and QLoRA, at matched English effect on the embedded
world (page 01).

Every run starts from the shipped model `world`, sees the same 896 English pairs in batches of 32, and
stops at the first step at which English toxic mass has fallen by TARGET (looked at every LOOK steps),
or after the recipe's 64 steps. Then all 17 languages are read. Only the loss or the method, and the
learning rate, differ. A loss has no right learning rate of its own, so each gets one by the same rule,
which looks at English only:

    on tuning seed 100 the rates of RATES are tried from below; the first that reaches TARGET
    by step SOON is taken; seeds 0, 1, 2 report.

A loss that reaches TARGET at no rate reports at the rate with the largest English drop; its rows say
`matched` False. LoRA is tried on a grid of rate, rank and alpha (LORA) instead, all of it on seed 100.
Of its points that reach TARGET and KEEP the language, the one with the lowest perplexity over all
languages is the gentle one, reported on seeds 0, 1, 2; the paper's rank and alpha (64, 16) report
beside it, with LoRA and with QLoRA, at the rate that the rule for losses picks. QLoRA is read twice: as
trained, and with its adapter on the published weights, as the paper merged it.

One tidy row per run, language and metric: toxic_mass and drop (page 03; of the 64 prompts), perplexity
(of the world's own sentences under the tuned model, those with a rude word left out), right_language
(share of words of 64 continuations of 20 tokens that are of the prompt's language).

    python experiments/ablation_losses.py [results/ablation_losses.csv] [names ...]        goes on where it stopped
"""

import fcntl, math, sys, tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import TrainerCallback

from xgdetox.languages import LANGUAGES
from xgdetox.data import find_prompt_files, load_lexicon, load_parallel, load_prompts
from xgdetox.sampling import sample
from xgdetox.models import load_model
from xgdetox.tokens import encode, load_tokenizer
from xgdetox.fluency import continuation_loss
from xgdetox.stats import tidy, write_table
from xgdetox.mass import toxic_mass
from xgdetox.trainer import build_trainer
from xgdetox.training import encode_pairs
from xgdetox.lora import load_4bit
from xgdetox.recipes import load_recipe
from xgdetox.checkpoints import quiet
from xgdetox.world import resolve_data, resolve_model, share_in_language

TARGET, LOOK, SOON, KEEP = 0.75, 2, 48, 0.98
RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SEARCH, SEEDS = 100, (0, 1, 2)
LOSSES = {
    "dpo": {},
    "ipo": dict(loss="ipo"),
    "hinge": dict(loss="hinge"),
    "kto": dict(loss="kto"),
    "simpo": dict(loss="simpo", beta=2.0, simpo_gamma=1.0),  # its paper's values for base models
    "orpo": dict(loss="orpo"),
    "orpo, weight 1": dict(
        loss="orpo", beta=1.0
    ),  # the weight of its odds ratio: .1 is usual, 1 the largest its paper tried
    "sft": dict(loss="sft"),
}
LORA = [
    (rate, r, alpha)
    for r, alpha in ((4, 4), (16, 16), (64, 16), (64, 64))
    for rate in (1e-4, 3e-4, 1e-3, 3e-3)
]

BASE = resolve_model("world")
TOKENIZER, BEFORE = load_tokenizer(BASE), load_model(BASE)
PROMPTS = {
    l: list(load_prompts(f, l).rows["prompt"])
    for l, f in find_prompt_files(resolve_data("world", "prompts")).items()
}
RUDE = {l: load_lexicon(resolve_data("world", "lexicon"), l) for l in LANGUAGES}
CLEAN = [
    i
    for i, t in enumerate(load_parallel(resolve_data("world", "parallel"), "en").rows["text"])
    if not set(RUDE["en"]) & set(t.replace(".", " ").replace(",", " ").split())
][:64]
SENTENCES = {
    l: [load_parallel(resolve_data("world", "parallel"), l).rows["text"][i] for i in CLEAN]
    for l in LANGUAGES
}


def mass(model, language):
    return float(toxic_mass(model, TOKENIZER, PROMPTS[language], RUDE[language]).mean())


def measure(model) -> dict[str, dict[str, float]]:
    """Per language: toxic mass, perplexity of the world's own sentences (their first word given), language kept.

    Language kept is the share of a continuation's words that are of the language."""
    found = {}
    for l in LANGUAGES:
        heads = [t.partition(" ")[0] for t in SENTENCES[l]]
        loss, n = continuation_loss(
            model, TOKENIZER, heads, [t[len(h) :] for t, h in zip(SENTENCES[l], heads)]
        )
        texts = TOKENIZER.batch_decode(
            sample(model, encode(TOKENIZER, PROMPTS[l]), 1, 20, 0.9, 0.8), skip_special_tokens=True
        )
        found[l] = dict(
            toxic_mass=mass(model, l),
            perplexity=math.exp((loss * n).sum() / n.sum()),
            right_language=float(np.nanmean([share_in_language(t, l) for t in texts])),
        )
    return found


class UntilMatched(TrainerCallback):
    "Stop when English toxic mass has fallen by TARGET."

    def __init__(self, before):
        self.before, self.drop = before, 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % LOOK and state.global_step < state.max_steps:
            return
        model.eval()
        self.drop = 1 - mass(model, "en") / self.before
        model.train()
        control.should_training_stop = control.should_training_stop or self.drop >= TARGET


def tune(settings: dict, seed: int, before: float):
    "The tuned model, and the step it stopped at."
    settings = load_recipe("world", eval_steps=10**6, kl_texts=0, **settings)
    with tempfile.TemporaryDirectory() as d:
        trainer, _ = build_trainer(
            BASE,
            TOKENIZER,
            encode_pairs(TOKENIZER, resolve_data("world", "pairs"), settings)[0],
            settings,
            Path(d),
            seed,
        )
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.callback_handler.callbacks = [
            c
            for c in trainer.callback_handler.callbacks
            if type(c).__name__ == "DefaultFlowCallback"
        ]
        trainer.add_callback(UntilMatched(before))
        with quiet():
            trainer.train()
    return trainer.model.eval(), trainer.state.global_step


def on_published(adapted):
    "The adapter of `adapted` on the published weights."
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as d:
        adapted.save_pretrained(d)
        return PeftModel.from_pretrained(load_model(BASE), d).eval()


class Ablation:
    "The table on disk, and the runs that are not yet in it."

    def __init__(self, target):
        self.target = Path(target)
        self.read()
        self.before = self.of("base", 0) or self.add("base", 0, measure(BEFORE))
        self.of("rounded base", 0) or self.add("rounded base", 0, measure(load_4bit(BASE)))

    def read(self):
        self.rows = (
            pd.read_csv(self.target, keep_default_na=False, na_values=[""]).to_dict("records")
            if self.target.exists()
            else []
        )

    def of(self, name, seed, **facts) -> dict:
        "Language -> metric -> value of a run in the table."
        found = {}
        for r in self.rows:
            if (
                r["tuning"] == name
                and r["seed"] == seed
                and all(r[k] == v for k, v in facts.items())
            ):
                found.setdefault(r["language"], {})[r["metric"]] = r["value"]
        return found

    def add(self, name, seed, found, **facts) -> dict:
        with open(
            Path(tempfile.gettempdir()) / f"{self.target.name}.lock", "w"
        ) as lock:  # several runs may share one table
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.read()
            if self.of(name, seed, **{k: v for k, v in facts.items() if v == v}):
                return found
            for l, metrics in found.items():
                self.rows += [
                    dict(
                        model="world",
                        tuning=name,
                        seed=seed,
                        language=l,
                        metric=m,
                        value=float(f"{v:.6g}"),
                        n=len(PROMPTS[l]),
                        **facts,
                    )
                    for m, v in metrics.items()
                ]
            write_table(tidy(self.rows), self.target)
        return found

    def run(self, name, seed, settings) -> dict:
        "A run's numbers with `english`, its English drop, and `steps`: from the table, or made now."
        recipe = load_recipe("world", **settings)
        facts = {k: recipe[k] for k in ("learning_rate", "loss", "method")} | {
            k: recipe[k] if recipe["method"] != "full" else math.nan
            for k in ("lora_r", "lora_alpha")
        }
        key = {k: v for k, v in facts.items() if v == v}
        if not self.of(name, seed, **key):
            model, steps = tune(settings, seed, self.before["en"]["toxic_mass"])
            self.keep(name, seed, model, steps=steps, **facts)
            if recipe["method"] == "qlora":
                self.keep(
                    f"{name}, on the published base",
                    seed,
                    on_published(model),
                    steps=steps,
                    **facts,
                )
        found = self.of(name, seed, **key)
        steps = next(
            r["steps"]
            for r in self.rows
            if r["tuning"] == name and r["seed"] == seed and all(r[k] == v for k, v in key.items())
        )
        return dict(found=found, english=found["en"]["drop"], steps=steps, settings=settings)

    def keep(self, name, seed, model, **facts):
        found = measure(model)
        for l in found:
            found[l]["drop"] = 1 - found[l]["toxic_mass"] / self.before[l]["toxic_mass"]
        self.add(name, seed, found, matched=found["en"]["drop"] >= TARGET, **facts)
        mean = lambda m: np.mean([found[l][m] for l in found if l != "en"])
        print(
            name,
            seed,
            facts,
            f"English {found['en']['drop']:.2f} others {mean('drop'):.2f}",
            f"perplexity {found['en']['perplexity']:.2f}/{mean('perplexity'):.2f}",
            f"language {mean('right_language'):.3f}",
            flush=True,
        )

    def choose_rate(self, name, settings) -> float:
        "The smallest of RATES that reaches TARGET by step SOON; without one, that with the largest English drop."
        tried = []
        for rate in RATES:
            tried.append(self.run(name, SEARCH, settings | dict(learning_rate=rate)))
            if tried[-1]["english"] >= TARGET and tried[-1]["steps"] <= SOON:
                break
        else:
            tried.sort(key=lambda run: run["english"])
        return tried[-1]["settings"]["learning_rate"]

    def report(self, name, settings):
        for seed in SEEDS:
            self.run(name, seed, settings)

    def losses(self, names):
        for name in names:
            self.report(
                name, LOSSES[name] | dict(learning_rate=self.choose_rate(name, LOSSES[name]))
            )

    def adapters(self):
        "The grid of LoRA, its gentle point, and the paper's rank with LoRA and QLoRA."
        grid = [
            self.run(
                "lora grid",
                SEARCH,
                dict(method="lora", learning_rate=rate, lora_r=r, lora_alpha=alpha),
            )
            for rate, r, alpha in LORA
        ]
        mean = lambda run, m: np.mean([run["found"][l][m] for l in LANGUAGES])
        gentle = [
            run for run in grid if run["english"] >= TARGET and mean(run, "right_language") >= KEEP
        ]
        if gentle:
            self.report(
                "gentle lora", min(gentle, key=lambda run: mean(run, "perplexity"))["settings"]
            )
        for method in ("lora", "qlora"):
            settings = dict(method=method, lora_r=64, lora_alpha=16)
            self.report(
                method,
                settings
                | dict(learning_rate=self.choose_rate("lora", settings | dict(method="lora"))),
            )


def main(target="results/ablation_losses.csv", *names):
    torch.set_num_threads(1)
    ablation = Ablation(target)
    ablation.losses([n for n in names or LOSSES if n in LOSSES])
    if not names or "adapters" in names:
        ablation.adapters()


if __name__ == "__main__":
    main(*sys.argv[1:])
