"Shared by all tests: no hub, no global threads, the mark `slow`, where the real data lies."
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: kills, vLLM, SLURM, browser; run by .ci/run after make test")


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def real_data() -> Path:
    "The folder of real data; the test skips where it is absent."
    folder = Path(os.environ.get("XGDETOX_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "prompts").is_dir(): pytest.skip(f"no real data at {folder}: set XGDETOX_DATA")
    return folder
