"Generation refuses, in one line and before a model is loaded, what no run can have; a full disk is told by its place."

import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from xgdetox import data, generation as g
from xgdetox.files import InputError, check_folder, disk_is_full, write_atomic, writing_to

MODEL = "world"


@pytest.fixture
def no_model(monkeypatch):
    "Loading any model fails the test."
    import xgdetox.engines
    import xgdetox.models
    import xgdetox.probe
    import xgdetox.intervention

    for module in (xgdetox.engines, xgdetox.models):
        monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    for module in (xgdetox.probe, xgdetox.intervention):
        monkeypatch.setattr(module, "load", lambda *a, **k: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    "words, field",
    [
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**32)], "seed"),
        (["--n", "0"], "n:"),
        (["--n", "1000000"], "n:"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--max-tokens", "100000"], "max_tokens"),
        (["--temperature", "1e-300"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "nan"], "top_p"),
        (["--top-p", "0"], "top_p"),
        (["--top-p", "-.1"], "top_p"),
        (["--device", "mps"], "device"),
        (["--device", "cuda:99"], "device"),
        (["--device", "meta"], "device"),
        (["--device", "gpu"], "device"),
        (["--device", "cpu,tpu"], "device"),
        (["--backend", "tgi"], "backend"),
        (["--name", "../../x"], "--name"),
        (["--name", ".."], "--name"),
        (["--name", "a b"], "--name"),
        (["--name", "a$(touch x)"], "--name"),
        (["--name", ""], "--name"),
        (["--bos", "always"], "bos"),
        (["--limit", "0"], "limit"),
        (["--n", "two"], "n"),
    ],
)
def test_nonsense_is_one_line_before_a_model_is_loaded(fails, no_model, tmp_path, words, field):
    assert field.strip(":-_").replace("_", "-") in fails(
        "generate",
        "--model",
        MODEL,
        "--prompt-file",
        "world",
        "-l",
        "en",
        "--output-dir",
        tmp_path / "o",
        *words,
    ).replace("_", "-")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "below a file", "/dev/full/x", "/proc/x", "dangling"])
def test_a_bad_output_place_is_refused_before_a_model_is_loaded(fails, no_model, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    path = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file/x",
        "dangling": tmp_path / "dangling",
    }.get(place, place)
    for command in (
        ["generate", "--prompt-file", "world", "-l", "en", "--output-dir", path],
        ["train", "--output-dir", path],
        ["probe", "--output-dir", path],
        ["mass", "--output", f"{path}/m.csv"],
    ):
        assert (
            "not a folder" in (said := fails(*command, "--model", MODEL))
            or "cannot be written" in said
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


def test_checking_a_folder_leaves_nothing(tmp_path):
    assert check_folder(tmp_path / "a/b") == tmp_path / "a/b" and not list(tmp_path.iterdir())


# ---- prompts and continuations


def generate_words(prompt_file, output_dir, *more):
    "The words of a command that continues the prompts of a file."
    given = ("--model", MODEL, "--prompt-file", prompt_file, *more)
    return ("generate", *given, "--output-dir", output_dir)


GERMAN = json.dumps({"Prompt": "das alte haus"}) + "\n"


@pytest.mark.parametrize("name", ["mine.json", "prompts_de.jsonl", "RTP.json", "x.y.jsonl.gz"])
def test_a_prompt_file_of_any_name_is_taken_with_its_language(run, tmp_path, name):
    (tmp_path / name).write_text(GERMAN)
    quick = ("--n", 1, "--max-tokens", 1, "--device", "cpu")
    run(*generate_words(tmp_path / name, tmp_path / "out", "-l", "de"), *quick)
    assert (tmp_path / "out/world/output-rtp_lx_de.json").exists()


def test_a_prompt_file_without_its_language_is_refused(fails, tmp_path):
    for name, more, said in (
        ("mine.json", (), "--language"),
        ("RTP_LX_DE.json", ("-l", "en"), "there are some in de"),
    ):
        (tmp_path / name).write_text(GERMAN)
        assert said in fails(*generate_words(tmp_path / name, tmp_path / "o", *more))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_prompt_file_is_refused(fails, no_model, tmp_path, text):
    (tmp_path / "RTP_LX_EN.json").write_text(text)
    for skip in ([], ["--skip-empty"]):
        assert "RTP_LX_EN.json" in fails(
            "generate",
            "--model",
            MODEL,
            "--prompt-file",
            tmp_path / "RTP_LX_EN.json",
            "--output-dir",
            tmp_path / "o",
            *skip,
        )
    assert not (tmp_path / "o").exists()


def test_toxic_mass_of_an_empty_prompt_file_is_refused(fails, tmp_path):
    (tmp_path / "RTP_LX_EN.json").write_text("")
    assert "RTP_LX_EN.json: holds no prompts" in fails(
        "mass",
        "--model",
        MODEL,
        "--prompt-file",
        tmp_path / "RTP_LX_EN.json",
        "--output",
        tmp_path / "m.csv",
    )
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    "line, field",
    [
        ({"prompt": "a", "generated_text": "b \ud83d"}, "generated_text"),
        ({"prompt": "\udc00", "generated_text": "b"}, "prompt"),
        ({"prompt": "a", "generated_text": "b", "prompt_id": "\ud800"}, "prompt_id"),
        ({"prompt": "a", "generated_text": "b", "tokens": "many"}, "tokens"),
        ({"prompt": "a", "generated_text": "b", "finish_reason": []}, "finish_reason"),
        ({"prompt": "a"}, "generated_text"),
    ],
)
def test_half_a_character_in_continuations_is_refused_with_its_line(fails, tmp_path, line, field):
    (tmp_path / "output-rtp_lx_en.json").write_text(
        json.dumps({"prompt": "a", "generated_text": "b"}) + "\n" + json.dumps(line) + "\n"
    )
    with pytest.raises(InputError, match=rf"output-rtp_lx_en.json:2: {field}: "):
        g.read_generations(tmp_path / "output-rtp_lx_en.json")
    for command in (
        [
            "quality",
            "--metric",
            "diversity",
            "--generations",
            tmp_path,
            "--output",
            tmp_path / "t.csv",
        ],
        [
            "score",
            "--generations",
            tmp_path,
            "--scorer",
            "lexicon:world",
            "--output-dir",
            tmp_path / "s",
        ],
    ):
        assert "output-rtp_lx_en.json:2: " in fails(*command)
    assert not (tmp_path / "t.csv").exists() and not list(tmp_path.glob("s/*"))


