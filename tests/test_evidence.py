"The evidence stages: patching both ways, held neurons, doses, the transfer matrix, early warning, verdicts."

import copy
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch

from xgdetox.data import find_prompt_files, load_lexicon, load_prompts
from xgdetox.files import InputError, read_csv, read_json
from xgdetox.models import load_model
from xgdetox.tokens import load_tokenizer
from xgdetox.outcome import values_path
from xgdetox.patching import (
    DIRECTIONS,
    draw_weights,
    joint_verdict,
    neuron_verdict,
    patch_both_ways,
    share_draws,
    share_rows,
)
from xgdetox.world import resolve_data, resolve_model

PLANTED = [[2, n] for n in range(40, 60)]


@pytest.fixture(scope="module")
def world():
    "The embedded model and its tokenizer."
    return load_model(resolve_model("world")), load_tokenizer(resolve_model("world"))


@pytest.fixture(scope="module")
def files():
    return find_prompt_files(resolve_data("world", "prompts"), ["en", "de", "fr"])


@pytest.fixture(scope="module")
def lexicon():
    return resolve_data("world", "lexicon")


def planted(base, shift: float = 2.0):
    "A copy of the world's model whose neurons `PLANTED` alone answer otherwise: their biases are shifted."
    other = copy.deepcopy(base)
    with torch.no_grad():
        for layer, n in PLANTED:
            other.transformer.h[layer].mlp.c_fc.bias[n] += shift
    return other


def falling_pair(world, files, lexicon):
    "The world's model and its planted copy, in the order in which English toxic mass falls."
    from xgdetox.mass import toxic_mass

    base, tokenizer = world
    other = planted(base)
    texts = list(load_prompts(files["en"], "en", 8).rows["prompt"])
    words = load_lexicon(lexicon, "en")
    masses = [toxic_mass(m, tokenizer, texts, words).mean() for m in (base, other)]
    return (base, other) if masses[0] > masses[1] else (other, base)


# ---- patching


def test_planted_neurons_carry_all_and_their_twins_nothing(world, files, lexicon, tmp_path):
    base, tuned = falling_pair(world, files, lexicon)
    table = patch_both_ways(
        base,
        tuned,
        PLANTED,
        files,
        lexicon,
        sets=3,
        tokenizer=world[1],
        limit=8,
        n_resamples=50,
        output=tmp_path / "patching.csv",
    )
    english = table[table.language == "en"].set_index(["direction", "metric"])
    for direction in DIRECTIONS:  # only these neurons differ, and their twins lie in the same layer
        one = english.loc[direction]
        assert one.value["carried_share"] == pytest.approx(1, abs=1e-4)
        assert one.value["random_share"] == pytest.approx(0, abs=1e-4)
        assert one.low["carried_beyond_random"] == pytest.approx(1, abs=1e-4)
        assert one.sets["carried_beyond_random"] == 3
        assert one.verdict["carried_beyond_random"] == "undecided"  # 3 sets are too few
    values = read_csv(values_path(tmp_path / "patching.csv"))
    assert np.allclose(values["into base, selected"], values["tuned"], atol=1e-6)
    assert np.allclose(values["into tuned, selected"], values["base"], atol=1e-6)
    assert np.allclose(values["into base, random"], values["base"], atol=1e-6)


def test_shares_of_draws_are_those_of_a_plain_loop():
    rng = np.random.default_rng(1)
    fall, moved = rng.random((2, 5)), rng.random((2, 4, 5))  # language, (set,) prompt
    prompts, sets = draw_weights(5, 3, 20, 0)
    found = share_draws(fall, moved, prompts, sets)
    for draw in range(21):
        whole = sum(prompts[draw, p] * fall[l, p] for l in range(2) for p in range(5))
        each = [
            sum(prompts[draw, p] * moved[l, s, p] for l in range(2) for p in range(5))
            for s in range(4)
        ]
        mean = sum(w * x for w, x in zip(sets[draw], each[1:]))
        assert found["carried_beyond_random"][draw] == pytest.approx((each[0] - mean) / whole)
    assert prompts.sum(1) == pytest.approx(5) and sets.sum(1) == pytest.approx(1)


def test_a_language_that_did_not_fall_has_no_share():
    rows = share_rows(-np.ones((1, 4)), np.ones((1, 3, 4)), 50, 0)
    assert all(np.isnan(r["value"]) and r["reason"] == "toxic mass did not fall" for r in rows)
    assert rows[-1]["verdict"] == "not tested"


def test_verdicts_follow_the_rule_at_its_edges():
    assert neuron_verdict(0.50, 0.9) == "mixed"  # above one half, not at it
    assert neuron_verdict(-0.1, 0.25) == "mixed" and neuron_verdict(-0.1, 0.2499) != "mixed"
    assert neuron_verdict(np.nan, 0.1) == "not tested"
    assert joint_verdict(["as the paper says"] * 2) == "as the paper says"
    assert joint_verdict(["undecided", "mixed"]) == "undecided"


def test_patching_refuses(world, files, lexicon):
    base, tokenizer = world
    given = (base, base, PLANTED, files, lexicon)
    with pytest.raises(InputError, match="verdict needs 100"):
        patch_both_ways(*given, sets=0, tokenizer=tokenizer)
    with pytest.raises(TypeError):
        patch_both_ways(*given, set=3)
    with pytest.raises(InputError, match="layer 9 of 4"):
        patch_both_ways(base, base, [[9, 0]], files, lexicon, tokenizer=tokenizer, limit=2)


# ---- neurons held while tuning


def twice_tuned(tmp_path, **more):
    "The world's model after four steps of DPO."
    from xgdetox.trainer import train

    settings = dict(recipe="world", max_steps=4, limit=40, learning_rate=1e-3, warmup_steps=0)
    return load_model(
        train(resolve_model("world"), resolve_data("world", "pairs"), tmp_path, **settings | more)
    )


def test_held_neurons_learn_nothing_and_the_others_do(world, tmp_path):
    file = tmp_path / "neurons.json"
    file.write_text(json.dumps(PLANTED))
    tuned = twice_tuned(tmp_path / "held", hold=str(file))
    parts = [m.transformer.h[2].mlp.c_fc for m in (world[0], tuned)]  # input, neuron
    moved = (parts[0].weight - parts[1].weight).abs().amax(0) > 0
    held = [n for _, n in PLANTED]
    assert not moved[held].any() and moved.sum() > len(moved) / 2
    facts = read_json(tmp_path / "held" / "manifest.json")["hold"]
    assert facts["neurons"] == len(PLANTED)
    assert facts["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(json.dumps(PLANTED[:1]))
    with pytest.raises(InputError, match="another hold"):
        twice_tuned(tmp_path / "held", hold=str(file))


def test_a_file_of_no_neurons_is_refused_before_anything_is_written(tmp_path):
    file = tmp_path / "neurons.json"
    for text, words in (("[[1, true]]", "not a list"), ("[[9, 0]]", "layer 9 of 4")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            twice_tuned(tmp_path / "out", hold=str(file))
    with pytest.raises(InputError):
        twice_tuned(tmp_path / "out", hold=str(tmp_path / "absent.json"))
    assert not (tmp_path / "out" / "manifest.json").exists()
