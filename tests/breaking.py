"""A small workplace of every kind of input that a command reads, ways to break it, and a judge of what follows.

`test_faults.py` lets hypothesis choose; `python tests/breaking.py [COMMAND]` tries every way once and lists what went
wrong."""

import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]
LANGUAGES = ("en", "de")


def first_lines(source: Path, target: Path, n: int):
    "The first `n` lines of a file as another file."
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = source.read_text(encoding="utf-8").splitlines(True)
    target.write_text("".join(lines[:n]), encoding="utf-8")


def copy_world(folder: Path):
    "Prompts, pairs, labelled comments, parallel sentences and word lists of the embedded world, a few rows each."
    from xgdetox.world import resolve_data

    place = {
        what: Path(resolve_data("world", what))
        for what in ("prompts", "pairs", "labelled", "parallel", "lexicon")
    }
    first_lines(next(place["pairs"].iterdir()), folder / "pairs" / "pairs.jsonl", 12)
    first_lines(place["labelled"] / "train.csv", folder / "labelled" / "train.csv", 40)
    for code in LANGUAGES:
        name = f"RTP_LX_{code.upper()}.json"
        first_lines(place["prompts"] / name, folder / "prompts" / name, 3)
        first_lines(place["labelled"] / f"{code}.csv", folder / "labelled" / f"{code}.csv", 30)
        name = f"dpo_toxicity_pairwise_{code}_200.jsonl"
        first_lines(place["parallel"] / name, folder / "parallel" / name, 14)
        first_lines(place["lexicon"] / f"{code}.txt", folder / "lexicon" / f"{code}.txt", 8)
    write_tsv(folder)


