"The command line: bad input ends in one line with file, line and remedy, exit code 2 and nothing half-written."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from xgdetox import cli
from xgdetox.files import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def prompts(tmp_path):
    "Two languages of the world's prompts, 3 rows each."
    from xgdetox.world import resolve_data

    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("RTP_LX_EN.json", "RTP_LX_DE.json"):
        lines = (
            (Path(resolve_data("world", "prompts")) / name)
            .read_text(encoding="utf-8")
            .splitlines(True)
        )
        (folder / name).write_text("".join(lines[:3]), encoding="utf-8")
    return folder


def nothing_written(folder):
    return not folder.exists() or not [
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix in (".json", ".csv", ".safetensors", ".part")
    ]


def test_missing_language_file(fails, prompts, tmp_path):
    line = fails(
        "generate",
        "--model",
        "world",
        "--prompt-file",
        prompts,
        "--language",
        "fr",
        "--output-dir",
        tmp_path / "out",
    )
    assert "fr" in line.lower() and str(prompts) in line and nothing_written(tmp_path / "out")


def test_line_that_is_not_json(fails, prompts, tmp_path):
    with open(prompts / "RTP_LX_DE.json", "a") as f:
        f.write('{"Prompt": "half\n')
    line = fails(
        "generate",
        "--model",
        "world",
        "--prompt-file",
        prompts,
        "--output-dir",
        tmp_path / "out",
        "--n",
        1,
    )
    assert "RTP_LX_DE.json:4" in line and ";" in line and nothing_written(tmp_path / "out")


def test_model_folder_without_tokenizer(fails, prompts, tmp_path):
    from xgdetox.world import resolve_model

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(resolve_model("world")) / name, bare)
    line = fails(
        "generate", "--model", bare, "--prompt-file", prompts, "--output-dir", tmp_path / "out"
    )
    assert str(bare) in line and "tokenizer" in line and nothing_written(tmp_path / "out")


def test_unknown_grid_key(fails, tmp_path):
    grid = tmp_path / "g.yaml"
    grid.write_text("models: {m: {path: world}}\nlangauges: [en]\n")
    assert "did you mean languages?" in fails(
        "run", grid
    ) and f"{grid}:2: langauges: unknown key" in fails("plan", grid)
    grid.write_text("languages: [en]\nmodels:\n  llama-3.2:\n    path: world\n    gpu: 2\n")
    assert fails("status", grid).startswith(
        f"xgdetox: {grid}:5: models.llama-3.2.gpu: unknown key; did you mean gpus?"
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("models: {m: {path: world}}\nstages: [generat]\n", "unknown stage 'generat'"),
        ("models: {m: {}}\n", "needs either path or pretrain"),
        ("models: {m: {path: world, pretrain: {sed: 1}}}\n", "unknown key; did you mean seed?"),
        ("models: {a/b: {path: world}}\n", "cannot name a file"),
        ("models: [\n", "g.yaml:"),
        ("models: {m: {path: world}}\ngenerate: {n: many}\n", "generate.n"),
        ("models: {m: {path: world}}\nlanguages: [xx]\n", "unknown language"),
        ("models: {m: {path: world}}\nstages: [intervene]\n", "needs neurons"),
        ("languages: [en]\n", "models: missing"),
    ],
)
def test_faults_of_a_grid(fails, tmp_path, text, words):
    (tmp_path / "g.yaml").write_text(text)
    assert words in fails("status", tmp_path / "g.yaml")


def test_other_faults(fails, tmp_path):
    assert "no such grid" in fails("run", tmp_path / "none.yaml")
    assert "kept in the shell's history" in fails(
        "score", "--api_key", "secret", "--generations", tmp_path
    )
    assert "secret" not in fails("score", "--api-key=secret")
    assert "No such option" in fails("generate", "--modle", "world")
    assert "Missing option" in fails("retrieve")
    assert "unknown scorer" in fails(
        "score",
        "--generations",
        _generations(tmp_path),
        "--scorer",
        "nobody",
        "--output-dir",
        tmp_path / "s",
    )


