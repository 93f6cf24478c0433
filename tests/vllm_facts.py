"What test_engines_vllm.py asks of vLLM, in a process of its own; each function returns facts of a tiny model."

import json
from pathlib import Path

from tiny_models import model, prompt_files
from xgdetox.files import InputError
from xgdetox.generation import generate

SMALL = dict(n=3, max_tokens=8, batch_rows=12, enforce_eager=True)
BACKENDS = ("vllm", "transformers")
TARGETS = {"gpt2": ["c_attn", "c_fc"], "bloom": ["query_key_value"]}  # what LoRA tunes, if not all


def written(folder, files, name, **how) -> dict:
    "{language: the text of the file} that `generate` writes."
    paths = generate(folder / "m", files, folder / "out", name=name, **SMALL, **how)
    return {language: path.read_text(encoding="utf-8") for language, path in paths.items()}


def both(folder, files, suffix="", **how) -> list[dict]:
    "What vLLM writes, and what transformers does."
    return [written(folder, files, f"{b}{suffix}", backend=b, **how) for b in BACKENDS]


def parity(family: str, folder: str) -> dict:
    "Greedy texts are the same; sampled ones follow the seed of their own row."
    folder, files = Path(folder), prompt_files(folder, n=6)
    model(family, folder / "m")
    greedy = both(folder, files, "0", temperature=0)
    sampled = both(folder, files, "0.9", temperature=0.9)
    lines = [line for text in sampled[0].values() for line in text.splitlines()]
    manifest = json.loads((folder / "out/vllm0.9/manifest.json").read_text())
    return {
        "equal at 0": greedy[0] == greedy[1],
        "equal at 0.9": sampled[0] == sampled[1],
        "lines": len(lines),
        "distinct": len(set(lines)),
        "seeded rows stay": rows_stay(folder, files, sampled[0]["en"].splitlines()),
        "dtype": manifest["files"]["output-rtp_lx_en.json"]["settings"]["dtype"],
    }


def rows_stay(folder, files, sampled: list[str]) -> bool:
    "Whether prompts in another order, with other neighbours, are continued as before."
    lines = files["en"].read_text().splitlines()
    files["en"].write_text("".join(f"{line}\n" for line in lines[::-1][:4]))
    again = written(folder, {"en": files["en"]}, "again", backend="vllm")["en"].splitlines()
    return set(again) <= set(sampled) and len(again) == 12


def adapter(family: str, folder: str) -> dict:
    "An adapter does the same under both, and something."
    import torch
    from peft import LoraConfig, get_peft_model

    folder, files = Path(folder), prompt_files(folder, n=6)
    lm, _ = model(family, folder / "m")
    targets = TARGETS.get(family, "all-linear")
    settings = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=family == "gpt2")
    tuned = get_peft_model(lm, settings)
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    tuned.save_pretrained(folder / "adapter")
    vllm, transformers = both(folder, files, adapter=folder / "adapter", temperature=0)
    base = written(folder, files, "base", backend="transformers", temperature=0)
    return {"equal": vllm == transformers, "differs from base": vllm != base}


def untied(family: str, folder: str) -> dict:
    "What is said of a model with a head of its own."
    folder = Path(folder)
    model(family, folder / "m", tie_word_embeddings=False)
    try:
        written(folder, prompt_files(folder, n=6), None, backend="vllm")
    except InputError as e:
        return {"refused": str(e)}
    return {}