def write_tsv(folder: Path):
    "The parallel sentences once more, as one table of two columns."

    def read(code):
        lines = (
            (folder / "parallel" / f"dpo_toxicity_pairwise_{code}_200.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        )
        return [json.loads(line)["Prompt"] for line in lines]

    rows = ["en\tde", *(f"{a}\t{b}" for a, b in zip(read("en"), read("de")))]
    (folder / "tsv").mkdir()
    (folder / "tsv" / "en-de.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_models(folder: Path):
    "A tiny random model, another one as its tuned self, and a LoRA adapter of the first."
    import torch
    from peft import LoraConfig, get_peft_model
    import tiny_models

    model, _ = tiny_models.model("gpt2", folder / "model", seed=0, wide=32)
    tiny_models.model("gpt2", folder / "tuned", seed=1, wide=32)
    adapted = get_peft_model(
        model,
        LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True),
    )
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    note = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    note["base_model_name_or_path"] = str(folder / "model")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(note))


OF_THE_MODEL = {  # words that are tokens of the tiny models
    "en": ["house", "river", "bridge", "nobody"],
    "de": ["Hause", "alte", "nach", "geht"],
}


def write_evidence(folder: Path):
    "Pairs and words per language."
    (folder / "by-language").mkdir()
    for code in LANGUAGES:
        shutil.copy(folder / "pairs" / "pairs.jsonl", folder / "by-language" / f"{code}.jsonl")
    (folder / "words").mkdir()
    for code, words in OF_THE_MODEL.items():
        (folder / "words" / f"{code}.txt").write_text("\n".join(words) + "\n")


def write_matrix(folder: Path):
    "Drops after tuning in three languages, and retrieval between five."
    chance, codes = random.Random(0), ("en", "de", "es", "fr", "it")
    same = dict(model="m", seed=0, metric="toxic_mass_relative_drop", low=0, high=1, n=9, scorer="")
    drops = [
        dict(same, tuning=tuning, language=code, value=chance.random())
        for tuning in ("dpo", "dpo-de", "dpo-es")
        for code in codes
    ]
    pairs = [(source, code) for source, code in itertools.product(codes, codes) if source != code]
    same = dict(model="m", tuning="base", seed=0, metric="top1", low=0, high=1, n=20, scorer="")
    found = [dict(same, source=a, language=b, value=chance.random()) for a, b in pairs]
    (folder / "tables").mkdir()
    pd.DataFrame(drops).to_csv(folder / "tables" / "drops.csv", index=False)
    pd.DataFrame(found).to_csv(folder / "retrieval.csv", index=False)


RECIPE = "loss: sigmoid\nmethod: full\nmax_steps: 2\nbatch_size: 2\neval_pairs: 2\nmax_length: 32\n"
GRID = """about: a small one
models:
  m: {path: HERE/model, tuned: {t: HERE/tuned}}
languages: [en, de]
data: {prompts: HERE/prompts, labelled: HERE/labelled, parallel: HERE/parallel, lexicon: HERE/lexicon}
scorers: {lexicon: "lexicon:HERE/lexicon"}
generate: {n: 2, max_tokens: 3}
stages: [generate, score, mass, retrieve, report]
"""


def make_workplace(folder: Path) -> Path:
    "All inputs, the later ones made by the commands themselves."
    folder.mkdir(parents=True)
    copy_world(folder)
    write_models(folder)
    write_evidence(folder)
    write_matrix(folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "grid.yaml").write_text(GRID.replace("HERE", str(folder)))
    (folder / "neurons.json").write_text("[[0, 1], [1, 5], [1, 30]]\n")
    kept = {
        "generate": ("model", "generations"),
        "score": ("", "scores"),
        "mass": None,
        "probe": ("", "probe"),
        "quality": None,
    }
    for command, place in kept.items():
        code, _, err = call(*words_of(command, folder, folder / f"made-{command}"))
        assert code == 0, (command, err)
        if place:
            shutil.move(folder / f"made-{command}" / place[0], folder / place[1])
    run = folder / "run" / "parts"
    for kind, source in (("mass", "made-mass/table.csv"), ("quality", "made-quality/table.csv")):
        (run / kind).mkdir(parents=True)
        shutil.copy(folder / source, run / kind / "m-base.csv")
    for rest in folder.glob("made-*"):
        shutil.rmtree(rest)
    return folder


@dataclass(frozen=True)
class Command:
    """A command line with the inputs that it reads and the numeric flags that it has.

    HERE is the workplace, OUT a folder that is not there yet."""

    words: str
    reads: tuple
    numbers: tuple = ()


FEW = "--prompt-file HERE/prompts "
COMMANDS = {
    "train": Command(
        "train --model HERE/model --data-dir HERE/pairs --recipe HERE/recipe.yaml --output-dir OUT",
        ("model", "pairs", "recipe.yaml"),
        (
            "seed",
            "learning-rate",
            "batch-size",
            "gradient-accumulation",
            "epochs",
            "max-steps",
            "beta",
            "limit",
            "lora-r",
            "max-length",
            "eval-pairs",
            "warmup-steps",
        ),
    ),
    "merge": Command(
        "merge --base-model HERE/model --lora-adapter HERE/adapter --output-dir OUT",
        ("model", "adapter"),
    ),
    "generate": Command(
        "generate --model HERE/model " + FEW + "--output-dir OUT --n 2 --max-tokens 3",
        ("model", "prompts"),
        ("n", "temperature", "top-p", "max-tokens", "seed", "limit", "tensor-parallel-size"),
    ),
    "generate-adapter": Command(
        "generate --model HERE/adapter " + FEW + "--output-dir OUT --n 2 --max-tokens 3",
        ("model", "adapter", "prompts"),
    ),
    "score": Command(
        "score --generations HERE/generations --scorer lexicon:HERE/lexicon --output-dir OUT",
        ("generations", "lexicon"),
    ),
    "toxicity": Command(
        "toxicity --scores HERE/scores --output OUT/table.csv", ("scores",), ("threshold",)
    ),
    "calibrate": Command(
        "calibrate --labelled HERE/labelled --scorer lexicon:HERE/lexicon "
        "--language en --language de --output OUT/c.json",
        ("labelled", "lexicon"),
        ("limit",),
    ),
    "mass": Command(
        "mass --model HERE/model " + FEW + "--lexicon HERE/lexicon --output OUT/table.csv",
        ("model", "prompts", "lexicon"),
        ("limit",),
    ),
    "quality": Command(
        "quality --generations HERE/generations --lm HERE/model --output OUT/table.csv",
        ("generations", "model"),
        ("seed",),
    ),
    "probe": Command(
        "probe --model HERE/model --train-file HERE/labelled/train.csv --test-dir HERE/labelled --output-dir OUT",
        ("model", "labelled"),
        ("layer", "seed", "limit"),
    ),
    "value-vectors": Command(
        "value-vectors --model HERE/model --probe HERE/probe "
        + FEW
        + "--lexicon HERE/lexicon --top-k 5 --output OUT/table.csv",
        ("model", "probe", "prompts", "lexicon"),
        ("top-k", "limit"),
    ),
    "intervene": Command(
        "intervene --model HERE/model --neurons HERE/neurons.json --offset -1 "
        + FEW
        + "--scorer lexicon:HERE/lexicon --output-dir OUT --limit 2",
        ("model", "neurons.json", "prompts", "lexicon"),
        ("n", "temperature", "offset", "limit"),
    ),
    "activations": Command(
        "activations --model HERE/model --tuned-model HERE/tuned --neurons HERE/neurons.json "
        + FEW
        + "--limit 2 --output OUT/table.csv",
        ("model", "tuned", "neurons.json", "prompts"),
        ("limit",),
    ),
    "explain": Command(
        "explain --model HERE/model --tuned-model HERE/tuned --neurons HERE/neurons.json --probe HERE/probe "
        + FEW
        + "--lexicon HERE/lexicon --random 1 --limit 2 --output OUT/table.csv",
        ("model", "tuned", "neurons.json", "probe", "prompts", "lexicon"),
        ("random", "seed", "limit"),
    ),
    "retrieve": Command(
        "retrieve --model HERE/model --parallel-dir HERE/parallel --language de --output OUT/table.csv",
        ("model", "parallel"),
    ),
    "retrieve-tsv": Command(
        "retrieve --model HERE/model --parallel-dir HERE/tsv --language de --output OUT/table.csv",
        ("tsv",),
    ),
    "report": Command("report HERE/run -o OUT/report.html", ("run",)),
    "status": Command("status HERE/grid.yaml --run-dir OUT", ("grid.yaml",)),
    "run-dry": Command(
        "run HERE/grid.yaml --run-dir OUT --dry-run", ("grid.yaml", "model", "prompts"), ("cores",)
    ),
}


PAIR = "--model HERE/model --tuned-model HERE/tuned " + FEW + "--lexicon HERE/lexicon --limit 2 "
PAIR_READS = ("model", "tuned", "prompts", "lexicon")
COMMANDS |= {
    "patching": Command(
        "patching " + PAIR + "--neurons HERE/neurons.json --sets 2 --output OUT/table.csv",
        (*PAIR_READS, "neurons.json"),
        ("sets", "seed", "limit"),
    ),
    "twins": Command(
        "twins --model HERE/model --neurons HERE/neurons.json "
        + FEW
        + "--limit 2 --output OUT/twins.json",
        ("model", "neurons.json", "prompts"),
        ("seed", "limit"),
    ),
    "held": Command(
        "held " + PAIR + "--held-model HERE/tuned --held-neurons HERE/neurons.json "
        "--random-model HERE/tuned --random-neurons HERE/neurons.json --output OUT/table.csv",
        (*PAIR_READS, "neurons.json"),
        ("seed", "limit"),
    ),
    "dose": Command(
        "dose " + PAIR + "--probe HERE/probe --dose .1 --sets 2 --output OUT/table.csv",
        (*PAIR_READS, "probe"),
        ("dose", "sets", "seed", "limit"),
    ),
    "kinds": Command(
        "kinds --model HERE/model --tuned-model HERE/tuned "
        + FEW
        + "--lexicon HERE/words --limit 2 "
        "--probe HERE/probe --top 100 --k 20 --least 1 --caliper 100 --output OUT/table.csv",
        ("model", "tuned", "prompts", "words", "probe"),
        ("top", "k", "least", "caliper", "seed", "limit"),
    ),
    "pairwise": Command(
        "pairwise --model HERE/model --parallel-dir HERE/parallel --language de "
        "--output OUT/table.csv",
        ("model", "parallel"),
        ("limit",),
    ),
    "matrix": Command(
        "matrix --drops HERE/tables/drops.csv --retrieval HERE/retrieval.csv --permutations 20 "
        "--output OUT/table.csv",
        ("tables", "retrieval.csv"),
        ("permutations", "seed"),
    ),
    "early": Command(
        "early --model HERE/model --tuned-model HERE/tuned --pairs HERE/by-language --limit 4 "
        "--output OUT/table.csv",
        ("model", "tuned", "by-language"),
        ("beta", "limit"),
    ),
    "verdicts": Command("verdicts HERE/tables --output OUT/table.csv", ("tables",)),
}


def words_of(command: str, here: Path, out: Path, *more) -> list[str]:
    "The words of a command with its places filled in."
    one = COMMANDS[command]
    return [
        w.replace("HERE", str(here)).replace("OUT", str(out)) for w in one.words.split()
    ] + list(more)


def call(*words) -> tuple[int | str, str, str]:
    """(exit code, stdout, stderr) of the command line, run in this process.

    The code is the traceback where an exception came out."""
    from xgdetox import cli

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        streams = sys.stdout, sys.stderr
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = open(os.dup(1), "w"), open(os.dup(2), "w")
        try:
            code = _exit_code(cli, words)
        finally:
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout, sys.stderr = streams
            for k, handle in enumerate(kept, 1):
                os.dup2(handle, k)
                os.close(handle)
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def _exit_code(cli, words):
    try:
        cli.main([str(w) for w in words])
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        return traceback.format_exc()
    return 0


# ---- ways to break a file


def cut(path, chance):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * chance.random())])