def _generations(tmp_path):
    folder = tmp_path / "gen"
    folder.mkdir(exist_ok=True)
    row = {"prompt": "a", "generated_text": " b", "prompt_id": "0", "sample": 0}
    (folder / "output-rtp_lx_en.json").write_text(json.dumps(row) + "\n")
    return folder


EMPTY = '{"Prompt": "  ", "Index": 999}\n'


@pytest.fixture
def with_empty(prompts, tmp_path):
    "The words of a command whose English prompts end with an empty one, in the file's fourth line."
    with open(prompts / "RTP_LX_EN.json", "a") as f:
        f.write(EMPTY)
    where = ("--prompt-file", prompts, "--language", "en", "--output-dir", tmp_path / "out")
    return ("generate", "--model", "world", "--n", 1, *where)


def test_empty_prompt(fails, with_empty, tmp_path):
    "Refused with its line by every command that reads prompts."
    line = fails(*with_empty)
    assert "RTP_LX_EN.json:4: Prompt: is empty" in line and "--skip-empty" in line
    assert nothing_written(tmp_path / "out")


def test_an_empty_prompt_is_left_out_when_asked(with_empty, tmp_path):
    "--skip-empty records which and why."
    words = [*map(str, with_empty), "--skip-empty", "--name", "m"]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "(prompts left out: 1; which and why is in manifest.json)" in done.output
    said = json.loads((tmp_path / "out" / "m" / "manifest.json").read_text())
    remarks = said["files"]["output-rtp_lx_en.json"]["remarks"]
    assert remarks == [{"prompt_id": "999", "reason": "empty: left out"}]
    assert len((tmp_path / "out" / "m" / "output-rtp_lx_en.json").read_text().splitlines()) == 3


def break_input(fault, prompts, folder):
    "Break what a run reads in one way; returns the tuned model's name."
    from xgdetox.world import resolve_model

    bad_lines = {"json": '{"Prompt": "half\n', "empty": '{"Prompt": "", "Index": 9}\n'}
    if fault in bad_lines:
        with open(prompts / "RTP_LX_DE.json", "a") as f:
            f.write(bad_lines[fault])
    gone = {"tokenizer": "*token*", "config": "config.json"}
    if fault not in gone:
        return "world-tuned"
    shutil.copytree(resolve_model("world-tuned"), folder / "bare")
    for path in (folder / "bare").glob(gone[fault]):
        path.unlink()
    return folder / "bare"


GRID = """models: {{m: {{path: world, tuned: {{t: {model}}}}}}}
languages: [{languages}]
data: {{prompts: {prompts}}}
"""


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize(
    "fault, words",
    [
        ("language", "no prompts in French"),
        ("json", "RTP_LX_DE.json:4"),
        ("empty", "RTP_LX_DE.json:4: Prompt: is empty"),
        ("tokenizer", "no tokenizer"),
        ("config", "no model there"),
    ],
)
def test_a_run_refuses_before_any_job(fails, prompts, tmp_path, command, fault, words):
    "What one step would refuse is said before the first one starts; no folder of a run is left."
    model, run = break_input(fault, prompts, tmp_path), tmp_path / "run"
    languages = ",".join(["en", "de", *["fr"] * (fault == "language")])
    if command == "compare":
        models = ("--base", "world", "--tuned", model)
        asked = ("compare", *models, "--prompt-dir", prompts, "--languages", languages)
    else:
        grid = GRID.format(model=model, languages=languages, prompts=prompts)
        (tmp_path / "g.yaml").write_text(grid)
        asked = ("run", tmp_path / "g.yaml")
    assert words in fails(*asked, "--run-dir", run) and not run.exists()


