"The evidence stages: patching both ways, held neurons, doses, the transfer matrix, early warning, verdicts."

import copy
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
import yaml

from xgdetox.activations import patch_groups
from xgdetox.anatomy import anatomy, value_vector_matrix
from xgdetox.data import find_prompt_files, load_lexicon, load_pairs, load_prompts
from xgdetox.dose import control_sets, dose_curve, match_kinds, rank_active
from xgdetox.early import compare_predictors, log_probabilities, pairs_by_language
from xgdetox.files import InputError, read_csv, read_json
from xgdetox.held import held_shares
from xgdetox.matrix import matrix_falls, matrix_test, matrix_verdict
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
from xgdetox.prediction import left_out_errors, points_of
from xgdetox.stats import read_table, tidy, write_table
from xgdetox.training import encode_pair
from xgdetox.value_vectors import describe_sources, promoted_tokens
from xgdetox.verdicts import verdicts
from xgdetox.world import resolve_data, resolve_model
from xgdetox.written import written

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


@pytest.fixture(scope="module")
def patched(world, files, lexicon, tmp_path_factory):
    "The table of the planted pair patched both ways, with three random sets, and its file."
    base, tuned = falling_pair(world, files, lexicon)
    output = tmp_path_factory.mktemp("patched") / "patching.csv"
    options = dict(sets=3, tokenizer=world[1], limit=8, n_resamples=50, output=output)
    return patch_both_ways(base, tuned, PLANTED, files, lexicon, **options), output


def test_planted_neurons_carry_all_and_their_twins_nothing(patched):
    english = patched[0][patched[0].language == "en"].set_index(["direction", "metric"])
    for direction in DIRECTIONS:  # only these neurons differ, and their twins lie in the same layer
        one = english.loc[direction]
        assert one.value["carried_share"] == pytest.approx(1, abs=1e-4)
        assert one.value["random_share"] == pytest.approx(0, abs=1e-4)
        assert one.low["carried_beyond_random"] == pytest.approx(1, abs=1e-4)
        assert one.sets["carried_beyond_random"] == 3
        assert one.verdict["carried_beyond_random"] == "undecided"  # 3 sets are too few


def test_masses_of_prompts_lie_beside_the_table(patched):
    values = read_csv(values_path(patched[1]))
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


def test_what_held_arms_kept_of_the_fall(world, files, lexicon):
    base, tuned = falling_pair(world, files, lexicon)
    twins = [[2, n] for n in range(100, 120)]
    table = held_shares(
        base,
        [tuned, tuned],
        [(tuned, PLANTED)],
        [(tuned, twins)],
        files,
        lexicon,
        tokenizer=world[1],
        limit=8,
        n_resamples=50,
    )
    english = table[table.language == "en"].set_index(["direction", "metric"])
    held, free = english.loc["held"], english.loc["free"]
    assert held.value["carried_share"] == pytest.approx(1, abs=1e-4)  # back at the base
    assert held.value["random_share"] == pytest.approx(0, abs=1e-4)  # its twins changed nothing
    assert held.verdict["carried_beyond_random"] == "as the paper says"
    assert free.value["carried_share"] == pytest.approx(0, abs=1e-4)  # the checkpoint is the arm
    assert (english.arms == 1).all()
    with pytest.raises(InputError, match="no arm"):
        held_shares(base, [tuned], [], [(tuned, twins)], files, lexicon, tokenizer=world[1])


# ---- doses and kinds


@pytest.fixture
def normed():
    "A tiny Gemma 3 whose norms after the MLP have gains of their own, its tokenizer, and what its neurons write."
    model, tokenizer = tiny_models.model("gemma3", wide=32)
    generator, arrives = torch.Generator().manual_seed(0), []
    for block in model.model.layers:
        gain = block.post_feedforward_layernorm.weight.data.normal_(0, 0.5, generator=generator)
        arrives.append(block.mlp.down_proj.weight.detach().numpy().T * (1 + gain.numpy()))
    return model, tokenizer, np.array(arrives)  # layer, neuron, d


