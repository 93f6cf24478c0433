"""What the engine costs.

The same notebooks under Snakemake and papermill, one after another, and as plain code in one process."""

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
TINY = ROOT / "tests" / "tiny.yaml"
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


def measured(command, **how):
    "(wall seconds, CPU seconds) of a process."
    begin, used = time.time(), cpu(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *command], check=True, stdout=subprocess.DEVNULL, **how)
    return time.time() - begin, cpu(resource.RUSAGE_CHILDREN) - used


def under_the_engine(place):
    changes = [word for change in CHANGES for word in ("--set", change)]
    run = ["run", str(TINY), "--run-dir", f"{place}/grid", "--cores", "1"]
    return measured(["from xgdetox.cli import main; main()", *run, *changes], cwd=ROOT)


def in_a_process(place):
    Path(place, "plain").mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import bench_grid as b; "
        f"b.in_one_process(b.load_grid(b.TINY, b.CHANGES), {place + '/plain'!r})"
    )
    return measured([code])


def main():
    os.environ["OMP_NUM_THREADS"] = "1"
    n = len(jobs(load_grid(TINY, CHANGES)))
    with tempfile.TemporaryDirectory() as place:
        (wall, engine), (plain_wall, plain) = under_the_engine(place), in_a_process(place)
    found = {
        "grid_cpu_seconds": engine,
        "one_process_cpu_seconds": plain,
        "overhead_cpu_seconds_per_notebook": (engine - plain) / n,
        "grid_wall_seconds": wall,
        "one_process_wall_seconds": plain_wall,
        "overhead_wall_seconds_per_notebook": (wall - plain_wall) / n,
    }
    for metric, value in found.items():
        print(f"{metric:36s} {value:8.2f}")
    rows = [dict(metric=metric, value=value, n=n) for metric, value in found.items()]
    write_table(tidy(rows), ROOT / "results" / "bench_grid.csv")


if __name__ == "__main__":
    main()
