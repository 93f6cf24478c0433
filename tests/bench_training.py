"""How fast training is: a step against a bare PyTorch loop on the same batches, and a whole run against the original's schedule.

    python tests/bench_training.py        (writes results/bench_training.csv)
"""
import json, shutil, sys, tempfile, time
from pathlib import Path

import torch

from xgdetox.stats import tidy, write_table
from xgdetox.training import arguments, build_trainer, dpo_loss, encode_pairs, load_recipe, plan_run, quiet, read_json, train

sys.path.insert(0, str(Path(__file__).parent))
from test_training import make_model, make_pairs, make_tokenizer

STEPS = 10


def prepare(root: Path, n: int, d: int):
    "A GPT-2 of width `d` with its tokenizer, and `n` pairs."
    pairs = make_pairs(n)
    (root/"pairs").mkdir(parents=True)
    (root/"pairs/a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tokenizer = make_tokenizer(p["prompt_text"] + p["unpert_gen_text"] + p["pert_gen_text"] for p in pairs[:500])
    make_model("gpt2", 4096, d=d).save_pretrained(root/"model"); tokenizer.save_pretrained(root/"model")
    return root/"model", root/"pairs", tokenizer


def bare_loop(trainer, steps: int) -> float:
    "CPU seconds of a hand-written loop on the trainer's own batches, with the reference's log-probabilities at hand."
    model, batches = trainer.model.train(), iter(trainer.get_train_dataloader())
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-5)
    start = time.process_time()
    for _ in range(steps):
        b = next(batches)
        states = model.base_model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).last_hidden_state[:, :-1]
        mask, picked = b["completion_mask"][:, 1:].bool(), torch.zeros(b["input_ids"][:, 1:].shape)
        picked = picked.masked_scatter(mask, model.lm_head(states[mask]).log_softmax(-1).gather(-1, b["input_ids"][:, 1:][mask][:, None])[:, 0])
        dpo_loss(*picked.sum(1).chunk(2), b["ref_chosen_logps"], b["ref_rejected_logps"])[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.)
        optimizer.step(); optimizer.zero_grad()
    return time.process_time() - start


def step_time(root: Path) -> dict:
    "Ours over the bare loop, a step."
    model, pairs, tokenizer = prepare(root/"step", 300, 128)
    settings = load_recipe("mgpt", batch_size=8, max_steps=STEPS, eval_steps=STEPS * 10, warmup_steps=0, weight_decay=0., max_length=64, kl_texts=0, precision="fp32")
    trainer, _ = build_trainer(model, tokenizer, encode_pairs(tokenizer, pairs, settings)[0], settings, root/"out", 0)
    bare_loop(trainer, 3)                                                              # warm
    bare = bare_loop(trainer, STEPS)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"; trainer.args.load_best_model_at_end = False
    trainer.callback_handler.callbacks = trainer.callback_handler.callbacks[:1]
    start = time.process_time()
    with quiet(): trainer.train()
    return dict(metric="step_over_bare_loop", value=(time.process_time() - start) / bare, seconds=bare / STEPS)


def original_run(model, pairs, tokenizer, out: Path, steps: int) -> float:
    "CPU seconds of the original's schedule: 5% held back, evaluated one by one and saved every 25 steps, reference anew each step, checkpointing."
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import DPOConfig, DPOTrainer
    rows = [json.loads(l) for l in (pairs/"a.jsonl").read_text().splitlines()]
    rows = Dataset.from_list([dict(prompt=r["prompt_text"], chosen=r["unpert_gen_text"], rejected=r["pert_gen_text"]) for r in rows]).train_test_split(test_size=.05, seed=0)
    config = DPOConfig(output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, per_device_eval_batch_size=1, learning_rate=1e-5, optim="rmsprop", beta=.1,
                       lr_scheduler_type="constant_with_warmup", warmup_steps=150, weight_decay=.05, max_grad_norm=10., max_length=256, eval_strategy="steps", eval_steps=25,
                       save_strategy="steps", save_steps=25, save_total_limit=5, load_best_model_at_end=True, gradient_checkpointing=True, bf16=False, use_cpu=True, disable_tqdm=True, report_to="none")
    load = lambda: AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    start = time.process_time()
    with quiet():
        trainer = DPOTrainer(model=load(), ref_model=load(), args=config, processing_class=tokenizer, train_dataset=rows["train"], eval_dataset=rows["test"])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return time.process_time() - start


def whole_run(root: Path, pairs_in_all: int = 5000, steps: int = 50) -> dict:
    "The original's time over ours for the same number of steps, on the same model and pairs."
    model, pairs, tokenizer = prepare(root/"run", pairs_in_all, 128)
    train(model, pairs, root/"warm", recipe="mgpt", max_steps=2, precision="fp32", limit=50)
    start = time.process_time()
    train(model, pairs, root/"ours", recipe="mgpt", max_steps=steps, precision="fp32")
    ours, manifest = time.process_time() - start, read_json(root/"ours/manifest.json")
    theirs = original_run(model, pairs, tokenizer, root/"theirs", steps)
    return dict(metric="original_schedule_over_ours", value=theirs / ours, seconds=ours, evaluation_share=manifest["evaluation_seconds"] / manifest["training_seconds"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        rows = [step_time(Path(d)), whole_run(Path(d))]
    for r in rows: print(" ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in r.items()))
    write_table(tidy([dict(model="gpt2-d128-V4096", **r) for r in rows]), Path(__file__).parents[1]/"results/bench_training.csv")
    assert rows[1]["value"] > 3, rows