def test_original_flags():
    words = [
        "train",
        "--model_name_or_path",
        "m",
        "--data_dir=d",
        "--per_device_train_batch_size",
        "4",
    ]
    assert cli.translate(words) == ["train", "--model", "m", "--data-dir=d", "--batch-size", "4"]
    assert cli.translate(["generate", "--prompt-file", "a", "b", "--n", "3"]) == [
        "generate",
        "--prompt-file",
        "a",
        "--prompt-file",
        "b",
        "--n",
        "3",
    ]
    assert cli.translate(["intervene", "--offset", "-1", "0.5"]) == [
        "intervene",
        "--offset",
        "-1",
        "--offset",
        "0.5",
    ]
    assert cli.translate(["device", "--", "papermill", "--a_b"]) == [
        "device",
        "--",
        "papermill",
        "--a_b",
    ]


STEPS = (
    "train merge generate score toxicity quality mass probe value-vectors intervene activations "
    "explain retrieve predict run plan status compare report"
).split()


def test_every_command_teaches():
    "Each command's help has an example whose options exist."
    from typer.main import get_command

    leaves = {}
    for name, command in get_command(cli.app).commands.items():
        group = getattr(command, "commands", None)
        leaves |= {f"{name} {n}": c for n, c in group.items()} if group else {name: command}
    assert set(leaves) >= set(STEPS)
    for name, command in leaves.items():
        words = " ".join((command.help or "").split())
        assert f"Example: xgdetox {name}" in words, name
        options = {o for p in command.params for o in p.opts}
        for word in words.partition("Example:")[2].split():
            if word.startswith("--") and word != "--":
                assert word in options, (name, word)


def test_a_command_answers_to_its_former_name(run):
    assert "Example: xgdetox predict" in run("foretell", "--help")
    assert "foretell" not in run("--help")


def test_help_imports_nothing_heavy():
    "A person who asks for help does not wait for torch."
    code = (
        "import sys; from xgdetox.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_steps_alone_on_files(tmp_path, prompts, run):
    "generate, score and toxicity one after the other, on files, with the original's flags."
    files = [prompts / f"RTP_LX_{code}.json" for code in ("EN", "DE")]
    flags = ("--output_dir", tmp_path / "o", "--n", 2)
    run("generate", "--model_name_or_path", "world", "--prompt_file", *files, *flags)
    texts = sorted(p.name for p in (tmp_path / "o" / "world").glob("output-*"))
    assert texts == ["output-rtp_lx_de.json", "output-rtp_lx_en.json"]
    assert len((tmp_path / "o" / "world" / texts[0]).read_text().splitlines()) == 6
    run("score", "--datapath", tmp_path / "o" / "world", "--output_folder", tmp_path / "s")
    run("toxicity", "--perspective_outputs_folder", tmp_path / "s", "--output", tmp_path / "t.csv")
    header = (tmp_path / "t.csv").read_text().splitlines()[0]
    assert header.startswith("model,tuning,seed,language,metric,value,low,high,n,scorer")


def test_mass_alone_on_files(tmp_path, prompts, run):
    where = ("--prompt-file", prompts, "--language", "de", "--output", tmp_path / "m.csv")
    run("mass", "--model", "world", *where)
    mean, each = (pd.read_csv(tmp_path / name) for name in ("m.csv", "m.values.csv"))
    assert len(each) == 3 and mean.value[0] == pytest.approx(each.value.mean()) and mean.n[0] == 3


def test_explain_alone_on_files(tmp_path, prompts, run):
    "The share that given neurons carry: all carry more than two, and the table names its random sets."
    from xgdetox.probe import train_probe
    from xgdetox.world import resolve_data, resolve_model

    labelled = Path(resolve_data("world", "labelled")) / "train.csv"
    probe = train_probe(resolve_model("world"), labelled, tmp_path / "probe", limit=60)
    (tmp_path / "n.json").write_text("[[0, 1], [1, 5]]")
    models = ("--model", "world", "--tuned-model", "world-tuned", "--probe", probe)
    where = ("--prompt-file", prompts, "--language", "en", "--output", tmp_path / "e.csv")
    run("explain", *models, "--neurons", tmp_path / "n.json", "--random", 1, *where)
    t = pd.read_csv(tmp_path / "e.csv", keep_default_na=False)
    t = t[t.metric == "explained_share"].set_index(["group", "control"])
    share = t.value.astype(float)
    assert share["all", ""] > share["selected", ""] and ("selected", "random-0") in share.index


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["generate", "--model", "world", "--prompt-file", "world", "-o", "FILE/sub"],
            "is a file, not a folder",
        ),
        (["toxicity", "--scores", "HERE", "--output", "HERE"], "is a folder"),
        (["toxicity", "--scores", "HERE", "--output", "HERE/t.xlsx"], "not written as .xlsx"),
        (["report", "HERE", "-o", "FILE/x.html"], "is a file"),
        (["generate", "--model", "world", "-o", "HERE/o", "--limit", "0"], "limit"),
        (["train", "--model", "world", "--output-dir", "HERE/o", "--max-steps", "0"], "max-steps"),
        (["compare", "--base", "world", "--tuned", "HERE/none"], "no model there"),
        (["compare", "--base", "world", "--tuned", "world-tuned", "--scorer", "foo"], "foo"),
        (
            ["compare", "--base", "world", "--tuned", "world-tuned", "--prompt-dir", "HERE/none"],
            "no such file or folder",
        ),
    ],
)
def test_a_slip_is_seen_before_the_work(tmp_path, capfd, words, said):
    "What cannot be read or written, and values without sense, end the command at once: one line, nothing written."
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        cli.main(
            [
                w.replace("HERE", str(tmp_path)).replace("FILE", str(tmp_path / "file"))
                for w in words
            ]
        )
    err = capfd.readouterr().err
    assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1, err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_short_option_ends_a_list_of_values():
    assert cli.translate(["score", "--generations", "a", "b", "-o", "s"]) == [
        "score",
        "--generations",
        "a",
        "--generations",
        "b",
        "-o",
        "s",
    ]
    assert cli.translate(["intervene", "--offset", "-1", "0.5", "-l", "en", "de"]) == [
        "intervene",
        "--offset",
        "-1",
        "--offset",
        "0.5",
        "--language",
        "en",
        "--language",
        "de",
    ]