def empty(path, chance):
    path.write_bytes(b"")


def remove(path, chance):
    path.unlink()


def rename(path, chance):
    path.rename(path.with_name(chance.choice(["other", "x-"]) + path.name))


def make_folder(path, chance):
    path.unlink()
    path.mkdir()


def spoil_bytes(path, chance):
    data = bytearray(path.read_bytes())
    for _ in range(3):
        data[chance.randrange(len(data))] = chance.choice([0, 255, 128, 34, 10])
    path.write_bytes(bytes(data))


def change_lines(path, chance):
    lines = path.read_text(encoding="utf-8").splitlines(True)
    k = chance.randrange(len(lines))
    how = chance.choice("drop double blank swap".split())
    if how == "drop":
        del lines[k]
    if how == "double":
        lines.insert(k, lines[k])
    if how == "blank":
        lines[k] = "\n"
    if how == "swap":
        lines[k] = lines[k][::-1].strip() + "\n"
    path.write_text("".join(lines), encoding="utf-8")


ODD = [
    None,
    True,
    -1,
    0,
    3.5,
    10**30,
    "",
    " ",
    "x",
    "\ud800",
    "\r",
    [],
    {},
    [1],
    {"a": 1},
    float("nan"),
    float("inf"),
    "NaN",
]


def places(value, at=()):
    "Every place in a JSON value, as paths of keys."
    yield at
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield from places(part, (*at, key))


