"A new stage is one object and one notebook: the checks, `plan`, the Snakefile and the tables ask the object."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGE = """

def _letters_jobs(stage, c):
    "One job per checkpoint: the letters of its name."
    settings = c.settings(stage)
    p = dict(name=c.id, settings=settings, labels=c.labels, table=f"parts/letters/{c.id}.csv")
    return [stage.job(c.id, p, [], 0, c.labels)]


STAGES["letters"] = Stage(
    name="letters",
    outputs=("parts/letters/{job}.csv",),
    jobs=_letters_jobs,
    settings={"times": (Count, 1)},
    tokens=lambda count: 10,
)
"""
CELLS = [
    "name, settings, labels, table = 'm', {'times': 1}, {}, 'letters.csv'",
    "from xgdetox.stats import tidy, write_table",
    "value = settings['times'] * len(name)\n"
    "write_table(tidy([{**labels, 'metric': 'letters', 'value': value}]), table)",
]
GRID = "models: {world: {path: world}}\nlanguages: [en]\nstages: [letters]\nletters: {times: 2}\n"


@pytest.fixture
def clone(tmp_path):
    "A copy of the project with a stage `letters`, and a grid that names it."
    for name in ("xgdetox", "experiments", "nbs/experiments"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    with open(tmp_path / "xgdetox" / "grid" / "stages.py", "a") as f:
        f.write(STAGE)
    path = tmp_path / "nbs" / "experiments" / "mass.ipynb"
    notebook = json.loads(path.read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    notebook["cells"] = [{**c, "source": s} for c, s in zip(code, CELLS, strict=True)]
    path.with_name("letters.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "toy.yaml").write_text(GRID)
    return tmp_path


def xgdetox(clone, *words):
    env = {**os.environ, "PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "xgdetox.cli", *words]
    return subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)


def test_a_new_stage_runs_from_the_command_line_to_its_table(clone):
    planned = xgdetox(clone, "plan", "toy.yaml")
    assert "letters     1" in planned.stdout, planned.stderr
    fault = xgdetox(clone, "plan", "toy.yaml", "--set", "letters.tims=3")
    assert "toy.yaml" in fault.stderr and "did you mean times?" in fault.stderr
    done = xgdetox(clone, "run", "toy.yaml", "--set", "stages=[letters, report]")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = pd.read_csv(clone / "runs" / "toy" / "tables" / "letters.csv").to_dict("records")
    assert row["value"] == 2 * len("world-base") and row["model"] == "world"
