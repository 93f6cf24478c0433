"What the engine costs: the same notebooks under Snakemake and papermill, one after another, and as plain code in one process."

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xgdetox.grid.jobs import jobs
from xgdetox.grid.load import load_grid
from xgdetox.stats import tidy, write_table

ROOT = Path(__file__).resolve().parents[1]
CHANGES = ["tunings={}", "stages=[generate, score, mass, quality, retrieve]", "languages=[en, de]"]


def cpu(who):
    return sum(resource.getrusage(who)[:2])


def in_one_process(grid, folder):
    "Run every job's cells here, with its parameters in place of the defaults."
    here = os.getcwd()
    os.chdir(folder)
    for job in jobs(grid):
        cells = [
            c
            for c in json.loads((ROOT / "nbs" / "experiments" / f"{job.stage}.ipynb").read_text())[
                "cells"
            ]
            if c["cell_type"] == "code"
        ]
        names = {}
        for cell in cells:
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names.update(json.loads(json.dumps(job.parameters)))
    os.chdir(here)


def main():
    os.environ["OMP_NUM_THREADS"] = "1"
    grid = load_grid(ROOT / "tests" / "tiny.yaml", CHANGES)
    with tempfile.TemporaryDirectory() as place:
        words = [w for c in CHANGES for w in ("--set", c)]
        begin, used = time.time(), cpu(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from xgdetox.cli import main; main()",
                "run",
                str(ROOT / "tests" / "tiny.yaml"),
                "--run-dir",
                f"{place}/grid",
                "--cores",
                "1",
                *words,
            ],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        wall, engine = time.time() - begin, cpu(resource.RUSAGE_CHILDREN) - used
        Path(place, "plain").mkdir()
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import bench_grid as b; b.in_one_process(b.g.load_grid(b.ROOT / 'tests' / 'tiny.yaml', b.CHANGES), {place + '/plain'!r})"
        begin, used = time.time(), cpu(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        plain_wall, plain = time.time() - begin, cpu(resource.RUSAGE_CHILDREN) - used
    n = len(jobs(grid))
    rows = [
        dict(metric=m, value=v, n=n)
        for m, v in (
            ("grid_cpu_seconds", engine),
            ("one_process_cpu_seconds", plain),
            ("overhead_cpu_seconds_per_notebook", (engine - plain) / n),
            ("grid_wall_seconds", wall),
            ("one_process_wall_seconds", plain_wall),
            ("overhead_wall_seconds_per_notebook", (wall - plain_wall) / n),
        )
    ]
    for r in rows:
        print(f"{r['metric']:36s} {r['value']:8.2f}")
    write_table(tidy(rows), ROOT / "results" / "bench_grid.csv")


if __name__ == "__main__":
    main()