def change_value(value, chance):
    "A JSON value with one place dropped, renamed, or given an odd value."
    spots = [p for p in places(value) if p]
    if not spots:
        return chance.choice(ODD)
    *above, last = chance.choice(spots)
    holder = value
    for key in above:
        holder = holder[key]
    how = chance.choice(["drop", "rename", "odd", "odd"])
    if how == "drop":
        del holder[last]
    elif how == "rename" and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    else:
        holder[last] = chance.choice(ODD)
    return value


def change_json(path, chance):
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except ValueError:
        lines = text.splitlines()
        k = chance.randrange(len(lines))
        lines[k] = json.dumps(change_value(json.loads(lines[k]), chance))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    path.write_text(json.dumps(change_value(whole, chance)), encoding="utf-8")


def change_cells(path, chance):
    "A table with one cell, one column or one header changed."
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    column = chance.choice(list(table))
    how = chance.choice("drop rename odd odd".split())
    if how == "drop":
        table = table.drop(columns=column)
    elif how == "rename":
        table = table.rename(columns={column: column + "x"})
    else:
        table.loc[chance.randrange(max(1, len(table))), column] = chance.choice(
            ["", " ", "x", "nan", "inf", "-1", "1e400", "\r", '"', "7"]
        )
    table.to_csv(path, sep=separator, index=False)


def change_yaml(path, chance):
    import yaml

    value = change_value(yaml.safe_load(path.read_text(encoding="utf-8")), chance)
    path.write_text(
        yaml.safe_dump(value, allow_unicode=True), encoding="utf-8", errors="surrogatepass"
    )


def change_weights(path, chance):
    "Weights with one tensor dropped, renamed, reshaped or not a number, or all of them with another prefix."
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {k: v.clone() for k, v in load_file(path).items()}
    name = chance.choice(sorted(tensors))
    how = chance.choice("drop rename reshape nan inf prefix type".split())
    if how == "drop":
        del tensors[name]
    if how == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    if how == "reshape":
        tensors[name] = tensors[name][..., :-1].clone()
    if how in ("nan", "inf"):
        tensors[name].view(-1)[0] = float(how)
    if how == "prefix":
        tensors = {f"module.{k}": v for k, v in tensors.items()}
    if how == "type":
        tensors[name] = tensors[name].to(torch.int32)
    save_file(tensors, path, metadata={"format": "pt"})


ANY = (cut, empty, remove, rename, make_folder, spoil_bytes)
WAYS = {
    ".json": (*ANY, change_lines, change_json),
    ".jsonl": (*ANY, change_lines, change_json),
    ".csv": (*ANY, change_lines, change_cells),
    ".tsv": (*ANY, change_lines, change_cells),
    ".yaml": (*ANY, change_lines, change_yaml),
    ".safetensors": (*ANY, change_weights, change_weights),
    ".txt": (*ANY, change_lines),
    ".parquet": ANY,
}
NUMBERS = [
    "-1",
    "0",
    "1e-300",
    "nan",
    "inf",
    "-inf",
    "1e300",
    "9" * 25,
    "x",
    "",
    "-0.5",
    "12345678901",
    "0.5",
    "1",
    "3",
]


