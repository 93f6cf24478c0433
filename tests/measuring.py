"What the benches share: CPU time, a row of a ratio, and the file in results/."

import csv
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ("what", "value", "wanted", "ours", "other")


def timed(f):
    "(CPU seconds, result) of a call."
    start = time.process_time()
    result = f()
    return time.process_time() - start, result


def least(f, repeats: int = 1) -> float:
    "The least CPU seconds of some calls."
    return min(timed(f)[0] for _ in range(repeats))


def ratio(what: str, a: float, b: float, wanted="", ours=None, other=None, digits: int = 2) -> dict:
    "A row: how many times `b` goes into `a`, beside the seconds `ours` (default `b`) and `other` (default `a`)."
    ours, other = b if ours is None else ours, a if other is None else other
    seconds = dict(ours=round(ours, digits), other=round(other, digits))
    return dict(what=what, value=round(a / b, 2), wanted=wanted) | seconds


def say(rows) -> None:
    for r in rows:
        wanted = f" (wanted {r['wanted']})" if r["wanted"] else ""
        print(f"{r['what']}: {r['value']}{wanted}", flush=True)


def keep(rows, name: str) -> None:
    "Write rows to results/NAME.csv."
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.csv", "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows)