def cosines_with(arrives, probe):
    "Cosine of each neuron's vector (layer, neuron, d) with a probe (d,)."
    return arrives @ probe / np.linalg.norm(arrives, axis=-1) / np.linalg.norm(probe)


PROBE = np.random.default_rng(0).normal(size=32).astype(np.float32)


def test_the_order_of_a_normed_model_is_that_of_what_arrives(normed):
    "Gemma 3: cosines of gain times value vector, computed from the weights alone."
    model, _, arrives = normed
    activation = np.random.default_rng(1).normal(size=(2, 64))
    ranked = rank_active(model, PROBE, activation)
    flat = np.where(activation > 0, cosines_with(arrives, PROBE), -np.inf).ravel()
    order = np.argsort(-flat)[: (activation > 0).sum()]
    assert (ranked.layer * 64 + ranked.neuron).tolist() == order.tolist()
    assert np.allclose(ranked.cosine, flat[order], atol=1e-5)


def test_groups_of_a_normed_model_are_by_what_arrives(normed):
    "Gemma 3: toxic is who writes along the probe behind the norm, which some do not in front of it."
    model, tokenizer, arrives = normed
    groups = patch_groups(model, tokenizer, PROBE, [[0, 1]], tiny_models.TEXTS[:2])
    toxic = {tuple(n) for name in ("toxic, active", "toxic, negative") for n in groups[name]}
    assert toxic == set(map(tuple, np.argwhere(cosines_with(arrives, PROBE) > 0).tolist()))
    plain = [value_vector_matrix(model, layer).detach().numpy() for layer in range(2)]
    assert toxic != set(map(tuple, np.argwhere(cosines_with(np.array(plain), PROBE) > 0).tolist()))


def test_tokens_of_a_normed_model_are_those_that_what_arrives_promotes(normed):
    "Gemma 3: the unembedding's rows times what arrives, from the weights alone; also in a table of sources."
    model, tokenizer, arrives = normed
    some = [[0, 3], [1, 7], [1, 20]]
    found = promoted_tokens(model, tokenizer, some, k=4, parts=written(model))
    logits = arrives @ model.get_output_embeddings().weight.detach().numpy().T
    first = [np.argsort(-logits[layer, neuron])[:4].tolist() for layer, neuron in some]
    assert found.token_id.tolist() == sum(first, [])
    near = pd.DataFrame(some, columns=["layer", "neuron"])
    near = near.assign(actual=True, cosine=0.0, mean_activation=1.0)
    activation = np.random.default_rng(1).normal(size=(2, 64))
    _, _, tokens = describe_sources(model, tokenizer, near, activation, {"en": ["the"]}, k=4)
    assert tokens[tokens.control == ""].token_id.tolist() == sum(first, [])


def test_controls_of_a_dose_that_fills_a_layer(world):
    parts, activation = anatomy(world[0]), np.random.default_rng(0).normal(size=(4, 384))
    few, many = [[[1, n] for n in range(k)] for k in (5, 300)]
    sets, control = control_sets(activation, few, 2, 0, parts)
    assert control == "matched" and not {1, 2, 3, 4, 0} & {n for _, n in sets[1]}
    sets, control = control_sets(activation, many, 2, 0, parts)
    assert control == "same layers" and [len(s) for s in sets] == [300] * 3


def test_doses_that_cannot_be(world, files, lexicon):
    given = (world[0], world[0], np.ones(96), files, lexicon)
    for doses, words in (([0.0], "no share"), ([1.0], "active ones")):
        with pytest.raises(InputError, match=words):
            dose_curve(*given, doses=doses, tokenizer=world[1], limit=1)
    with pytest.raises(InputError, match="are alike"):
        match_kinds(pd.DataFrame(dict(cosine=[0.1], activation=[1.0], kind=["multilingual"])))


