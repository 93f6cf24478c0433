"The grid: its list of jobs, what reruns and what does not, locks, crashes, SLURM."
import filecmp
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from xgdetox import grid as g
from xgdetox.cli import main
from xgdetox.data import InputError

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
RUN = [sys.executable, "-c", "from xgdetox.cli import main; main()", "run", str(TINY)]
SHORT = ["--set", "stages=[generate, score, mass, retrieve, report]", "--set", "tunings={}"]


def xgdetox(folder, *words, timeout=900, **env):
    return subprocess.run([*RUN, "--run-dir", str(folder), *words], capture_output=True, text=True, timeout=timeout, cwd=ROOT, env={**os.environ, **env})


def executed(folder):
    "Start of every executed notebook: what was run again has another one."
    return {str(p.relative_to(folder)): g.read_log(p).get("start_time") for p in Path(folder).glob("notebooks/*/*.ipynb")}


def same_tables(a, b):
    names = sorted(p.name for p in (a / "tables").glob("*.csv") if p.name != "durations.csv")
    assert names == sorted(p.name for p in (b / "tables").glob("*.csv") if p.name != "durations.csv") and len(names) > 3
    return [n for n in names if not filecmp.cmp(a / "tables" / n, b / "tables" / n, shallow=False)]


GRIDS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_jobs_fit_together(path):
    "Every file that a job waits for is another job's output or data; no two jobs write one file; an order exists."
    grid = g.load_grid(path)
    made = {}
    for job in g.jobs(grid):
        for need in job.needs: assert os.path.isabs(need) or need in made, (job.stage, job.name, need)
        for output in job.outputs: assert made.setdefault(output, job) is job
        params = set(json.loads(json.dumps(job.parameters)))
        notebook = json.loads((ROOT / "nbs" / "experiments" / f"{job.stage}.ipynb").read_text())
        cell = next("".join(c["source"]) for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
        names = {line.split("=")[0].strip() for line in cell.splitlines() if "=" in line and not line.startswith((" ", "#"))}
        assert params <= names, (job.stage, params - names)


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "experiments").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_small_and_free_of_the_engine(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert len(cells) <= 6 and sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
    assert "snakemake" not in path.read_text()


def test_a_setting_reaches_what_depends_on_it_and_nothing_else():
    def parameters(*changes): return {(j.stage, j.name): j.parameters for j in g.jobs(g.load_grid(TINY, changes))}
    before = parameters()
    def changed(*changes): return {stage for (stage, name), p in parameters(*changes).items() if before[stage, name] != p}
    assert changed("generate.n=4") == {"generate"}
    assert changed("probe.limit=299") == {"probe"} and changed("intervene.offsets=[-2]") == {"intervene"}
    assert changed("tunings.dpo.max_steps=5") == {"train"} and changed("about=other") == set()


def test_bos_is_one_key_for_training_and_all_that_reads_texts():
    "It reaches every step that reads texts with the model; a step or a tuning that names its own keeps it; the default changes no job of before."
    def bos(*changes):
        found = {j.stage: j.parameters.get("overrides", j.parameters.get("settings", {})).get("bos") for j in g.jobs(g.load_grid(TINY, changes))}
        return {stage: value for stage, value in found.items() if value}
    reads = {"generate", "mass", "quality", "probe", "value_vectors", "intervene", "activations", "retrieve"}
    assert bos() == {"generate": "tokenizer", "mass": "tokenizer"}
    assert bos("bos=paper") == dict.fromkeys(reads | {"train"}, "paper")
    assert bos("bos=paper", "generate.bos=tokenizer", "tunings.dpo.bos=tokenizer") == dict.fromkeys(reads, "paper") | {"generate": "tokenizer", "train": "tokenizer"}
    assert bos("tunings.dpo.recipe=mgpt")["train"] == "tokenizer" and "train" not in bos("tunings.dpo.recipe=mgpt", "bos=paper"), "a recipe's own gives way to the grid's"
    assert bos("models.world.set.probe.bos=paper")["probe"] == "paper"
    for key in ("bos", "mass.bos", "models.world.set.probe.bos"):
        with pytest.raises(InputError, match=rf"{key}: .*'tokenizer' or 'paper'"): g.load_grid(TINY, [f"{key}=always"])
    paper = g.load_grid(ROOT / "experiments" / "paper.yaml")
    assert paper["bos"] == "paper" and {j.parameters["settings"]["bos"] for j in g.jobs(paper) if j.stage in reads} == {"paper"}


def test_a_lora_folder_is_a_checkpoint_of_a_grid(tmp_path):
    "Its configuration is what a job on it waits for, and its weights are what its revision is of."
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "world"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    grid = g.load_grid({"name": "x", "models": {"m": {"path": "world", "tuned": {"lora": str(tmp_path)}}}})
    g.check_at_hand(grid)
    assert str(tmp_path / "adapter_config.json") in next(j for j in g.jobs(grid) if j.name == "m-lora-0" and j.stage == "activations").needs
    assert g.revision(str(tmp_path)).startswith("adapter_model.safetensors")


def test_languages_per_job():
    grid = g.load_grid(TINY, ["languages_per_job=1"])
    assert sum(j.stage == "generate" for j in g.jobs(grid)) == 6
    assert len({j.parameters["ledger"] for j in g.jobs(grid) if j.stage == "score"}) == 6, "no two jobs share a database"


def test_numbers_and_paths_of_a_grid(tmp_path, monkeypatch):
    monkeypatch.setenv("XGDETOX_DATA", str(tmp_path))
    (tmp_path / "g.yaml").write_text("models: {m: {path: world}}\ndata: {prompts: '${XGDETOX_DATA}/p'}\ntunings: {dpo: {learning_rate: 1e-5}}\n")
    grid = g.load_grid(tmp_path / "g.yaml")
    assert grid["models"]["m"]["data"]["prompts"] == str(tmp_path / "p") and grid["tunings"]["dpo"]["learning_rate"] == 1e-5


def test_plan_needs_nothing():
    "The paper's grid on a machine without GPU, network or data."
    done = subprocess.run([sys.executable, "-c", "from xgdetox.cli import main; main()", "plan", "experiments/paper.yaml"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "XGDETOX_DATA": "/nowhere", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert "hours of a100" in done.stdout and "Perspective" in done.stdout
    table, _ = g.plan(g.load_grid(ROOT / "experiments" / "paper.yaml"))
    assert table.hours.gt(0).all() and 10 < table.hours.sum() < 1000


def test_devices_are_held_until_the_process_ends(tmp_path):
    "Five jobs on two devices: no device is ever in two hands, and a killed job frees its own."
    code = ("import os, sys, time\nfrom xgdetox import grid as g\nd = g.hold_devices(1, ['0', '1'], sys.argv[1])[0]\n"
            "path = sys.argv[1] + '/use-' + d\nos.close(os.open(path, os.O_CREAT | os.O_EXCL))\nos.execv(sys.executable, [sys.executable, '-c', "
            "'import os, sys, time; time.sleep(.5); os.unlink(sys.argv[1])', path])")
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(5)]
    assert [j.wait(60) for j in jobs] == [0] * 5
    with pytest.raises(InputError, match="3 devices wanted"): g.hold_devices(3, ["0", "1"], tmp_path)


def test_one_runner(tmp_path):
    with g.only_runner(tmp_path / "r"):
        done = xgdetox(tmp_path / "r")
        assert done.returncode == 2 and "has a runner at work" in done.stderr and done.stderr.count("\n") == 1


def test_reduced_quick_grid(tmp_path):
    "Every stage from start to report; a second call does nothing; prose reruns nothing; a changed setting reruns its own stage."
    first = xgdetox(tmp_path / "r")
    assert first.returncode == 0, first.stdout + first.stderr
    tables = {p.stem for p in (tmp_path / "r" / "tables").glob("*.csv")}
    assert tables >= set("toxicity drops quality probe value_vectors intervention activations retrieval relation mass training durations".split())
    assert "report: " in first.stdout and (tmp_path / "r" / "report.html").stat().st_size > 20_000
    assert {"grid", "versions", "git", "models", "data", "seeds", "durations"} <= set(json.loads((tmp_path / "r" / "manifest.json").read_text()))
    drops = pd.read_csv(tmp_path / "r" / "tables" / "drops.csv")
    assert set(drops.language) == {"en", "de", "zh"} and "toxic_mass_relative_drop" in set(drops.metric)
    quality = pd.read_csv(tmp_path / "r" / "tables" / "quality.csv").set_index("metric")
    assert set(quality.loc["perplexity_change"].language) == {"en", "de", "zh"} and {"p", "p_holm"} <= set(quality)
    before = executed(tmp_path / "r")
    os.utime(ROOT / "nbs" / "experiments" / "retrieve.ipynb")
    again = xgdetox(tmp_path / "r")
    assert again.returncode == 0 and executed(tmp_path / "r") == before, "finished work was repeated"
    dry = xgdetox(tmp_path / "r", "--dry-run", "--set", "retrieve.options.csls=true")
    planned = {line.split()[0] for line in dry.stdout.splitlines() if line.split()[1:] == ["1"]}
    assert planned >= {"retrieve", "report"} and not planned & {"train", "generate", "score", "mass", "quality", "probe"}, dry.stdout


@pytest.mark.slow
def test_other_languages_go_on_when_one_fails(tmp_path):
    "A fault of the input is said before any job; this one shows only in the job: a folder lies where its file should be."
    (tmp_path / "r" / "generations" / "world-base" / "output-rtp_lx_de.json").mkdir(parents=True)
    done = xgdetox(tmp_path / "r", *SHORT, "--set", "languages_per_job=1", "--set", "stages=[generate, score]")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert len(failed) == 1 and "output-rtp_lx_de.json" in failed[0] and "notebooks/generate/world-base.de.ipynb" in failed[0]
    assert {p.name for p in (tmp_path / "r" / "parts" / "toxicity").glob("*.csv")} == {"world-base.en.lexicon.csv", "world-base.zh.lexicon.csv"}
    log = g.read_log(tmp_path / "r" / "notebooks" / "generate" / "world-base.de.ipynb")
    assert "InputError" in log["error"], "the executed notebook keeps its traceback"


def finished(folder):
    "Executed notebooks that came to their end: {name: start}."
    logs = {str(p.relative_to(folder)): g.read_log(p) for p in Path(folder).glob("notebooks/*/*.ipynb")}
    return {name: log["start_time"] for name, log in logs.items() if log.get("duration") and not log.get("exception") and not log.get("error")}


@pytest.mark.slow
def test_killed_at_five_moments(tmp_path):
    """The runner (and once a notebook) killed with SIGKILL at five random moments of the whole run; the restarted run ends with the tables of an
    undisturbed one and repeats nothing that had finished."""
    calm, hit, chance = tmp_path / "calm", tmp_path / "hit", random.Random(0)
    done = xgdetox(calm)
    assert done.returncode == 0, done.stdout + done.stderr
    before, at_work = {}, 0
    for kill, wanted in enumerate(sorted(chance.sample(range(len(executed(calm)) - 1), 5))):     # notebooks that have finished by then, whatever the machine's speed
        runner = subprocess.Popen([*RUN, "--run-dir", str(hit)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.time() + 900
        while runner.poll() is None and time.time() < until and (len(finished(hit)) < wanted or not executed(hit)): time.sleep(.2)
        time.sleep(chance.random() * 4)
        assert runner.poll() is None, "the runner ended by itself before its kill"
        notebooks = [p for p in g.living(hit) if "papermill" in p.cmdline()]
        at_work += len(notebooks)
        if kill == 2 and notebooks: notebooks[0].kill()
        runner.kill(); runner.wait()
        assert before.items() <= finished(hit).items(), "finished work was run again"
        before = finished(hit)
    assert at_work, "no kill met a notebook at work"
    end = xgdetox(hit)
    assert end.returncode == 0, end.stdout + end.stderr
    assert before.items() <= finished(hit).items(), "finished work was run again"
    assert same_tables(calm, hit) == []


@pytest.mark.slow
def test_slurm_on_one_node(tmp_path):
    "The reduced grid through the slurm profile, with two pretend GPUs; each job sees its own."
    script, place = ROOT / "tests" / "slurm_node.sh", tmp_path / "slurm"
    start = subprocess.run([script, "start", place], capture_output=True, text=True, timeout=120)
    if start.returncode: pytest.skip(start.stdout.strip().splitlines()[-1] if start.stdout.strip() else start.stderr.strip()[-200:] or "SLURM did not start")
    try:
        profile = tmp_path / "profile"
        profile.mkdir()
        text = (ROOT / "experiments" / "profiles" / "slurm" / "config.yaml").read_text()
        (profile / "config.yaml").write_text(text.replace("64000", "1500").replace("1440", "60").replace("latency-wait: 60", "latency-wait: 10")
                                             + "  slurm_partition: nodes\n  slurm_account: nobody\nslurm-init-seconds-before-status-checks: 5\nslurm-status-command: squeue\n")
        done = xgdetox(tmp_path / "r", *SHORT[:1], "stages=[train, generate, mass, report]", "--set", "languages_per_job=2", "--profile", str(profile),
                       SLURM_CONF=str(place / "slurm.conf"))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + (tmp_path / "r" / "snakemake.log").read_text()[-3000:]
        seen = []                                                    # (device, begin, end) of every job that notes its device
        for note in [*(tmp_path / "r" / "generations").glob("*.json"), *(tmp_path / "r" / "tuned").glob("*.json")]:
            log = g.read_log(tmp_path / "r" / "notebooks" / ("generate" if note.parent.name == "generations" else "train") / f"{note.stem}.ipynb")
            seen.append((json.loads(note.read_text())["devices"], log["start_time"], log["end_time"]))
        assert len(seen) == 5 and {d for d, _, _ in seen} <= {"0", "1"}, seen
        for (d, begin, end), (other, start, stop) in itertools.combinations(seen, 2):
            assert d != other or end <= start or stop <= begin, f"two jobs at once on one device: {seen}"
    finally: subprocess.run([script, "stop", place], timeout=60)


def test_numbers_and_names_are_checked_before_anything_runs(tmp_path, capfd):
    "Counts below one, unknown stages for -R, a grid that is not UTF-8: one line, code 2."
    (tmp_path / "g.yaml").write_bytes(b"\xff\xfe")
    quick = str(ROOT / "experiments" / "quick.yaml")
    for words, said in ((["run", quick, "--set", "generate.n=-1", "--dry-run"], "generate.n"), (["run", quick, "--set", "prompts=0", "--dry-run"], "prompts"),
                        (["run", quick, "-R", "nostage", "--run-dir", str(tmp_path / "r")], "nostage"), (["status", str(tmp_path / "g.yaml")], "UTF-8")):
        with pytest.raises(SystemExit) as end: main(words)
        err = capfd.readouterr().err
        assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "r").exists()


def test_status_tells_a_notebook_at_work_from_one_that_was_cut_off(tmp_path):
    "Also with Snakemake's lock of a dead runner in the folder, and while another notebook of the run lives."
    grid = g.load_grid(TINY, ["tunings={}", "stages=[generate, mass]"])
    generate, mass = (next(j for j in g.jobs(grid) if j.stage == stage) for stage in ("generate", "mass"))
    for job in (generate, mass):
        (tmp_path / job.log).parent.mkdir(parents=True)
        (tmp_path / job.log).write_text(json.dumps({"cells": [], "metadata": {"papermill": {"parameters": job.parameters, "start_time": "2026-01-01T00:00:00"}}}))
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.input.lock").touch()
    states = lambda: dict(g.status(grid, tmp_path)[["stage", "state"]].values.tolist())
    assert states() == {"generate": "failed", "mass": "failed"}
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", mass.log], env={**os.environ, "XGDETOX_RUN": str(tmp_path.resolve())})
    try:
        while not g.living(tmp_path): time.sleep(.05)
        assert states() == {"generate": "failed", "mass": "running"}
    finally: alive.kill(); alive.wait()


def test_training_on_several_devices_is_launched_with_accelerate(tmp_path, monkeypatch):
    "The words that are launched train what `train` trains (run here by one process: accelerate has no second device); single_gpu takes the first device."
    from xgdetox.training import ACCELERATE
    from xgdetox.world import resolve_data, resolve_model
    launched, really = [], subprocess.run
    def run(words, **options):
        launched.append(words)
        return really([sys.executable, *words[next(i for i, w in enumerate(words) if w.endswith("/xgdetox")):]], **options)
    monkeypatch.setattr(g.subprocess, "run", run)
    how = dict(recipe="world", max_steps=1, eval_pairs=4, limit=16)
    ask = lambda out, **more: g.train_on_devices(str(resolve_model("world")), resolve_data("world", "pairs"), tmp_path / out, **how, **more)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    several = ask("several", accelerate="multi_gpu")
    assert len(launched) == 1 and str(ACCELERATE / "multi_gpu.yaml") in launched[0] and launched[0][launched[0].index("--num_processes") + 1] == "2"
    one = ask("one", accelerate="single_gpu")
    assert len(launched) == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert filecmp.cmp(several / "model.safetensors", one / "model.safetensors", shallow=False)


def test_the_module_is_a_command():
    "accelerate launch -m xgdetox.cli, as page 01 says."
    done = subprocess.run([sys.executable, "-m", "xgdetox.cli", "plan", "nowhere.yaml"], capture_output=True, text=True)
    assert done.returncode == 2 and "no such grid" in done.stderr


def test_two_folders_called_base_and_tuned():
    grid = g.load_grid(g.comparison("/m/base", "/m/tuned", languages=["en"]))
    assert list(grid["models"]) == ["base-model"] and {v["id"] for v in g.variants(grid)} == {"base-model-base", "base-model-tuned-0"}


@pytest.mark.parametrize("text, said", [
    ("models: {}", "models: is empty"), ("models: {m: {path: world, gpus: 0}}", "models.m.gpus"), ("models: {m: {path: world, set: {generate: {nn: 3}}}}", "models.m.set.generate.nn"),
    ("models: {m: {path: world}}\nlanguages: []", "languages: is empty"), ("models: {m: {path: world}}\ndata: {prompts: /nowhere}", "data.prompts: no such file"),
    ("models: {m: {path: /no/model}}", "models.m.path: no such file"), ("models: {m: {path: world}}\nscorers: {x: nonsense}", "unknown scorer 'nonsense'"),
    ("models: {m: {path: world}}\nscorers: {x: 'lexicon:/nowhere'}", "scorers.x: no such file")])
def test_a_faulty_grid_stops_at_the_door(tmp_path, capfd, text, said):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(SystemExit) as end: main(["run", str(tmp_path / "g.yaml"), "--run-dir", str(tmp_path / "r")])
    err = capfd.readouterr().err
    assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1 and not (tmp_path / "r").exists(), err