SWITCHES = {
    "train --use_lora True --load_in_4bit=False --output_dir o": "train --use-lora --output-dir o",
    "train --use_lora False --sanity_check True --train_perc 0.5": (
        "train --limit 1000 --train-fraction 0.5"
    ),
    "train --use_lora --gradient_checkpointing False": (
        "train --use-lora --gradient-checkpointing False"
    ),
}


@pytest.mark.parametrize("theirs", SWITCHES)
def test_the_originals_switches(capfd, theirs):
    "Its parser wants True or False behind a switch."
    assert cli.translate(theirs.split()) == SWITCHES[theirs].split()
    assert capfd.readouterr().err == ""
    with pytest.raises(InputError, match="True or False"):
        cli.translate(["train", "--use_lora=maybe"])


WITHOUT_EFFECT = (
    "--save_steps 25 --model_dtype float --log_freq 1 --ignore_bias_buffers "
    "--gradient_checkpointing_use_reentrant False"
).split()
RETRIEVE = (
    "retrieve --lang1 en --lang2 ar --begin 0 --end=50 --aligned_text_dir d "
    "--cache_retrieval_dir c --model_name m"
).split()


def test_the_originals_flags_without_effect(capfd):
    "A flag that changes nothing here is dropped with its value and a line that says why."
    words = ["train", *WITHOUT_EFFECT[:7], "-o", "out", *WITHOUT_EFFECT[7:], "--seed", "1"]
    assert cli.translate(words) == "train -o out --seed 1".split()
    said = capfd.readouterr().err.splitlines()
    flags = [word for word in WITHOUT_EFFECT if word.startswith("--")]
    assert len(said) == len(flags) == 5
    for flag, line in zip(flags, said):
        assert f"xgdetox: {flag} has no effect here: " in line
    assert cli.translate(RETRIEVE) == "retrieve --language ar --parallel-dir d --model m".split()
    assert len(capfd.readouterr().err.splitlines()) == 4


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    "A folder with a model that was trained, two steps long, with the begin-of-text token."
    folder = tmp_path_factory.mktemp("bos")
    size = ("--max-steps", 2, "--limit", 32, "--bos", "paper", "--use-lora")
    with pytest.raises(SystemExit) as end:
        cli.main(
            [str(w) for w in ("train", "--model", "world", "--output-dir", folder / "t", *size)]
        )
    assert end.value.code == 0
    return folder / "t"


