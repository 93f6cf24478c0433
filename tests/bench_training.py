"""How fast training is.

A step against a bare PyTorch loop on the same batches, and a whole run against the original's schedule. The original's
proportions are kept: 24,576 pairs, of which it holds back 5% and reads them one by one every 25 steps of 4 pairs. Its
run here uses today's TRL with our output head, so that only the schedule differs: what it evaluates and saves and how
often, the reference made anew at each step, and gradient checkpointing.

    python tests/bench_training.py        (writes results/bench_training.csv; about 7 minutes of one core)
"""

import json, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from transformers import Trainer, TrainerCallback

from xgdetox.files import read_json
from xgdetox.stats import tidy, write_table
from xgdetox.pair_trainer import score_completions
from xgdetox.trainer import build_trainer, train
from xgdetox.training import dpo_loss, encode_pairs
from xgdetox.recipes import load_recipe
from xgdetox.checkpoints import quiet

sys.path.insert(0, str(Path(__file__).parent))
from test_training import make_model, make_pairs
from tiny_models import byte_tokenizer

WIDTH, VOCABULARY, PAIRS, STEPS = 128, 4096, 24576, 250


def prepare(root: Path, n: int):
    "A GPT-2 with its tokenizer, and `n` pairs of about 30 tokens a text."
    pairs = make_pairs(n, prompt=12, least=10, most=25)
    (root / "pairs").mkdir(parents=True)
    (root / "pairs/a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tokenizer = byte_tokenizer(
        [p["prompt_text"] + p["unpert_gen_text"] + p["pert_gen_text"] for p in pairs[:500]],
        size=2000,
    )
    make_model("gpt2", VOCABULARY, d=WIDTH).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root / "model", root / "pairs", tokenizer


class Clock(TrainerCallback):
    "CPU seconds at the end of each step."

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.process_time())


def picked_logps(model, batch):
    "Log-probabilities of the completions' tokens, 0 elsewhere (text, position)."
    given = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    states, wanted = model.base_model(**given).last_hidden_state[:, :-1], batch["input_ids"][:, 1:]
    mask = batch["completion_mask"][:, 1:].bool()
    logps = model.lm_head(states[mask]).log_softmax(-1).gather(-1, wanted[mask][:, None])[:, 0]
    return torch.zeros(wanted.shape).masked_scatter(mask, logps)


def bare_loop(trainer, steps: int) -> list[float]:
    "CPU seconds at the end of each step of a hand-written loop on the trainer's own batches."
    model, batches, times = trainer.model.train(), iter(trainer.get_train_dataloader()), []
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-5)
    for _ in range(steps):
        b = next(batches)
        reference = b["ref_chosen_logps"], b["ref_rejected_logps"]
        chosen, rejected = picked_logps(model, b).sum(1).chunk(2)
        dpo_loss(chosen, rejected, *reference)[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time())
    return times


STEP = dict(batch_size=8, eval_steps=10**6, warmup_steps=0, weight_decay=0.0, kl_texts=0)


def plain_trainer(root: Path, steps: int):
    "Our trainer on 400 pairs with a clock and nothing else at its steps, and the clock."
    model, pairs, tokenizer = prepare(root / "step", 400)
    settings = load_recipe("mgpt", max_steps=steps, precision="fp32", **STEP)
    encoded = encode_pairs(tokenizer, pairs, settings)[0]
    trainer, _ = build_trainer(model, tokenizer, encoded, settings, root / "out", 0)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    trainer.callback_handler.callbacks, clock = trainer.callback_handler.callbacks[:1], Clock()
    trainer.add_callback(clock)
    return trainer, clock


def step_time(root: Path, steps: int = 25, warm: int = 5, repeats: int = 5) -> dict:
    """Ours over the bare loop, per step: the median of ratios of turns taken one after the other.

    Each turn's first steps are left out."""
    trainer, clock = plain_trainer(root, warm + steps)
    a_step, turns = lambda times: (times[-1] - times[warm - 1]) / steps, []
    for _ in range(repeats):
        bare, clock.times = a_step(bare_loop(trainer, warm + steps)), []
        with quiet():
            trainer.train()
        turns.append((a_step(clock.times) / bare, bare))
    ratios = sorted(ratio for ratio, _ in turns)
    ends = dict(value=median(ratios), low=ratios[0], high=ratios[-1], n=repeats)
    return dict(metric="step_over_bare_loop", seconds=median(bare for _, bare in turns)) | ends


