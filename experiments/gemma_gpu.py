"""The jobs of a grid in one process on one GPU: no kernel and no import per job, the most important arms first.

    python experiments/gemma_gpu.py [--grid GRID] [--run-dir RUN] [--minutes 10]

Planned for 10 minutes on one GPU and not measured yet. When the time is up no further job is started, and the same
command goes on later. Stages that judge texts want CPU cores; they are left to `xgdetox run GRID --run-dir RUN`,
which takes over what lies in the folder.
"""

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path

LATER = ("score", "outcome", "quality", "report")  # for many CPU cores


def importance(job, grid: dict) -> tuple:
    "Base models first, then seed by seed the tunings in the order of the grid file, each through its stages."
    from xgdetox.grid.stages import STAGES

    labels, tunings = job.labels, ["base", *grid["tunings"]]
    tuning = labels.get("tuning", "base")
    of_base = tuning == "base"
    place = tunings.index(tuning) if tuning in tunings else len(tunings)
    return (not of_base, labels.get("seed", 0), place, list(STAGES).index(job.stage))


def in_order(jobs: list, grid: dict, run: Path) -> list:
    "The jobs by importance, none before those whose outputs it needs; without those that wait for a stage left out."
    made_by = {output for job in jobs for output in job.outputs}
    waiting = sorted(jobs, key=lambda job: importance(job, grid))
    ready, ordered = set(), []

    def lacking(need: str) -> bool:
        return not (
            os.path.isabs(need) or need in ready or (run / need).exists() and need not in made_by
        )

    while waiting:
        job = next((j for j in waiting if not any(map(lacking, j.needs))), None)
        if job is None:
            break
        waiting.remove(job)
        ordered.append(job)
        ready |= set(job.outputs)
    return ordered


def run_job(job, notebooks: Path) -> None:
    "Run a job's notebook here: its code cells, with the job's parameters after the cell that names them."
    page = json.loads((notebooks / f"{job.stage}.ipynb").read_text(encoding="utf-8"))
    names = {"__name__": "__main__"}
    for cell in page["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), f"{job.stage}.ipynb", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(copy.deepcopy(job.parameters))


def prepare(grid: dict, run: Path) -> None:
    "The run's folder with its grid and the folders of all outputs; fast products on a GPU."
    import torch

    from xgdetox.files import write_json
    from xgdetox.grid.jobs import jobs

    torch.set_float32_matmul_precision("high")  # TF32, where a model is read in 32 bits
    write_json(run / "grid.json", grid)
    for job in jobs(grid):
        for output in job.outputs:
            (run / output).parent.mkdir(parents=True, exist_ok=True)


def work(ordered: list, run: Path, notebooks: Path, seconds: float) -> list:
    "Run what is not done until the time is up, in the run's folder; the jobs that are left."
    import torch

    started, left = (
        time.time(),
        [j for j in ordered if not all((run / o).exists() for o in j.outputs)],
    )
    here = os.getcwd()
    os.chdir(run)
    try:
        while left and time.time() - started < seconds:
            job, begun = left[0], time.time()
            run_job(job, notebooks)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            left.pop(0)
            print(f"{job.stage:14s} {job.name:24s} {time.time() - begun:7.1f} s", flush=True)
    finally:
        os.chdir(here)
    return left


def asked(words, root: Path):
    "What the command line says."
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--grid", default=str(root / "experiments" / "gemma-gpu.yaml"))
    ask.add_argument("--run-dir", type=Path)
    ask.add_argument("--minutes", type=float, default=10)
    ask.add_argument("--later", nargs="*", default=LATER, help="stages that are left out")
    return ask.parse_args(words)


def main(words=None) -> int:
    "Run the grid; 0 where all of it is done, 3 where something is left."
    from xgdetox.grid.jobs import jobs
    from xgdetox.grid.load import load_grid
    from xgdetox.grid.steps import project_root
    from xgdetox.grid.tables import summarise

    root = project_root()
    given = asked(words, root)
    grid = load_grid(given.grid)
    run = (given.run_dir or root / "runs" / grid["name"]).resolve()
    prepare(grid, run)
    wanted = [job for job in jobs(grid) if job.stage not in given.later]
    ordered = in_order(wanted, grid, run)
    left = work(ordered, run, root / "nbs" / "experiments", 60 * given.minutes)
    summarise(run)
    print(f"{len(ordered) - len(left)} of {len(ordered)} jobs are done")
    if left:
        print("left:", ", ".join(f"{j.stage} {j.name}" for j in left[:6]), "...")
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