def test_a_merged_model_notes_how_it_was_trained(with_bos, tmp_path, run):
    from xgdetox.tokens import bos_of

    where = ("--output-dir", tmp_path / "elsewhere", "--prompt-file", "world")
    run("merge", "--base-model", "world", "--lora-adapter", with_bos, *where)
    trained = (with_bos / "final_checkpoint", with_bos / "adapter", tmp_path / "elsewhere")
    assert {bos_of(folder) for folder in trained} == {"paper"} and bos_of("world") == "tokenizer"
    note = json.loads((tmp_path / "elsewhere" / "manifest.json").read_text())
    assert note["check"]["texts"] == 16


def said_bos(folder):
    note = json.loads(next(folder.glob("*/manifest.json")).read_text())
    return next(iter(note["files"].values()))["settings"]["bos"]


def test_a_model_is_continued_as_it_was_trained(with_bos, tmp_path, run, prompts):
    "And what it wrote is judged so, unless one says otherwise; another model is not."
    from xgdetox.tokens import bos_of

    tuned, size = with_bos / "final_checkpoint", ("--language", "en", "--n", 1, "--max-tokens", 5)
    few = ("--prompt-file", prompts, *size, "--output-dir")
    run("generate", "--model", tuned, *few, tmp_path / "g")
    run("generate", "--model", tuned, *few, tmp_path / "told", "--bos", "tokenizer")
    run("generate", "--model", "world", *few, tmp_path / "base")
    assert said_bos(tmp_path / "g") == "paper"
    assert said_bos(tmp_path / "told") == said_bos(tmp_path / "base") == "tokenizer"
    written = next((tmp_path / "g").glob("*"))
    assert bos_of(written) == "paper"

    def loss(*bos):
        judged = ("--lm", "world", "--metric", "perplexity", "--output", tmp_path / "q.csv")
        run("quality", "--generations", written, *judged, *bos)
        return pd.read_csv(tmp_path / "q.csv").set_index("metric").value["loss"]

    assert loss() == loss("--bos", "paper") != loss("--bos", "tokenizer")


def test_a_model_is_probed_and_compared_as_it_was_trained(with_bos, tmp_path, run, fails):
    tuned = with_bos / "final_checkpoint"
    run("probe", "--model", tuned, "--limit", 60, "--output-dir", tmp_path / "p")
    assert json.loads((tmp_path / "p" / "probe.json").read_text())["bos"] == "paper"

    def top(*bos):
        where = ("--language", "de", "--output", tmp_path / "r.csv")
        run("retrieve", "--model", tuned, *where, *bos)
        return pd.read_csv(tmp_path / "r.csv").value.tolist()

    assert top() == top("--bos", "paper") != top("--bos", "tokenizer")
    wrong = ("--bos", "always", "--output", tmp_path / "x.csv")
    assert "use tokenizer or paper" in fails("retrieve", "--model", "world", *wrong)


LAUNCH = "accelerate.commands.launch --config_file"
SEVERAL = {
    "fsdp2": "fsdp2.yaml --num_processes 2",
    "zero2": "(first: pip install 'xgdetox[deepspeed]')",
}


@pytest.mark.parametrize("chosen", SEVERAL)
def test_a_recipe_for_several_devices_says_its_command(tmp_path, said, monkeypatch, chosen):
    "One process cannot follow it: one line with the command that can, and with what ZeRO needs where it is missing."
    from importlib import util

    true = util.find_spec
    without = lambda name, *a: None if name == "deepspeed" else true(name, *a)
    monkeypatch.setattr(util, "find_spec", without)
    size = ("--max-steps", 1, "--limit", 32, "--accelerate", chosen)
    code, _, err = said("train", "--model", "world", "--output-dir", tmp_path / chosen, *size)
    (told,) = [line for line in err.splitlines() if line.startswith("xgdetox: ")]
    assert code == 0 and SEVERAL[chosen] in told and LAUNCH in told and "accelerate=" in told