ORIGINAL = dict(
    per_device_train_batch_size=4,
    per_device_eval_batch_size=1,
    learning_rate=1e-5,
    optim="rmsprop",
    beta=0.1,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=150,
    weight_decay=0.0,
    max_grad_norm=10.0,
    max_length=256,
    eval_strategy="steps",
    eval_steps=25,
    save_strategy="steps",
    save_steps=25,
    save_total_limit=5,
    load_best_model_at_end=True,
    metric_for_best_model="eval_loss",
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs=dict(use_reentrant=False),
    bf16=False,
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
)


def original_rows(pairs):
    "The pairs as TRL reads them, 5% of them held back."
    from datasets import Dataset

    rows = [json.loads(line) for line in (pairs / "a.jsonl").read_text().splitlines()]
    named = dict(prompt="prompt_text", chosen="unpert_gen_text", rejected="pert_gen_text")
    rows = Dataset.from_list([{ours: r[theirs] for ours, theirs in named.items()} for r in rows])
    return rows.train_test_split(test_size=0.05, seed=0)


def check_schedule(state, steps: int):
    evaluated = sum("eval_loss" in e for e in state.log_history)
    assert state.global_step == steps and evaluated == steps // 25


def original_run(model, pairs, tokenizer, out: Path, steps: int) -> float:
    """CPU seconds of the original's schedule.

    5% held back, evaluated one by one and saved every 25 steps, reference anew each step, checkpointing."""
    from transformers import AutoModelForCausalLM, EarlyStoppingCallback, PrinterCallback
    from trl import DPOConfig, DPOTrainer

    start, rows = time.process_time(), original_rows(pairs)
    fresh = lambda: AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    with quiet():
        policy, reference = fresh(), fresh()
        trainer = DPOTrainer(
            model=policy,
            ref_model=reference,
            args=DPOConfig(output_dir=str(out), max_steps=steps, **ORIGINAL),
            processing_class=tokenizer,
            train_dataset=rows["train"],
            eval_dataset=rows["test"],
            callbacks=[EarlyStoppingCallback(10)],
        )
        score_completions(policy)
        score_completions(reference)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    check_schedule(trainer.state, steps)
    return time.process_time() - start


@contextmanager
def evaluation_clock():
    "CPU seconds that evaluation (with the KL) and training as a whole, evaluation included, take meanwhile."
    spent, true = dict(evaluation=0.0, training=0.0), (Trainer.evaluate, Trainer.train)

    def clocked(f, name):
        def call(*args, **kwargs):
            start = time.process_time()
            try:
                return f(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - start

        return call

    Trainer.evaluate, Trainer.train = map(clocked, true, ("evaluation", "training"))
    try:
        yield spent
    finally:
        Trainer.evaluate, Trainer.train = true


def whole_run(root: Path) -> list[dict]:
    """The original's time over ours for the same number of steps, on the same model and pairs.

    And the share of our time that evaluation takes."""
    model, pairs, tokenizer = prepare(root / "run", PAIRS)
    train(model, pairs, root / "warm", recipe="mgpt", max_steps=2, precision="fp32", limit=50)
    start = time.process_time()
    with evaluation_clock() as spent:
        train(model, pairs, root / "ours", recipe="mgpt", max_steps=STEPS, precision="fp32")
    ours = time.process_time() - start
    assert read_json(root / "ours/manifest.json")["last_step"] == STEPS
    theirs = original_run(model, pairs, tokenizer, root / "theirs", STEPS)
    return [
        dict(metric="original_schedule_over_ours", value=theirs / ours, n=1, seconds=ours),
        dict(
            metric="evaluation_share_of_training",
            value=spent["evaluation"] / spent["training"],
            n=1,
            seconds=spent["training"],
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        rows = [step_time(Path(d)), *whole_run(Path(d))]
    for r in rows:
        print(" ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in r.items()))
    write_table(
        tidy(
            [
                dict(
                    model=f"gpt2-d{WIDTH}-V{VOCABULARY}",
                    **{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()},
                )
                for r in rows
            ]
        ),
        Path(__file__).parents[1] / "results/bench_training.csv",
    )
    assert rows[1]["value"] >= 3 and rows[2]["value"] <= 0.1, rows