# ---- the transfer matrix


@pytest.fixture
def cells():
    "Falls of four sources on eight targets with a planted slope of 2, and the retrieval of all pairs."
    rng, codes = np.random.default_rng(0), "en de fr es it nl sv pl".split()
    shared = rng.random((8, 8))
    shared = (shared + shared.T) / 2
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    retrieval = [dict(source=codes[i], language=codes[j], value=shared[i, j]) for i, j in pairs]
    level, noise = rng.random(8), 0.1 * rng.normal(size=(8, 8))
    falls = [
        dict(
            source=codes[i],
            language=codes[j],
            value=3 * level[i] - level[j] + 2 * shared[i, j] + noise[i, j],
        )
        for i, j in pairs
        if i < 4
    ]
    return pd.DataFrame(falls), pd.DataFrame(retrieval)


def slope_with_dummies(falls, x):
    "The slope of falls on x beside a dummy per source and target, by least squares."
    dummies = pd.get_dummies(falls[["source", "language"]]).to_numpy(float)
    return np.linalg.lstsq(np.column_stack([x, dummies]), falls.value, rcond=None)[0][0]


def test_the_slope_is_that_of_least_squares_and_p_that_of_a_loop(cells):
    falls, retrieval = cells
    table = matrix_test(falls, retrieval, permutations=199, n_resamples=50).set_index("metric")
    known = retrieval.set_index(["source", "language"]).value
    x = [known[s, t] for s, t in zip(falls.source, falls.language)]
    assert table.value["matrix_slope"] == pytest.approx(slope_with_dummies(falls, x))
    low, value, high = table.loc["matrix_slope", ["low", "value", "high"]]
    assert 1 < low < value < high
    assert table.p["matrix_slope"] == pytest.approx(1 / 200)  # none of the dealings comes near
    assert table.verdict["matrix_slope"] == "undecided"  # 199 permutations are too few
    codes, rng = sorted(set(retrieval.source)), np.random.default_rng(0)
    for _ in range(3):  # the first dealings, cell by cell
        names = dict(zip(codes, np.array(codes)[rng.permutation(8)]))
        x = [known[names[s], names[t]] for s, t in zip(falls.source, falls.language)]
        assert slope_with_dummies(falls, x) < table.value["matrix_slope"]


def test_what_a_matrix_needs(cells):
    falls, retrieval = cells
    with pytest.raises(InputError, match="too few for fixed effects"):
        matrix_test(falls[falls.source == "en"], retrieval)
    drops = tidy(falls.assign(tuning="dpo", metric="drop", seed=0))
    with pytest.raises(InputError, match="no dpo in another language"):
        matrix_falls(drops, "drop")
    assert matrix_verdict(0.01, 0.1, 3, 1000) == "undecided" == matrix_verdict(0.01, 0.1, 4, 999)
    assert matrix_verdict(0.01, 0.1, 4, 1000) == "retrieval predicts transfer"
    assert matrix_verdict(0.06, 0.1, 4, 1000) == "not shown" == matrix_verdict(0.01, 0, 4, 1000)


# ---- early warning


def test_log_probabilities_are_those_of_whole_unpadded_texts(world):
    model, tokenizer = world
    texts = [("the dog", " is a", " is"), ("my house and a", " dog", " dog and my house")]
    pairs = [encode_pair(tokenizer, *t, bos="paper") for t in texts]
    for side in ("chosen_ids", "rejected_ids"):
        found = log_probabilities(model, tokenizer, pairs, side)
        for pair, value in zip(pairs, found):
            ids = torch.tensor([pair["prompt_ids"] + pair[side]])
            with torch.no_grad():
                logs = model(ids).logits.log_softmax(-1)[0]
            start = len(pair["prompt_ids"])
            by_hand = sum(logs[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))
            assert value == pytest.approx(by_hand, abs=1e-3)