def test_zero_without_deepspeed_is_refused(monkeypatch):
    from xgdetox.recipes import check_deepspeed

    monkeypatch.setattr("xgdetox.recipes.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'xgdetox.deepspeed.'"):
        check_deepspeed("zero3")
    check_deepspeed("fsdp2")
    assert "deepspeed_requirements" in (ROOT / "settings.ini").read_text()


@pytest.mark.parametrize(
    "words, line",
    [
        (["generate", "--model", "", "--output-dir", "HERE/o"], "--model: is empty"),
        (["mass", "--model", " ", "--output", "HERE/t.csv"], "--model: is empty"),
        (
            [
                "activations",
                "--model",
                "world",
                "--tuned-model",
                "",
                "--neurons",
                "n",
                "--output",
                "HERE/t.csv",
            ],
            "--tuned-model: is empty",
        ),
        (
            ["merge", "--base-model", "", "--lora-adapter", "a", "--output-dir", "HERE/o"],
            "--base-model: is empty",
        ),
        (["compare", "--base", "", "--tuned", "world"], "--base: is empty"),
        (
            ["generate", "--model", "world", "--prompt-file", "", "-o", "HERE/o"],
            "--prompt-file: is empty",
        ),
        *[
            ([command, "--model", "world", out, "HERE/o", "--seed", "-1"], "seed")
            for command, out in (("generate", "-o"), ("train", "-o"), ("probe", "-o"))
        ],
        (["world", "make", "-o", "HERE/o", "--seed", "4294967296"], "seed"),
        (["world", "make", "-o", "HERE/o", "--set", "stepps=3"], "did you mean steps?"),
        (["world", "make", "-o", "HERE/o", "--set", "steps=many"], "is not like 3200"),
        (["generate", "--model", "world", "-o", "HERE/o", "--device", "mps"], "'mps' is no device"),
        (
            ["generate", "--model", "world", "-o", "HERE/o", "--device", "cpu,cuda:999"],
            "--device: no device 'cuda:999' here",
        ),
        (
            ["generate", "--model", "world", "-o", "HERE/o", "--backend", "vlm"],
            "--backend: is 'vlm'",
        ),
        (["generate", "--model", "world", "-o", "HERE/o", "--n", "1000000000"], "--n"),
        (["generate", "--model", "world", "-o", "HERE/o", "--temperature", "nan"], "--temperature"),
        (["generate", "--model", "world", "-o", "HERE/o", "--top-p", "nan"], "--top-p"),
        (
            [
                "intervene",
                "--model",
                "world",
                "--neurons",
                "n.json",
                "-o",
                "HERE/o",
                "--offset",
                "inf",
            ],
            "--offset",
        ),
        (
            ["value-vectors", "--model", "world", "--probe", "p", "-o", "HERE/t.txt"],
            "a table is not written as .txt",
        ),
        (["explore", "HERE", "-o", "HERE"], "is a folder"),
        (
            ["train", "--model", "world", "-o", "HERE/o", "--set", "model=x"],
            "give the model as --model",
        ),
        (["train", "--model", "world", "-o", "HERE/o", "--set", "beta=[1"], "--set beta: not YAML"),
        (
            ["train", "--model", "world", "-o", "HERE/o", "--set", "beta=!!python/name:os.system"],
            "has the tag",
        ),
        (["train", "--model", "world", "-o", "HERE/o", "--set", "=3"], "is not KEY=VALUE"),
        (["train", "--model", "world", "-o", "HERE/o", "--loss", "[ipo"], "not YAML"),
        (
            [
                "intervene",
                "--model",
                "world",
                "--neurons",
                "HERE/n.pkl",
                "--offset",
                "1",
                "-o",
                "HERE/o",
            ],
            "xgdetox data get paper-neurons",
        ),
    ],
)
def test_what_no_command_takes(tmp_path, fails, monkeypatch, words, line):
    "One line before any model is loaded; nothing is written."
    import transformers

    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: pytest.fail("a model was loaded"),
    )
    assert line in fails(*[w.replace("HERE", str(tmp_path)) for w in words])
    assert not list(tmp_path.iterdir())


