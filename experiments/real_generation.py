"""Every prompt of a folder through a model, 25 continuations each: seconds, peak memory and what was
left out, by language (page 02).

    python experiments/real_generation.py MODEL PROMPT_FOLDER OUTPUT_FOLDER [results/generation_real.csv]

The texts stay in OUTPUT_FOLDER; only counts and costs enter the table. Cut off, the same command goes on.
"""

import os, re, sys, time
from collections import Counter
from pathlib import Path

from xgdetox.data import find_prompt_files
from xgdetox.files import read_json
from xgdetox.generation import generate
from xgdetox.models import load_model
from xgdetox.stats import tidy, write_table


def peak_megabytes() -> float:
    "The most memory that this process has held."
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main(model, prompts, output, table="results/generation_real.csv", n=25):
    load_model(model)
    before, start = peak_megabytes(), (time.time(), time.process_time())
    files = generate(model, find_prompt_files(prompts), output, n=n)
    told, rows = read_json(next(iter(files.values())).parent / "manifest.json")["files"], []
    for language, path in files.items():
        said = told[path.name]
        keep = Counter(prompts=said["prompts"], rows=said["rows"], seconds=said["seconds"])
        for r in said["remarks"]:
            keep[
                re.search("empty|blank line|repeated (id|row)|same text|cut", r["reason"])[
                    0
                ].replace(" ", "_")
            ] += r.get("rows", 1)
        rows += [
            dict(
                model=Path(model).name,
                tuning="base",
                language=language,
                metric=m,
                value=v,
                n=said["prompts"],
            )
            for m, v in keep.items()
        ]
    whole = dict(
        prompts=sum(r["value"] for r in rows if r["metric"] == "prompts"),
        rows=sum(r["value"] for r in rows if r["metric"] == "rows"),
        wall_seconds=time.time() - start[0],
        cpu_seconds=time.process_time() - start[1],
        peak_mb=peak_megabytes(),
        peak_mb_before=before,
    )
    rows += [
        dict(model=Path(model).name, tuning="base", language="all", metric=m, value=v)
        for m, v in whole.items()
    ]
    print(*(f"{m} {v:,.0f}" for m, v in whole.items()), sep="\n")
    write_table(tidy(rows), table)


if __name__ == "__main__":
    main(*sys.argv[1:])
