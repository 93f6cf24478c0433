"""The largest inputs at their real sizes, generated.

Seconds of CPU and peak memory of the loaders against plain pandas (the original's way).
Writes results/bench_data.csv."""

import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path


def write_pairs(folder, rows: int = 24_576, files: int = 6, batch: int = 16, seed: int = 0):
    "Generated pairs with every field of the real ones; each row repeats the token ids of a `batch` of rows."
    r, folder = random.Random(seed), Path(folder)
    words = "the of and in to was for on as by with at from his her were an be this which".split()
    text, ids = lambda n: " ".join(r.choices(words, k=n)), lambda n: r.choices(range(50_257), k=n)
    for file in range(files):
        shared = json.dumps([ids(96) for _ in range(batch)])
        with open(folder / f"split_{file}.jsonl", "w") as f:
            for _ in range(rows // files):
                row = {
                    "prompt_text": text(20),
                    "prompt_input_ids": ids(24),
                    "gold_text": text(40),
                    "gold_input_ids": ids(60),
                    "unpert_gen_text": " " + text(20),
                    "pert_gen_text": " " + text(20),
                }
                f.write(json.dumps(row)[:-1] + f', "unpert_gen_token_ids": {shared}}}\n')


def write_comments(folder, rows: int = 159_571, seed: int = 0):
    "A train.csv of Jigsaw's size: rows of about 400 characters in Kaggle's columns."
    r, words = (
        random.Random(seed),
        "the of and in to was for on as by with at from his her were an be this which".split(),
    )
    with open(Path(folder) / "train.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(
            "id comment_text toxic severe_toxic obscene threat insult identity_hate".split()
        )
        for i in range(rows):
            out.writerow(
                [i, " ".join(r.choices(words, k=r.randint(10, 220))), i % 10 == 0, 0, 0, 0, 0, 0]
            )


def write_prompts(folder, rows: int = 99_442, seed: int = 0):
    "A prompts.jsonl of RealToxicityPrompts' size and fields."
    r, words = (
        random.Random(seed),
        "the of and in to was for on as by with at from his her were an be this which".split(),
    )
    scores = {
        k: 0.5
        for k in "profanity sexually_explicit identity_attack flirtation threat insult severe_toxicity toxicity".split()
    }
    with open(Path(folder) / "prompts.jsonl", "w") as f:
        for i in range(rows):
            f.write(
                json.dumps(
                    {
                        "filename": f"{i}.txt",
                        "begin": 0,
                        "end": 99,
                        "challenging": False,
                        "prompt": {"text": " ".join(r.choices(words, k=14)), **scores},
                        "continuation": {"text": " ".join(r.choices(words, k=14)), **scores},
                    }
                )
                + "\n"
            )


# what -> (how to write it, our code, the plain pandas code that upstream uses for such files, rows)
JOBS = {
    "pairs": (
        write_pairs,
        "from xgdetox.data import load_pairs; n = len(load_pairs(folder).rows)",
        "import pandas, glob; n = sum(len(pandas.read_json(f, lines=True)) for f in glob.glob(folder + '/*.jsonl'))",
        24_576,
    ),
    "comments": (
        write_comments,
        "from xgdetox.data import load_labelled; n = len(load_labelled(folder + '/train.csv').rows)",
        "import pandas; n = len(pandas.read_csv(folder + '/train.csv'))",
        159_571,
    ),
    "prompts": (
        write_prompts,
        "from xgdetox.data import load_prompts; n = len(load_prompts(folder + '/prompts.jsonl').rows)",
        "import pandas; n = len(pandas.read_json(folder + '/prompts.jsonl', lines=True))",
        99_442,
    ),
}


def measure(code: str, folder) -> tuple[int, float, float]:
    "(rows, CPU seconds with imports, peak MB) in a process of its own."
    code = (
        f"import resource, time\nfolder = {str(folder)!r}\n{code}\n"
        "u = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(n, time.process_time(), u.ru_maxrss / 1024)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


if __name__ == "__main__":
    table = [
        [
            "what",
            "rows",
            "file_mb",
            "ours_cpu_seconds",
            "pandas_cpu_seconds",
            "cpu_ratio",
            "ours_peak_mb",
            "pandas_peak_mb",
            "peak_ratio",
        ]
    ]
    for what, (write, ours, plain, rows) in JOBS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            size = sum(f.stat().st_size for f in Path(folder).iterdir()) / 2**20
            (n, cpu, peak), (_, cpu_plain, peak_plain) = (
                measure(ours, folder),
                measure(plain, folder),
            )
        assert n == rows
        if what == "pairs":
            missed = cpu >= 5 or peak >= 500  # the bound on the paper's pairs
        table.append(
            [
                what,
                rows,
                round(size),
                round(cpu, 2),
                round(cpu_plain, 2),
                round(cpu / cpu_plain, 2),
                round(peak),
                round(peak_plain),
                round(peak / peak_plain, 2),
            ]
        )
    results = Path(__file__).parent.parent / "results" / "bench_data.csv"
    with open(results, "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows(table)
    for row in table:
        print(*(f"{str(x):>18}" for x in row))
    if missed:
        sys.exit("the pairs took 5 s of CPU or 500 MB, or more")
