"""What training costs on a GPU: tokens per second, peak memory and model FLOPs utilisation, on random
weights of the paper's sizes (page 01).

    python experiments/gpu_training.py [--only mgpt|llama] [--steps 30] [--peak 312] [--output results/gpu_training.csv]
    python experiments/gpu_training.py --tiny --output FILE     the same code on a CPU, in a minute, on two layers

mGPT-sized: full DPO with its recipe. Llama-2-7B-shaped: QLoRA with its recipe. Weights, tokenizer and
pairs are made on the spot (20 GB of disk, 32 GB of memory for the second), so nothing is fetched.
`--peak`: the card's dense bf16 TFLOPS where it is not in PEAK; without it the utilisation is missing.
"""

import argparse, json, math, random, resource, sys, tempfile, time
from pathlib import Path

import torch
from transformers import GPT2Config, LlamaConfig, AutoModelForCausalLM, TrainerCallback

from xgdetox.tokens import load_tokenizer
from xgdetox.stats import tidy, write_table
from xgdetox.trainer import build_trainer
from xgdetox.training import encode_pairs
from xgdetox.recipes import load_recipe
from xgdetox.checkpoints import quiet
from xgdetox.world import resolve_model

PEAK = {
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "A6000": 155,
    "RTX 4090": 165,
}  # dense bf16 TFLOPS, from the vendor's data sheets
ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
SHAPES = {
    "mgpt": lambda tiny: GPT2Config(
        vocab_size=100000,
        n_positions=256 if tiny else 2048,
        n_embd=64 if tiny else 2048,
        n_layer=2 if tiny else 24,
        n_head=4 if tiny else 16,
        **ENDS,
    ),
    "llama": lambda tiny: LlamaConfig(
        vocab_size=32000,
        **(
            dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
            if tiny
            else {}
        ),
        **ENDS,
    ),
}
RECIPE = {"mgpt": "mgpt", "llama": "llama2-7b"}


def make(name: str, folder: Path, tiny: bool) -> tuple[Path, Path]:
    "A random model of that shape with the embedded world's tokenizer, and 2,000 pairs of about 50 tokens a text."
    tokenizer, draw = load_tokenizer(resolve_model("world")), random.Random(0)
    on = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if name == "llama" and not tiny else torch.float32)
    with torch.device(on):
        model = AutoModelForCausalLM.from_config(SHAPES[name](tiny))
    torch.set_default_dtype(torch.float32)
    with quiet():
        model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    words = [tokenizer.decode([i]) for i in range(100, 1100)]
    text = lambda n: " ".join(draw.choices(words, k=n))
    rows = [
        dict(
            prompt_text=text(10),
            unpert_gen_text=" " + text(draw.randint(20, 30)),
            pert_gen_text=" " + text(draw.randint(20, 30)),
        )
        for _ in range(100 if tiny else 2000)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / name, folder / "pairs.jsonl"


class Clock(TrainerCallback):
    "Seconds from the end of step `warm` to the end of the last step, all work of the device done."

    def __init__(self, warm: int):
        self.warm, self.seen = warm, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step not in (self.warm, state.max_steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seen[state.global_step] = time.perf_counter()

    def seconds(self) -> float:
        return max(self.seen.values()) - min(self.seen.values())


def flops_a_token(model, full: bool, width: int) -> float:
    """What a token of a training step must cost: 2 a weight forward, 2 back to the inputs, 2 to the
    weights that are trained; attention in proportion.

    Embeddings that are only looked up cost nothing; what checkpointing computes again is not counted."""
    size = lambda p: (
        math.prod(p.quant_state.shape) if getattr(p, "quant_state", None) is not None else p.numel()
    )
    looked_up = [
        p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
    ]
    head = model.get_output_embeddings().weight
    weights = sum(
        size(p)
        for n, p in model.named_parameters()
        if p.ndim > 1 and "lora_" not in n and (p is head or not any(p is e for e in looked_up))
    )
    lora, config = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n), model.config
    attention = (
        2 * config.num_hidden_layers * config.hidden_size * width
    )  # scores and mixing, causal: half of 4 d width
    return (6 if full else 4) * weights + 6 * lora + 3 * attention


def measure(name: str, folder: Path, tiny: bool, steps: int, warm: int, peak) -> list[dict]:
    "Rows of one model: tokens per second, seconds per step, peak memory, utilisation."
    model, pairs = make(name, folder, tiny)
    changes = (
        dict(max_steps=warm + steps, eval_steps=10**6, kl_texts=0, lora_r=4)
        if tiny
        else dict(max_steps=warm + steps, eval_steps=10**6, kl_texts=0)
    )
    settings, tokenizer = load_recipe(RECIPE[name], **changes), load_tokenizer(model)
    with quiet():
        trainer, facts = build_trainer(
            model,
            tokenizer,
            encode_pairs(tokenizer, pairs, settings)[0],
            settings,
            folder / "out",
            0,
        )
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        trainer.callback_handler.callbacks, clock = (
            trainer.callback_handler.callbacks[:1],
            Clock(warm),
        )
        trainer.add_callback(clock)
        masks = [b["attention_mask"] for b in trainer.get_train_dataloader()]  # text, position
        skip = warm * settings["gradient_accumulation"]
        tokens, width = (
            sum(int(m.sum()) for m in masks[skip:]),
            sum(m.shape[1] for m in masks) / len(masks),
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    held = (
        torch.cuda.max_memory_allocated() / 2**30
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    rate = tokens / clock.seconds()
    found = dict(
        tokens_per_second=rate,
        seconds_per_step=clock.seconds() / steps,
        peak_gib=held,
        flops_utilisation=rate
        * flops_a_token(trainer.model, settings["method"] == "full", width)
        / (peak * 1e12)
        if peak
        else float("nan"),
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return [
        dict(
            model=f"{name}{'-tiny' if tiny else ''}",
            tuning=settings["method"],
            metric=k,
            value=float(f"{v:.4g}"),
            n=steps,
            device=device,
            torch=torch.__version__,
        )
        for k, v in found.items()
    ]


def main(words=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--only", choices=list(SHAPES))
    ask.add_argument("--tiny", action="store_true")
    ask.add_argument("--steps", type=int, default=30)
    ask.add_argument("--warm", type=int, default=5)
    ask.add_argument("--peak", type=float)
    ask.add_argument("--output", default="results/gpu_training.csv")
    given = ask.parse_args(words)
    if not torch.cuda.is_available() and not given.tiny:
        sys.exit("no GPU here: this measures one; --tiny --output FILE tries the script on a CPU")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak, rows = given.peak or next((v for k, v in PEAK.items() if k in card), None), []
    for name in [given.only] if given.only else SHAPES:
        with tempfile.TemporaryDirectory() as d:
            rows += measure(name, Path(d), given.tiny, given.steps, given.warm, peak)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    table = tidy(rows)
    print(table[["model", "tuning", "metric", "value", "device"]].to_string(index=False))
    write_table(table, given.output)


if __name__ == "__main__":
    main()
