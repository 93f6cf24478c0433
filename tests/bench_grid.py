"What a notebook costs to start: papermill with a kernel, as a fork, and its cells in one process; all in one run."

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xgdetox.grid.forks import server
from xgdetox.grid.jobs import jobs
from xgdetox.grid.load import load_grid
from xgdetox.grid.runner import prepare_environment
from xgdetox.stats import tidy, write_table

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "nbs" / "experiments"
CHANGES = ["tunings={}", "stages=[generate, score, mass, quality, retrieve]", "languages=[en, de]"]
PAPERMILL = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-level", "WARNING"]
ONE_PROCESS = (
    "import sys; sys.path.insert(0, sys.argv[1]); import bench_grid; bench_grid.in_one_process()"
)


def grid():
    return load_grid(ROOT / "tests" / "tiny.yaml", CHANGES)


def in_one_process():
    "Run every job's cells here, with its parameters in place of the defaults."
    for job in jobs(grid()):
        page = json.loads((NOTEBOOKS / f"{job.stage}.ipynb").read_text())
        names = {}
        for cell in page["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names.update(json.loads(json.dumps(job.parameters)))


def call(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def with_papermill():
    for job in jobs(grid()):
        Path(job.log).parent.mkdir(parents=True, exist_ok=True)
        parameters = json.dumps(job.parameters)
        call(*PAPERMILL, str(NOTEBOOKS / f"{job.stage}.ipynb"), job.log, "-y", parameters)


def as_forks():
    with server():
        for job in jobs(grid()):
            page, parameters = NOTEBOOKS / f"{job.stage}.ipynb", json.dumps(job.parameters)
            call(sys.executable, "-m", "xgdetox.grid.notebook", str(page), job.log, parameters)


def plain():
    call(sys.executable, "-c", ONE_PROCESS, str(ROOT / "tests"))


def measure(run):
    "CPU and wall seconds of `run` in a folder of its own, of the processes that it starts."
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare_environment(folder)
        begin, used = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        run()
        wall, now = time.time() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        os.chdir(here)
    return now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, wall


def main():
    n, rows = len(jobs(grid())), []
    taken = {run.__name__: measure(run) for run in (plain, with_papermill, as_forks)}
    for i, kind in enumerate(("cpu", "wall")):
        for name, seconds in taken.items():
            rows.append(dict(metric=f"{name}_{kind}_seconds", value=seconds[i], n=n))
        start = {name: (taken[name][i] - taken["plain"][i]) / n for name in taken}
        for name in ("with_papermill", "as_forks"):
            rows.append(dict(metric=f"{name}_{kind}_seconds_per_start", value=start[name], n=n))
        ratio = taken["as_forks"][i] / taken["with_papermill"][i]
        rows.append(dict(metric=f"as_forks_over_with_papermill_{kind}", value=ratio, n=n))
    for row in rows:
        print(f"{row['metric']:40s} {row['value']:8.2f}")
    write_table(tidy(rows), ROOT / "results" / "bench_grid.csv")


if __name__ == "__main__":
    main()