def test_predictors_of_too_few_languages_and_pairs_that_are_missing(tmp_path):
    few = pd.Series(range(5), ["en", "de", "fr", "es", "it"], dtype=float)
    found = compare_predictors(few, few, few)
    assert found.reason.tolist() == ["too few languages"] and found.value.isna().all()
    with pytest.raises(InputError, match="no pairs of any language"):
        pairs_by_language(tmp_path)
    (tmp_path / "de.jsonl").write_text("{}")
    with pytest.raises(InputError, match="no pairs"):
        pairs_by_language(tmp_path, ["de", "fr"])
    assert list(pairs_by_language(tmp_path)) == ["de"]


# ---- models left out, and verdicts


def arm_rows(fall, *, tuning="dpo", seeds=3, hits=3, first=1.0, english=0.5, not_tested=""):
    "Rows of outcome_drops of one arm over all seeds: three languages, `hits` of them significant."
    head = dict(model="m", tuning=tuning, scorer="judge:a", seeds=seeds, n=50)
    rows = [head | dict(language="en", metric="outcome_drop", value=english, low=english - 0.1)]
    for i, language in enumerate(["de", "fr", "es"]):
        p = dict(p_holm=0.01 if i < hits else 0.2, not_tested=not_tested, value=0.2)
        rows.append(head | p | dict(language=language, metric="outcome_beyond_placebo"))
    for metric, value in (
        ("outcome_relative_drop", fall),
        ("first_outcome_relative_drop", first * fall),
        ("outcome_beyond_placebo", fall),
    ):
        ends = dict(value=value, low=value - 0.05, high=value + 0.05)
        rows.append(head | ends | dict(language="pooled", metric=metric, not_tested=""))
    return rows


@pytest.mark.parametrize(
    "change, placebo_seeds, verdict",
    [
        (dict(), 2, "transfers"),
        (dict(hits=2), 2, "transfers"),  # two thirds of three
        (dict(hits=1), 2, "undecided"),
        (dict(first=0.7), 2, "transfers"),
        (dict(first=0.69), 2, "undecided"),
        (dict(seeds=2), 2, "undecided"),
        (dict(), 1, "undecided"),
        (dict(english=0.1), 2, "not tested"),  # its interval reaches 0
        (dict(not_tested="judge not good enough"), 2, "not tested"),
        (dict(fall=0.04), 2, "fails"),  # upper end .09
        (dict(fall=0.05, hits=0), 2, "undecided"),  # upper end .10
    ],
)
def test_the_rule_on_transfer(tmp_path, change, placebo_seeds, verdict):
    arm = arm_rows(**dict(fall=0.6) | change)
    placebo = arm_rows(0.01, tuning="placebo", seeds=placebo_seeds)
    write_table(tidy(arm + placebo), tmp_path / "outcome_drops.csv")
    line = verdicts(tmp_path).iloc[0]
    assert line.verdict == verdict, line.why
    assert line.seeds == arm[0]["seeds"] and line.judge == "judge:a"
    assert line.placebo.startswith(".01") or line.placebo.startswith("0.01")


def test_verdicts_on_the_neurons_need_all_three_tests(tmp_path):
    share = dict(metric="carried_beyond_random", language="others", value=0.6, low=0.55, high=0.7)
    share |= dict(model="m", tuning="dpo", seed=0, n=30, verdict="as the paper says")
    both = [share | dict(direction=d) for d in DIRECTIONS]
    write_table(tidy(both), tmp_path / "patching.csv")
    claim = "The neurons explain the transfer"
    assert verdicts(tmp_path).set_index("claim").verdict[claim] == "not tested"
    held = share | dict(direction="held", tuning="held")
    write_table(tidy([held]), tmp_path / "held.csv")
    assert verdicts(tmp_path).set_index("claim").verdict[claim] == "as the paper says"
    write_table(tidy([held | dict(verdict="mixed")]), tmp_path / "held.csv")
    found = verdicts(tmp_path).set_index("claim")
    assert found.verdict[claim] == "mixed" and found.ours.iloc[1] == 0.6