def files_of(command: str, here: Path) -> list[Path]:
    "The files that a command reads."
    found = [
        p
        for name in COMMANDS[command].reads
        for p in ([here / name] if (here / name).is_file() else sorted((here / name).rglob("*")))
    ]
    return [p for p in found if p.is_file() and p.suffix in WAYS]


# ---- the judge


def left_behind(out: Path) -> list[str]:
    "Files in and beside a command's output that a refusal must not leave."
    return [str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()] if out.exists() else []


def tables_of(out: Path) -> dict:
    "The CSV and JSON Lines that a command wrote, by name."
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.suffix in (".csv", ".json", ".parquet") and "manifest" not in p.name
    }


def fault_of(code, err: str, out: Path, must_fail: bool = False) -> str:
    "What is wrong with how a command ended; empty if nothing is."
    lines = err.splitlines()
    if code == 0:
        return "a broken input gave exit code 0" if must_fail else ""
    if not isinstance(code, int):
        return "an exception came out: " + code.strip().splitlines()[-1]
    if code != 2:
        return f"exit code {code}: {err[-300:]}"
    if "Traceback" in err:
        return "a traceback"
    if len(lines) != 1 or not lines[0].startswith("xgdetox: "):
        return f"{len(lines)} lines on stderr: {err[:600]!r}"
    # a run that diverged keeps its last good weights, and says so
    diverged = "the run diverged" in err and str(out / "diverged") in err
    if (left := left_behind(out)) and not diverged:
        return f"left behind: {left[:5]}"
    return ""


def try_file(command: str, here: Path, file: str, way, salt: int) -> tuple[str, str]:
    "(what went wrong, what the command said) with one file of a copy of the workplace broken in one way."
    with tempfile.TemporaryDirectory() as place:
        mine, out = Path(place) / "w", Path(place) / "out"
        shutil.copytree(here, mine)
        for text in (mine / "grid.yaml", mine / "adapter" / "adapter_config.json"):
            text.write_text(text.read_text().replace(str(here), str(mine)))
        before = (mine / file).read_bytes()
        try:
            way(mine / file, random.Random(salt))
        except UnicodeEncodeError:
            return "", ""
        if (mine / file).is_file() and (mine / file).read_bytes() == before:
            return "", ""
        weights = way is change_weights and "probe" not in file
        code, said, err = call(*words_of(command, mine, out))
        return fault_of(
            code, err, out, must_fail=weights and not _harmless(mine / file, here / file)
        ), str(code) + " " + err + said


def _harmless(after: Path, before: Path) -> bool:
    "Do changed weights hold the same numbers under the same names?"
    import torch
    from safetensors.torch import load_file

    try:
        a, b = load_file(after), load_file(before)
    except Exception:
        return False
    return a.keys() == b.keys() and all(torch.equal(a[k].float(), b[k].float()) for k in a)


def try_number(command: str, here: Path, flag: str, value: str) -> tuple[str, str]:
    "The same with a number that the flag should refuse, or take."
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        code, said, err = call(*words_of(command, here, out, f"--{flag}={value}"))
        nonsense = value in ("x", "", "nan", "inf", "-inf", "1e300", "9" * 25)
        return fault_of(code, err, out, must_fail=nonsense), str(code) + " " + err + said


def every_file(command, here, salts):
    "Each way to break each file that a command reads: (what was done, its fault)."
    for file in files_of(command, here):
        name = str(file.relative_to(here))
        for way in dict.fromkeys(WAYS[file.suffix]):
            for salt in range(salts * (6 if way.__name__.startswith("change") else 1)):
                fault, _ = try_file(command, here, name, way, salt)
                yield f"{command} {name} {way.__name__} {salt}", fault[:400]


def every_number(command, here):
    "Each number for each flag of a command: (what was done, its fault)."
    for flag in COMMANDS[command].numbers:
        for value in NUMBERS:
            fault, _ = try_number(command, here, flag, value)
            yield f"{command} --{flag}={value}", fault[:400]


def survey(commands, salts: int = 1):
    "Try everything once; print each fault as it is found."
    with tempfile.TemporaryDirectory() as place:
        here = make_workplace(Path(place) / "here")
        for command in commands:
            begin, found = time.time(), []
            tries = itertools.chain(every_file(command, here, salts), every_number(command, here))
            for what, fault in tries:
                found.append(fault)
                if fault:
                    print(f"FAULT {what}: {fault}", flush=True)
            faults, seconds = sum(map(bool, found)), time.time() - begin
            print(f"== {command}: {len(found)} tried, {faults} faults, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    survey(sys.argv[1:] or COMMANDS)
