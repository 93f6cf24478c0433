"Notebooks forked from one process: one that is killed takes its fork along, a dead runner does not."

import json
import subprocess
import sys
import time

import psutil
import pytest

from xgdetox.grid.forks import server

NOTEBOOK = [sys.executable, "-m", "xgdetox.grid.notebook", "in.ipynb", "out.ipynb"]
CELL = dict(cell_type="code", metadata={}, outputs=[], execution_count=None)
WORK = """
import os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(seconds)
pathlib.Path("end").touch()
"""
RUNNER = f"""
import subprocess, time
from xgdetox.grid.forks import server
with server():
    subprocess.Popen({NOTEBOOK!r} + ["{{seconds: 4}}"])
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    "A folder with a notebook that notes its process, works for some seconds, and notes its end."
    parameters = CELL | dict(source="seconds = 60", metadata={"tags": ["parameters"]})
    page = dict(cells=[parameters, CELL | dict(source=WORK)], metadata={}, nbformat=4)
    (tmp_path / "in.ipynb").write_text(json.dumps(page | dict(nbformat_minor=4)))
    return tmp_path


def becomes(holds, seconds=120):
    "Does `holds()` become true in time?"
    until = time.time() + seconds
    while not (true := holds()) and time.time() < until:
        time.sleep(0.1)
    return true


def process_of(folder):
    "The fork that runs the notebook of a folder."
    assert becomes(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    return psutil.Process(int((folder / "pid").read_text()))


def test_a_killed_notebook_takes_its_fork_along(folder):
    with server():
        notebook = subprocess.Popen([*NOTEBOOK, "{seconds: 60}"], cwd=folder)
        fork = process_of(folder)
        assert fork.pid != notebook.pid
        notebook.kill()
        notebook.wait()
        assert becomes(lambda: not fork.is_running() or fork.status() == "zombie", 10)
    assert not (folder / "end").exists()


def test_a_notebook_ends_its_work_after_its_runner_was_killed(folder):
    runner = subprocess.Popen([sys.executable, "-c", RUNNER], cwd=folder)
    fork = process_of(folder)
    serving = fork.parent()
    runner.kill()
    runner.wait()
    assert becomes((folder / "end").exists, 60)
    assert becomes(lambda: not serving.is_running() or serving.status() == "zombie", 120)
