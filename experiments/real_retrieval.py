"""Retrieval on real parallel text, the first 200 pairs of each source, so that chance is .005
everywhere (page 09).

    python experiments/real_retrieval.py MODEL [results/retrieval_real.csv]

XGDETOX_DATA holds parallel/ (see `xgdetox data`). MODEL: a checkpoint such as
runs/real-data/models/tiny of experiments/real-data.yaml. The prompts that upstream had translated by
machine are taken once more in RTP-LX's human renderings (human, machine: the same prompts). Only counts
and accuracies enter the table.
"""

import os, sys
from pathlib import Path

import pandas as pd
from xgdetox.models import load_model
from xgdetox.tokens import load_tokenizer
from xgdetox.retrieval import load_aligned, retrieve
from xgdetox.stats import tidy, write_table


def same_prompts(machine: dict, human: dict) -> tuple[dict, dict]:
    "The pairs of both sources that have the same English, as {language: (texts, english)} each."
    out = {}, {}
    for c in machine.keys() & human.keys():
        both = (
            machine[c]
            .drop_duplicates("english")
            .merge(
                human[c].drop_duplicates("english"), on="english", suffixes=("_machine", "_human")
            )
        )
        for to, side in zip(out, ("machine", "human")):
            to[c] = list(both[f"text_{side}"]), list(both.english)
    return out


def main(model, table="results/retrieval_real.csv", n=200):
    folder, name = (
        Path(os.environ.get("XGDETOX_DATA", "../shared/data")) / "parallel",
        f"{Path(model).name} (real text)",
    )
    network, tokenizer = load_model(model), load_tokenizer(model)
    places = {
        "machine": folder / "translated_prompts",
        "human": folder / "rtplx_aligned",
        "Tatoeba": folder / "tatoeba",
        "NTREX": folder / "ntrex",
    }
    machine, human = same_prompts(*(load_aligned(places[p])[0] for p in ("machine", "human")))
    rows = []
    for data, where in {
        "machine, raw": places["machine"],
        "machine, cleaned": places["machine"],
        "machine, same prompts": machine,
        "human, same prompts": human,
        "RTP-LX": places["human"],
        "Tatoeba": places["Tatoeba"],
        "NTREX": places["NTREX"],
    }.items():
        t = retrieve(
            network,
            where,
            tokenizer=tokenizer,
            csls=True,
            paper=data.endswith("raw"),
            model_name=name,
            n_resamples=1000,
            limit=n,
        )
        rows.append(
            t[t.layer.isna() & (t.direction.isna() | t.direction.isin(["", "both"]))].assign(
                data=data
            )
        )
        print(data, len(t), flush=True)
    write_table(tidy(pd.concat(rows).drop(columns=["layer", "direction"])).round(4), table)


if __name__ == "__main__":
    main(*sys.argv[1:])
