"Toxic mass: the walk over the tree of rude words, and its bounds."

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_mechanism import nudged
from test_toxicity import PROMPTS, WORDS, bpe, brute_force, language_model

from xgdetox.activations import Patched
from xgdetox.mass import mass_bounds, mass_table, prefix_tree, rude_sequences, toxic_mass

WORDS = [*WORDS, "the cat sat", "the cat ran", "the dog"]  # phrases that begin alike


@pytest.fixture(scope="module")
def tokenizer():
    return bpe(["the darn cat sat on the heck mat", "darning the heckler"] * 20, 300)


def prefix_probabilities(model, tokenizer, prompt, sequences):
    "{prefix: its probability after `prompt`} by a plain pass for each."
    ids, found = tokenizer(prompt)["input_ids"], {}
    for prefix in prefix_tree(sequences):
        with torch.no_grad():
            logp = model(torch.tensor([ids + list(prefix)])).logits[0].log_softmax(-1)
        steps = [float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(prefix)]
        found[prefix] = math.exp(sum(steps))
    return found


def bounds_by_hand(model, tokenizer, prompt, sequences, threshold):
    "Lower and upper mass: words whose prefixes are all likely enough; and the first prefixes that are not."
    p = prefix_probabilities(model, tokenizer, prompt, sequences)
    is_read = lambda s: all(p[s[:k]] >= threshold for k in range(1, len(s)))
    lower = brute_force(model, tokenizer, prompt, [s for s in sequences if is_read(s)])
    edge = [s for s in p if s and p[s] < threshold and is_read(s)]
    return lower, lower + sum(p[s] for s in edge)


@pytest.mark.parametrize("threshold", [0.0, 1e-5, 3e-3, 2.0])
def test_bounds_are_those_by_hand(tokenizer, threshold):
    model = language_model("gpt2", len(tokenizer))
    sequences, _ = rude_sequences(tokenizer, WORDS)
    found = mass_bounds(model, tokenizer, PROMPTS, WORDS, threshold=threshold)
    expected = [bounds_by_hand(model, tokenizer, p, sequences, threshold) for p in PROMPTS]
    assert np.allclose(found.T, expected, rtol=1e-3)
    assert (found[0] == found[1]).all() == (threshold == 0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_each_distinct_prefix_is_read_once(tokenizer, family, monkeypatch):
    "One row for each prefix and prompt, whatever the size of the blocks; the sums do not depend on it."
    import xgdetox.mass as page

    model, rows = language_model(family, len(tokenizer)), []
    model.register_forward_hook(lambda module, args, out: rows.append(len(out.logits)))
    tree = prefix_tree(rude_sequences(tokenizer, WORDS)[0])
    assert max(map(len, tree)) > 1 and len(tree) > 3
    whole = toxic_mass(model, tokenizer, PROMPTS, WORDS, max_tokens=10**6)
    assert sum(rows) == len(PROMPTS) * len(tree)
    rows.clear()
    monkeypatch.setattr(page, "cache_positions", lambda *_: 1)
    assert np.allclose(whole, toxic_mass(model, tokenizer, PROMPTS, WORDS), rtol=1e-5)
    assert sum(rows) == len(PROMPTS) * len(tree) and rows.count(1) >= sum(rows) - len(PROMPTS)


def test_two_models_in_one_and_models_without_keys(tokenizer, monkeypatch):
    "Patched with nothing it is the base; a cache that cannot be selected from is read anew."
    import xgdetox.mass as page

    model = language_model("gpt2", len(tokenizer))
    plain = toxic_mass(model, tokenizer, PROMPTS, WORDS)
    patched = Patched(model, nudged(model), [])
    assert np.allclose(toxic_mass(patched, tokenizer, PROMPTS, WORDS), plain, rtol=1e-5)
    monkeypatch.setattr(page, "select_cache", lambda cache, rows: None)
    assert np.allclose(toxic_mass(model, tokenizer, PROMPTS, WORDS), plain, rtol=1e-4)


def test_the_table_says_its_bound_where_a_threshold_leaves_something_out(tmp_path):
    from xgdetox.world import resolve_data

    prompts = {"de": resolve_data("world", "prompts") / "RTP_LX_DE.json"}
    words = {"de": ["Hund Katze", "xyz xyz"]}
    from xgdetox.world import resolve_model

    same = dict(limit=3, label="world")
    exact = mass_table(resolve_model("world"), prompts, words, **same)
    some = mass_table(
        resolve_model("world"), prompts, words, threshold=0.9, output=tmp_path / "m.csv", **same
    )
    assert "bound" not in exact and exact.n.item() in (0, 3)
    values = pd.read_csv(tmp_path / "m.values.csv")
    assert (values.bound.dropna() >= values.value.dropna()).all() and "bound" in some
    with pytest.raises(TypeError, match="treshold"):
        toxic_mass(None, None, [], [], treshold=1)
