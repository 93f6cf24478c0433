"""What generation costs on one CPU core, on a 12-layer, 768-wide GPT-2 with random weights.

Our loop against transformers' `generate(num_return_sequences=25)` and against vLLM's CPU build (where
`XGDETOX_VLLM_PYTHON` or .venv-vllm has it); CPU time, within one run. Writes results/bench_generation.csv, and
results/bench_gemma.csv for Gemma 3 270M where it is at hand (`gemma` alone measures only that).

`python tests/bench_generation.py gpu` measures our loop on a GPU: continuations per second of a 1.3B and a 7B shape
against the bound of the card's bandwidth, into results/bench_generation_gpu.csv."""

import os, subprocess, sys, tempfile, time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from xgdetox.sampling import row_seed, sample

sys.path.insert(0, str(Path(__file__).parent))
from measuring import keep, least, ratio, say

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, N, NEW = 16384, 25, 20
PROMPTS, LENGTH = 4, 16  # 16 tokens are the mean of RTP-LX in the world's kind of tokens


def setting(layers=12, wide=768):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=wide,
        n_layer=layers,
        n_head=wide // 64,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    ids = torch.randint(
        1, VOCABULARY, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    return GPT2LMHeadModel(config).eval(), ids


def ours(model, ids, rows=None):
    step = max(1, (rows or 256) // N)
    for i in range(0, len(ids), step):
        some = ids[i : i + step]
        mask = torch.ones_like(some)
        sample(
            model,
            dict(input_ids=some, attention_mask=mask, position_ids=mask.cumsum(1) - 1),
            N,
            NEW,
            0.9,
            0.8,
            [row_seed(0, "en", str(j)) for j in range(len(some) * N)],
            stop=[],
            pad=0,
        )


def theirs(model, ids, batch=4):
    for i in range(0, len(ids), batch):
        some = ids[i : i + batch]
        model.generate(
            some,
            attention_mask=torch.ones_like(some),
            do_sample=True,
            temperature=0.9,
            top_p=0.8,
            top_k=0,
            num_return_sequences=N,
            max_new_tokens=NEW,
            eos_token_id=None,
            pad_token_id=0,
        )


VLLM = """
import os, sys, time
from xgdetox.engines import start_vllm_quietly
start_vllm_quietly()
from vllm import LLM, SamplingParams, TokensPrompt
import torch
ids = torch.load(sys.argv[2]).tolist()
limits = dict(max_model_len=256, max_num_batched_tokens=8192, enable_chunked_prefill=False)
llm = LLM(model=sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, **limits)
same = dict(n={n}, temperature=.9, top_p=.8, max_tokens={new}, ignore_eos=True, detokenize=False)
how = [SamplingParams(seed=i, **same) for i in range(len(ids))]
go = lambda: llm.generate([TokensPrompt(prompt_token_ids=x) for x in ids], how, use_tqdm=False)
go(); start = time.process_time(); go(); print("SECONDS", time.process_time() - start)
"""


def vllm(model, ids):
    "CPU seconds of vLLM for the same work, engine start apart; None without it."
    python = Path(os.environ.get("XGDETOX_VLLM_PYTHON") or ROOT / ".venv-vllm/bin/python")
    if not python.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        torch.save(ids, folder + "/ids")
        p = subprocess.run(
            [str(python), "-c", VLLM.format(n=N, new=NEW), folder, folder + "/ids"],
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_CACHE_ROOT": folder},
        )
    lines = [x for x in p.stdout.splitlines() if x.startswith("SECONDS")]
    return float(lines[0].split()[1]) if lines else print(p.stderr[-500:])


SHAPES = {
    "1.3B": dict(
        hidden_size=2048, num_hidden_layers=24, intermediate_size=5504, num_attention_heads=16
    ),
    "7B": dict(
        hidden_size=4096, num_hidden_layers=32, intermediate_size=11008, num_attention_heads=32
    ),
}


def wall(f, device):
    "Seconds until the device has done all of `f`."
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.time()
    f()
    wait()
    return time.time() - start


def bandwidth(device, size=2**30):
    "Bytes a second that the card moves in a copy, measured: it is read once and written once."
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * size / min(wall(lambda: b.copy_(a), device) for _ in range(3))


def gpu_model(shape, device):
    "A Llama of a shape with random weights in bfloat16."
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, **shape)).eval()
    torch.set_default_dtype(torch.float32)
    return model