def test_verdicts_of_the_laboratory(root):
    "The kept tables of the worlds: what was not run there is not tested."
    found = verdicts(root / "results" / "world").set_index("claim")
    assert found.verdict["English DPO lowers toxicity in other languages"] == "not tested"
    assert found.verdict["Retrieval goes with the fall (r)"] == "no verdict"
    assert found.verdict["Retrieval of a pair predicts its transfer (matrix)"] == "undecided"
    assert found.n["Other models' retrieval predicts a model's falls"] == 3  # worlds
    with pytest.raises(InputError, match="no such run"):
        verdicts(root / "results" / "absent")


def test_a_model_left_out_is_predicted_by_the_others_alone(root):
    points = points_of(root / "results" / "world")
    worlds = points[points.model.str.startswith("world")]
    found = left_out_errors(worlds, "world-1")
    others = worlds[worlds.model != "world-1"]
    a = np.column_stack([others.retrieval, np.ones(len(others))])
    slope, level = np.linalg.lstsq(a, others.fall, rcond=None)[0]
    mine = worlds[worlds.model == "world-1"]
    assert found["line"] == pytest.approx(abs(slope * mine.retrieval + level - mine.fall).mean())
    assert found["mean"] == pytest.approx(abs(others.fall.mean() - mine.fall).mean())
    assert found["n"] == len(mine) == 16


# ---- commands


@pytest.fixture
def neuron_files(run, tmp_path):
    "Four of the planted neurons, and their twins as the command draws them."
    file, twins = tmp_path / "neurons.json", tmp_path / "twins.json"
    file.write_text(json.dumps(PLANTED[:4]))
    run("twins", "--model", "world", "--neurons", file, "--limit", 4, "-o", twins)
    drawn = json.loads(twins.read_text())
    assert [l for l, _ in drawn] == [2] * 4 and not {tuple(n) for n in drawn} & {(2, 40), (2, 41)}
    return file, twins


PAIR = "--model world --tuned-model world-tuned --limit 3 -l en -l de".split()


def test_command_of_patching(run, neuron_files, tmp_path):
    table = tmp_path / "patching.csv"
    said = run("patching", *PAIR, "--neurons", neuron_files[0], "--sets", 2, "-o", table)
    assert "carried_beyond_random" in said and set(read_table(table).language) >= {"en", "others"}


def test_command_of_held_arms(run, fails, neuron_files, tmp_path):
    (file, twins), table = neuron_files, tmp_path / "held.csv"
    arms = ["--held-model", "world", "--held-neurons", file, "--random-model", "world-tuned"]
    run("held", *PAIR, *arms, "--random-neurons", twins, "-o", table)
    shares = read_table(table).set_index(["language", "direction", "metric"]).value
    assert shares["en", "free", "carried_share"] == pytest.approx(1)
    two = ["--random-neurons", twins, "--random-neurons", twins]
    assert "1 models and 2 files of neurons" in fails("held", *PAIR, *arms, *two)


def test_commands_of_the_matrix(run, fails, cells, tmp_path):
    falls, retrieval = cells
    names = falls.source.map(lambda s: "dpo" if s == "en" else f"dpo-{s}")
    drops = tidy(falls.assign(tuning=names, metric="toxic_mass_relative_drop", seed=0))
    write_table(drops, tmp_path / "drops.csv")
    write_table(tidy(retrieval), tmp_path / "pairwise.csv")
    given = ["--drops", tmp_path / "drops.csv", "--retrieval", tmp_path / "pairwise.csv"]
    run("matrix", *given, "-o", tmp_path / "matrix.csv")
    found = read_table(tmp_path / "matrix.csv").set_index("metric")
    assert found.verdict["matrix_slope"] == "retrieval predicts transfer"
    assert found.n["matrix_slope"] == 28 and found.sources["matrix_slope"] == 4
    assert "no sft in another language" in fails("matrix", *given, "--tuning", "sft")


