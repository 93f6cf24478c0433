"""vLLM's CPU build, for real, in its own environment (`XGDETOX_VLLM_PYTHON`, or .venv-vllm made by `make vllm`).

One engine start takes about 10 seconds, so each family is one process."""

import json, os, subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FAMILIES = ("gpt2", "bloom", "llama", "cohere", "gemma2", "gemma3", "qwen2", "qwen3")
pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
import vllm_facts
facts = getattr(vllm_facts, {what!r})({family!r}, {folder!r})
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