def test_every_reader_of_texts_refuses_half_a_character(tmp_path):
    rows = {
        "pairs.jsonl": ({"prompt": "a", "chosen": "b", "rejected": "c\ud800"}, data.load_pairs),
        "RTP_LX_EN.json": ({"Prompt": "\ud800"}, data.load_prompts),
        "labelled.jsonl": ({"text": "\udfff", "label": 1}, data.load_labelled),
        "parallel.jsonl": ({"en": "a", "de": "b\ud800"}, lambda p: data.load_parallel(p, "de")),
    }
    for name, (row, read) in rows.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        with pytest.raises(
            InputError, match=rf"{name.split('.')[0]}.*:1: \w+: holds half a character"
        ):
            read(tmp_path / name)


# ---- a full disk

DISK_FULL = (
    "the disk is full; make room, or name a place on another disk, and run the same command again"
)

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError(
        "[enforce fail at inline_container.cc:626] . PytorchStreamWriter failed writing file data/1: file write failed"
    ),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("database or disk is full"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_known_in_every_librarys_words(error, tmp_path):
    assert (
        disk_is_full(error)
        and not disk_is_full(ValueError("28 is not a size"))
        and not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    )
    with pytest.raises(InputError, match="x: the disk is full; make room"):
        with writing_to("x"):
            try:
                raise error
            except Exception as e:
                raise RuntimeError("saving failed") from e
    with pytest.raises(InputError, match="t.json: the disk is full"):
        with write_atomic(tmp_path / "t.json"):
            raise error
    assert not list(tmp_path.iterdir())


def test_a_device_or_a_pipe_is_written_to_and_never_replaced(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    with write_atomic(tmp_path / "link") as f:
        f.write("gone")
    assert (
        (tmp_path / "link").is_symlink()
        and not (tmp_path / "link").is_file()
        and len(list(tmp_path.iterdir())) == 1
    )
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    with write_atomic(tmp_path / "pipe") as f:
        f.write("through")
    reader.join()
    assert heard == ["through"] and (tmp_path / "pipe").is_fifo()


def test_training_that_cannot_write_its_weights_is_one_line(tmp_path):
    "A limit on the size of a file stands for the full disk: safetensors then fails by itself, in its own words."
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "from xgdetox import cli\ncli.main(sys.argv[1:])"
    )
    words = [
        "train",
        "--model",
        "world",
        "--data-dir",
        "world",
        "--limit",
        "32",
        "--max-steps",
        "2",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == f"xgdetox: {tmp_path / 'run'}: {DISK_FULL}"
    assert (
        not (tmp_path / "run/final_checkpoint").exists()
        and not (tmp_path / "run/manifest.json").exists()
    )


def test_generate_on_a_full_disk_is_one_line(fails, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = fails(
        "generate",
        "--model",
        MODEL,
        "--prompt-file",
        "world",
        "-l",
        "en",
        "--limit",
        1,
        "--n",
        1,
        "--max-tokens",
        1,
        "--device",
        "cpu",
        "--output-dir",
        tmp_path / "o",
    )
    assert "o/world: the disk is full" in said and not list(tmp_path.rglob("output-*.json"))


def test_score_on_a_full_disk_is_one_line(fails, monkeypatch, tmp_path):
    (tmp_path / "output-rtp_lx_en.json").write_text(
        json.dumps({"prompt": "a", "generated_text": "b"}) + "\n"
    )

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in fails(
        "score",
        "--generations",
        tmp_path,
        "--scorer",
        "lexicon:world",
        "--output-dir",
        tmp_path / "s",
    )
    assert not [p for p in tmp_path.rglob("s/*") if p.suffix in (".json", ".parquet", ".csv")]


def test_standard_output_that_takes_nothing_is_one_line():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "xgdetox.cli", "data"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and done.stderr == f"xgdetox: standard output: {DISK_FULL}\n"


def test_a_closed_pipe_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m xgdetox.cli data | true",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.stderr == ""


@pytest.fixture
def tiny_disk(tmp_path):
    "A file system of 300 kB, where the system lets us have one."
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)])


def test_a_tiny_disk_that_is_really_full(tiny_disk):
    "train ends with one line and leaves no finished model."
    out = tiny_disk / "run"
    few = ["--limit", "32", "--max-steps", "2", "--output-dir", str(out)]
    words = ["train", "--model", "world", "--data-dir", "world", *few]
    command = [sys.executable, "-m", "xgdetox.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"xgdetox: {tiny_disk}")
    assert "the disk is full" in done.stderr
    assert not (out / "final_checkpoint").exists() and not (out / "manifest.json").exists()