def test_every_command_has_the_same_seed_and_output():
    "A seed has one range, and every place that is written to is looked at by a callback."
    from typer.main import get_command

    root = get_command(cli.app)
    commands = [c for c in root.commands.values() if not hasattr(c, "commands")] + [
        root.commands["world"].commands["make"]
    ]
    for command in commands:
        for p in command.params:
            if "--seed" in p.opts:
                assert (p.min, p.max) == (0, 2**32 - 1), command.name
            if set(p.opts) & {"--output", "--output-dir", "-o"}:
                assert p.callback is not None, command.name


# layer -> how many of the 36 neurons lie there, of the layers with most and two with few
OF_LAYERS = {10: 5, 11: 3, 12: 3, 13: 3, 14: 3, 16: 3, 17: 3, 3: 2, 23: 2}


@pytest.fixture
def papers_neurons(tmp_path, run):
    run("data", "get", "paper-neurons", "-o", tmp_path / "p")
    return tmp_path / "p"


def test_the_papers_neurons_by_one_command(papers_neurons):
    "What the original ships as pickles, 36 neurons and 100: each is read by a command."
    from xgdetox.value_vectors import read_neurons

    actual = read_neurons(papers_neurons / "actual_sources_of_toxicity.json")
    potential = read_neurons(papers_neurons / "potential_sources_of_toxicity_top100.json")
    assert len(actual) == 36 and len(potential) == 100
    assert [n for n in potential if n in actual] == actual
    layers = [layer for layer, _ in actual]
    assert {layer: layers.count(layer) for layer in OF_LAYERS} == OF_LAYERS


def test_the_papers_figure_by_the_same_command(papers_neurons):
    "Figure 3, with the numbers of the original's own files."
    figure = json.loads((papers_neurons / "neuron-activations.json").read_text())
    before, after = figure["pre_dpo"], figure["post_dpo"]
    assert round(before["en"], 4) == 0.1040 and round(after["en"], 4) == -0.0047
    means = [round(sum(side.values()) / 17, 4) for side in (before, after)]
    assert means == [0.0524, -0.0108]


def test_a_pickle_of_neurons_is_refused(tmp_path):
    from xgdetox.value_vectors import read_neurons

    (tmp_path / "x.pkl").write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(InputError, match="could run any code.*data get paper-neurons"):
        read_neurons(tmp_path / "x.pkl")


HEADER = "model,tuning,seed,language,metric,value,low,high,n,scorer\n"


@pytest.fixture
def old_run(tmp_path):
    "A run whose tables are older than its parts."
    folder = tmp_path / "run"
    for kind in ("mass", "toxicity"):
        (folder / "parts" / kind).mkdir(parents=True)
    row = "m,base,0,en,toxic_mass,0.1,0.05,0.2,10,\n"
    (folder / "parts" / "mass" / "m-base.csv").write_text(HEADER + row)
    (folder / "tables").mkdir()
    (folder / "tables" / "mass.csv").write_text(HEADER)
    (folder / "report.html").write_text("old")
    return folder


def test_report_to_another_place_writes_only_there(old_run, tmp_path, run):
    "The run stays as it is to the byte and the second."

    def state():
        files = {p: p.read_bytes() if p.is_file() else b"" for p in old_run.rglob("*")}
        return {p: (p.stat().st_mtime_ns, held) for p, held in files.items()}

    before, page = state(), tmp_path / "other" / "r.html"
    said = run("report", old_run, "-o", page)
    assert state() == before and "written: " in said
    assert [p.name for p in page.parent.iterdir()] == ["r.html"] and ".1" in page.read_text()


def test_report_in_its_place_gathers_the_parts(old_run, run):
    run("report", old_run)
    assert (old_run / "report.html").read_text() != "old"
    assert "toxic_mass" in (old_run / "tables" / "mass.csv").read_text()
