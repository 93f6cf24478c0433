"Shared by all tests: no hub, no global threads, the mark `slow`, where the real data lies."

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slow: kills, vLLM, SLURM, browser; run by .ci/run after make test"
    )
    config.addinivalue_line(
        "markers",
        "real: needs the judges of xgdetox[judge]; skips without them, run again by make slow, which installs them",
    )


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def real_data() -> Path:
    "The folder of real data; the test skips where it is absent."
    folder = Path(os.environ.get("XGDETOX_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "prompts").is_dir():
        pytest.skip(f"no real data at {folder}: set XGDETOX_DATA")
    return folder


@pytest.fixture
def said(capfd):
    "Run the command line in this process; returns its exit code, what it printed, and what it said on stderr."
    from xgdetox import cli

    def said(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(w) for w in words])
        heard = capfd.readouterr()
        return end.value.code, heard.out, heard.err

    return said


@pytest.fixture
def run(said):
    "A command that must succeed; returns what it printed."

    def run(*words):
        code, out, err = said(*words)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def run_grid():
    """A command that runs a grid and must succeed, in a process of its own; returns what it printed.

    Snakemake writes to the stream that stood when it was imported, which pytest closes with the test."""

    def run_grid(*words):
        command = [sys.executable, "-m", "xgdetox.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_grid


@pytest.fixture
def fails(said):
    "A command that must end with exit code 2 and one line on stderr, which is returned."

    def fails(*words):
        code, _, err = said(*words)
        assert (
            code == 2
            and err.count("\n") == 1
            and err.startswith("xgdetox: ")
            and "Traceback" not in err
        ), err
        return err

    return fails