def test_command_of_early_warning(run, fails, tmp_path):
    rows = load_pairs(resolve_data("world", "pairs"), limit=6).rows
    lines = [json.dumps(dict(row), ensure_ascii=False) for row in rows]
    (tmp_path / "en.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pair = ["--model", "world", "--tuned-model", "world-tuned", "--pairs", tmp_path]
    run("early", *pair, "-o", tmp_path / "early.csv")
    assert (read_table(tmp_path / "early.csv").value > 0).all()
    assert "no pairs" in fails("early", *pair, "-l", "de")


def test_command_of_verdicts(run, fails, root, tmp_path):
    said = run("verdicts", root / "results" / "world", "-o", tmp_path / "verdicts.csv")
    assert "Retrieval goes with the fall (r): no verdict" in said
    assert len(read_csv(tmp_path / "verdicts.csv")) == len(verdicts(root / "results" / "world"))
    assert "no such run" in fails("verdicts", tmp_path / "absent")


# ---- the study's GPU size


TINY = dict(  # what the script does to a model of two layers
    languages=["en", "de"],
    data={"lexicon": "world"},
    scorers={"words": "lexicon:world"},
    train=dict(limit=20),
    prompts=3,
    generate=dict(n=2, max_tokens=4, options=dict(batch_rows=8)),
    probe=dict(limit=60),
    value_vectors=dict(top_k=8),
    patching=dict(sets=2),
    dose=dict(doses=[0.02], sets=1),
    intervene=dict(offsets=[-1.0]),
)
SHORT = dict(max_steps=2, eval_steps=2, batch_size=2, eval_pairs=2, kl_texts=0, seeds=[0])


def tiny_grid(root, folder):
    "The study's GPU grid on a random tiny Gemma and the world's data, with four arms of two steps."
    grid = yaml.safe_load((root / "experiments" / "gemma-gpu.yaml").read_text())
    arms = ("dpo", "placebo", "held", "held-random")
    grid["tunings"] = {k: {**grid["tunings"][k], **SHORT} for k in arms}
    left_out = ("split", "fluency", "kinds")
    grid["stages"] = [s for s in grid["stages"] if s not in left_out]
    grid = {k: v for k, v in grid.items() if k not in (*left_out, "held", "retrieve")} | TINY
    tiny_models.model("gemma3", folder / "gemma", wide=32)
    grid["models"] = {"gemma": {"path": str(folder / "gemma")}}
    file = folder / "tiny-gpu.yaml"
    file.write_text(yaml.safe_dump(grid))
    return file


@pytest.mark.slow
def test_the_script_of_the_gpu_size_on_a_tiny_gemma(root, tmp_path):
    "A random Gemma goes through every stage that the script does; what is done is not done again."
    run, script = tmp_path / "run", root / "experiments" / "gemma_gpu.py"
    words = [sys.executable, script, "--grid", tiny_grid(root, tmp_path), "--run-dir", run]

    def said(minutes):
        env = {**os.environ, "PYTHONPATH": str(root)}
        given = [*words, "--minutes", str(minutes)]
        done = subprocess.run(given, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, err = said(0)
    assert code == 3 and out.startswith("0 of"), err
    code, out, err = said(20)
    assert code == 0 and "\nheld " in out and "\npatching " in out, err
    tables = {p.stem for p in (run / "tables").glob("*.csv")}
    assert tables >= {"mass", "patching", "dose", "held", "intervention", "retrieval"}
    assert len(list((run / "generations").glob("*/*.json"))) >= 5 * 2  # models, languages
    code, out, err = said(20)
    assert code == 0 and "patching" not in out, err