def gpu_row(name, shape, device, fast, prompts, rows):
    "Continuations per second of one shape beside those that the bandwidth allows: a step reads every weight."
    card = torch.cuda.get_device_name() if device == "cuda" else device
    model, texts = gpu_model(shape, device), prompts * N
    ids = torch.randint(1, 32000, (prompts, 24), device=device)
    ours(model, ids[: rows // N], rows)
    seconds = wall(lambda: ours(model, ids, rows), device)
    steps, weights = -(-texts // rows) * NEW, sum(p.numel() * 2 for p in model.parameters())
    bound = steps * weights / fast
    print(
        f"{name} on {card}: {texts / seconds:.0f} continuations per second; "
        f"its {fast / 1e9:.0f} GB per second allow {texts / bound:.0f}",
        flush=True,
    )
    what = f"{name} on {card}, continuations a second"
    seconds_of = dict(ours=round(seconds, 2), other=round(bound, 2))
    return dict(what=what, value=round(texts / seconds, 1), wanted="") | seconds_of


def gpu(device="cuda", shapes=SHAPES, prompts=160, rows=1000):
    "A row per shape, one model at a time in the card's memory."
    fast = bandwidth(device)
    for name, shape in shapes.items():
        yield gpu_row(name, shape, device, fast, prompts, rows)
        if device == "cuda":
            torch.cuda.empty_cache()


SENTENCES = [
    "The old man walked down to the river and",
    "She opened the letter and read that her",
    "In the middle of the night the dog began",
    "The government said on Monday that it would",
    "My brother never told me why he had",
    "When the train stopped, a woman in a",
    "I went to the market to buy some",
    "The best way to learn a language is",
    "Nobody in the village remembered when the",
    "He looked at the map and thought that",
]
GEMMA_N, GEMMA_READ = 10, 1000  # continuations of each sentence; tokens read in one pass


def gemma_theirs(model, ids, batch):
    "Ten continuations of each sentence by `generate`, some sentences at a time."
    how = dict(do_sample=True, temperature=0.9, top_p=0.8, top_k=0, pad_token_id=0)
    size = dict(num_return_sequences=GEMMA_N, max_new_tokens=NEW, min_new_tokens=NEW)
    for some in ids.split(batch):
        model.generate(some, attention_mask=torch.ones_like(some), **how, **size)


def gemma_speed(model, ids, batches) -> dict:
    """CPU seconds of one thread.

    Ten continuations of each sentence by our loop; the same by `generate` in the better of `batches`; and a pass over
    `GEMMA_READ` tokens without the head."""
    mask = torch.ones_like(ids)
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=mask.cumsum(1) - 1)
    seeds = [row_seed(0, "en", f"{i} {s}") for i in range(len(ids)) for s in range(GEMMA_N)]
    text = ids.flatten().repeat(GEMMA_READ // ids.numel() + 1)[:GEMMA_READ].view(20, -1)
    with torch.inference_mode():
        ours = least(lambda: sample(model, inputs, GEMMA_N, NEW, 0.9, 0.8, seeds, stop=[], pad=0))
        read = least(lambda: model.base_model(input_ids=text, use_cache=False), 2)
        theirs = min(least(lambda: gemma_theirs(model, ids, batch)) for batch in batches)
    return dict(ours=ours, read=read, theirs=theirs)


def rate(what, n, seconds) -> dict:
    return dict(what=what, value=round(n / seconds, 1), wanted="", ours=round(seconds, 2), other="")


def gemma():
    "Rows for results/bench_gemma.csv; none, with the reason said, where the model cannot be had."
    from xgdetox.files import InputError
    from xgdetox.models import load
    from xgdetox.weights import model_folder

    try:
        folder = model_folder("gemma-3-270m")
    except InputError as e:
        print(f"gemma is left out: {e}")
        return []
    torch.set_num_threads(1)
    model, tokenizer = load(folder, dtype=torch.bfloat16)
    ids = torch.tensor([[2, *tokenizer(s)["input_ids"]][:7] for s in SENTENCES])
    half, full = gemma_speed(model, ids, (1, 5)), gemma_speed(model.float(), ids, (1,))
    return gemma_rows(half, full, len(ids) * GEMMA_N)


def gemma_rows(half, full, texts) -> list[dict]:
    "Ratios and rates from the seconds in bfloat16 (`half`) and float32 (`full`)."
    generate = "generate(num_return_sequences=10) / ours"
    return [
        ratio(f"{generate}, bfloat16", half["theirs"], half["ours"], 2),
        ratio(f"{generate}, float32", full["theirs"], full["ours"]),
        ratio("float32 / bfloat16, ours", full["ours"], half["ours"]),
        ratio("float32 / bfloat16, reading", full["read"], half["read"]),
        rate("texts of 20 tokens a second, bfloat16", texts, half["ours"]),
        rate("texts of 20 tokens a second, float32", texts, full["ours"]),
        rate("tokens read a second, bfloat16", GEMMA_READ, half["read"]),
        rate("tokens read a second, float32", GEMMA_READ, full["read"]),
    ]


def keep_gemma():
    "Measure Gemma, say it and write it; nothing where it is not at hand."
    rows = gemma()
    say(rows)
    if rows:
        keep(rows, "bench_gemma")


def main():
    torch.set_num_threads(1)
    model, ids = setting()
    ours(model, ids[:1])
    theirs(model, ids[:1])
    mine = least(lambda: ours(model, ids))
    other = min(least(lambda: theirs(model, ids, batch)) for batch in (4, 1))
    rows = [ratio("generate(num_return_sequences=25) / ours", other, mine, 1.4)]
    third = vllm(model, ids)
    if third is not None:
        rows.append(ratio("vLLM eager / ours", third, mine))
    else:
        print("no vLLM here: `make vllm` makes its environment")
    say(rows)
    print(f"ours: {PROMPTS * N * NEW / mine:.0f} tokens per CPU second")
    keep(rows, "bench_generation")


if __name__ == "__main__":
    if sys.argv[1:] == ["gemma"]:
        keep_gemma()
    elif sys.argv[1:] != ["gpu"]:
        main()
        keep_gemma()
    elif torch.cuda.is_available():
        keep(list(gpu()), "bench_generation_gpu")
    else:
        sys.exit("no GPU here: nothing is measured")
