"""vLLM's CPU build, for real, in its own environment (`XGDETOX_VLLM_PYTHON`, or .venv-vllm made by `make vllm`).

One engine start takes about 10 seconds, so each family is one process."""

import json, os, subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FAMILIES = ("gpt2", "bloom", "llama", "cohere", "gemma2", "gemma3", "qwen2", "qwen3")
pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import torch
from tiny_models import model, prompt_files
from xgdetox.generation import generate, read_generations
from xgdetox.files import InputError

family, folder, what = {family!r}, Path({folder!r}), {what!r}
how = dict(n=3, max_tokens=8, batch_rows=12, enforce_eager=True)
files, facts = prompt_files(folder, n=6), {{}}
def text(paths): return {{k: p.read_text(encoding="utf-8") for k, p in paths.items()}}
lm, words = model(family, folder / "m", **({{"tie_word_embeddings": False}} if what == "untied" else {{}}))

if what == "parity":
    for temperature in (0, .9):
        pair = [text(generate(folder / "m", files, folder / "out", name=f"{{b}}{{temperature}}", backend=b, temperature=temperature, **how)) for b in ("vllm", "transformers")]
        facts[f"equal at {{temperature}}"] = pair[0] == pair[1]
        if temperature: facts["lines"], facts["distinct"] = (f([l for t in pair[0].values() for l in t.splitlines()]) for f in (len, lambda x: len(set(x))))
    lines = files["en"].read_text().splitlines(); sampled = pair[0]["en"].splitlines()
    files["en"].write_text("".join(l + "\\n" for l in lines[::-1][:4]))          # another order, other neighbours
    again = text(generate(folder / "m", {{"en": files["en"]}}, folder / "out", name="again", backend="vllm", **how))["en"].splitlines()
    facts["seeded rows stay"] = set(again) <= set(sampled) and len(again) == 12
    facts["dtype"] = json.loads((folder / "out/vllm0.9/manifest.json").read_text())["files"]["output-rtp_lx_en.json"]["settings"]["dtype"]
if what == "adapter":
    from peft import LoraConfig, get_peft_model
    tuned = get_peft_model(lm, LoraConfig(r=4, target_modules={{"gpt2": ["c_attn", "c_fc"], "bloom": ["query_key_value"]}}.get(family, "all-linear"), fan_in_fan_out=family == "gpt2"))
    for name, p in tuned.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=.1)
    tuned.save_pretrained(folder / "adapter")
    pair = [text(generate(folder / "m", files, folder / "out", name=b, backend=b, adapter=folder / "adapter", temperature=0, **how)) for b in ("vllm", "transformers")]
    facts["equal"] = pair[0] == pair[1]
    facts["differs from base"] = pair[0] != text(generate(folder / "m", files, folder / "out", name="base", backend="transformers", temperature=0, **how))
if what == "untied":
    try: generate(folder / "m", files, folder / "out", backend="vllm", **how)
    except InputError as e: facts["refused"] = str(e)
print("FACTS" + json.dumps(facts), flush=True)
"""


@pytest.fixture(scope="module")
def python():
    found = os.environ.get("XGDETOX_VLLM_PYTHON") or HERE.parent / ".venv-vllm" / "bin" / "python"
    if not Path(found).exists():
        pytest.skip("no environment with vLLM: `make vllm`, or set XGDETOX_VLLM_PYTHON")
    return str(found)


def run(python, family, folder, what):
    script = SCRIPT.format(
        paths=[str(HERE), str(HERE.parent)], family=family, folder=str(folder), what=what
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    p = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=900, env=env)
    lines = [x for x in p.stdout.splitlines() if x.startswith("FACTS")]
    assert lines, p.stderr[-2000:]
    return json.loads(lines[0][5:])


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_and_transformers_agree(python, tmp_path, family):
    facts = run(python, family, tmp_path, "parity")
    assert (
        facts["equal at 0"]
        and facts["dtype"] == "float32"
        and facts["lines"] == 36
        and facts["distinct"] > 30
    )
    assert (
        facts["seeded rows stay"] and not facts["equal at 0.9"]
    )  # each backend has its own random numbers


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # a LoRA request, and merged
def test_vllm_takes_adapters(python, tmp_path, family):
    assert run(python, family, tmp_path, "adapter") == {"equal": True, "differs from base": True}


def test_untied_cohere_is_refused(python, tmp_path):
    assert "use --backend transformers" in run(python, "cohere", tmp_path, "untied")["refused"]
