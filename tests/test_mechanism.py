"Pages 05 to 08: the core calls on every architecture, and what happens when something is wrong."

import json
import os
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from test_models import FAMILIES, TEXTS, Words, tiny

from xgdetox.activations import (
    Patched,
    compare_activations,
    explain_neurons,
    explained_drop,
    forced_activations,
    neuron_groups,
)
from xgdetox.files import InputError
from xgdetox.data import load_prompts
from xgdetox.identity import parameter_hash
from xgdetox.sampling import sample
from xgdetox.intervention import intervene, mass_curve
from xgdetox.anatomy import anatomy, neuron_hooks, value_vector_matrix
from xgdetox.models import load
from xgdetox.tokens import encode, load_tokenizer
from xgdetox.probe import (
    auc,
    evaluate_probe,
    fit_probe,
    fit_probe_paper,
    load_probe,
    pooled_features,
    probe_languages,
    save_probe,
    shuffled_control,
    train_probe,
)
from xgdetox.value_vectors import (
    all_activations,
    continuation_activations,
    find_sources,
    matched_neurons,
    multilinguality,
    norm_gain,
    promoted_tokens,
    rank_value_vectors,
    read_neurons,
    recorded_projections,
    script_makeup,
    select_sources,
    toxic_tokens,
    write_neurons,
)

NEURONS = [[2, 17], [0, 3], [1, 50]]


def nudged(model, seed=1):
    "A copy with slightly other weights."
    import copy

    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for p in other.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_value_vectors(family):
    model = tiny(family)
    parts, w = anatomy(model), np.random.default_rng(0).normal(size=32).astype(np.float32)
    table = rank_value_vectors(model, w, 10)
    V = torch.cat(
        [value_vector_matrix(model, l) for l in range(3)]
    ).numpy()  # every neuron, layer by layer
    cosine = V @ w / np.linalg.norm(V, axis=1) / np.linalg.norm(w)
    assert (table.layer * parts.n_neurons + table.neuron).tolist() == np.argsort(-cosine)[
        :10
    ].tolist()
    assert np.allclose(table.cosine, np.sort(cosine)[::-1][:10], atol=1e-5)
    x = torch.randn(1, 32)
    centred = x - x.mean() if "LayerNorm" in type(parts.final_norm).__name__ else x
    scale = centred.pow(2).mean().sqrt()
    bias = getattr(parts.final_norm, "bias", None)
    assert torch.allclose(
        parts.final_norm(x),
        centred / scale * norm_gain(parts.final_norm) + (0 if bias is None else bias),
        atol=1e-3,
    )
    assert len(rank_value_vectors(model, w, 5, space="residual")) == 5


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_activations(family):
    model, n = tiny(family), 5
    means, ids = continuation_activations(model, Words(), TEXTS, NEURONS, n)
    for i, text in enumerate(TEXTS):  # the original's way: no cache, no padding
        tokens, seen = [int(w) for w in text.split()], []
        for _ in range(n):
            with neuron_hooks(model, read=NEURONS) as r:
                logits = model(torch.tensor([tokens])).logits
            seen.append(r.values()[0, 0])
            tokens.append(int(logits[0, -1].argmax()))
        assert ids[i].tolist() == tokens[-n:] and np.allclose(
            means[i], torch.stack(seen).mean(0), atol=1e-5
        )
    assert np.allclose(forced_activations(model, Words(), TEXTS, ids, NEURONS), means, atol=1e-5)
    every = all_activations(model, Words(), TEXTS, n)
    assert np.allclose([every[l, k] for l, k in NEURONS], means.mean(0), atol=1e-5)
    table = select_sources(
        model, Words(), pd.DataFrame(NEURONS, columns=["layer", "neuron"]), TEXTS, n
    )
    assert (
        np.allclose(table.mean_activation, means.mean(0), atol=1e-6)
        and (table.actual == (table.mean_activation > 0)).all()
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_patching(family):
    model = tiny(family)
    other, batch = nudged(model), encode(Words(), TEXTS)
    plain = model(**batch).logits[:, -1]
    assert torch.equal(Patched(model, other, [])(**batch).logits[:, -1], plain)
    assert torch.allclose(Patched(model, model, "all")(**batch).logits[:, -1], plain, atol=1e-5)
    changed = Patched(model, other, NEURONS)(**batch).logits[:, -1]
    assert not torch.allclose(changed, plain, atol=1e-6)
    assert torch.equal(model(**batch).logits[:, -1], plain)
    with neuron_hooks(other, read=NEURONS, reduce=lambda a: a) as theirs:
        other(**batch)
    put = {l: ([n], theirs.values()[0][..., [i]]) for i, (l, n) in enumerate(NEURONS)}
    with neuron_hooks(model, put=put):
        by_hand = model(**batch).logits[:, -1]
    assert torch.allclose(changed, by_hand, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_patched_models_are_sampled_from(family):
    "Two caches and left padding give what the patched model says of each text alone."
    model = tiny(family)
    mixed = Patched(model, nudged(model), NEURONS)
    written = sample(mixed, encode(Words(), TEXTS), 1, 4, 0, stop=[])
    for i, text in enumerate(TEXTS):
        tokens = [int(w) for w in text.split()]
        for t in range(4):
            read = torch.tensor([tokens + written[i, :t].tolist()])
            assert int(mixed(read).logits[0, -1].argmax()) == int(written[i, t])


PLAIN_WORDS = [f"w{i}" for i in range(80)]
RUDE = dict(en=["rude", "vile"], de=["gemein"])


def word_tokenizer(words):
    "A tokenizer whose tokens are `words`."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_language(folder, code, words, rng):
    "Labelled texts, prompts and a list of rude words in one language."
    some = lambda words, low, high: " ".join(
        rng.choice(words) for _ in range(rng.randint(low, high))
    )
    rows = [some(PLAIN_WORDS, 3, 9) + (" rude" if i % 5 < 2 else "") for i in range(120)]
    labels = [int(t.endswith("rude")) for t in rows]
    pd.DataFrame(dict(text=rows, label=labels)).to_csv(folder / f"{code}.csv", index=False)
    lines = [json.dumps({"Prompt": some(words, 2, 8), "Index": i}) for i in range(6)]
    (folder / f"RTP_LX_{code.upper()}.json").write_text("\n".join(lines))
    (folder / "lexicon" / f"{code}.txt").write_text("\n".join(RUDE[code]))


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    "Two model folders with a tokenizer, labelled texts, prompts and word lists in two languages."
    folder, rng = tmp_path_factory.mktemp("little"), random.Random(0)
    words = [*PLAIN_WORDS, "rude", "vile", "gemein", *(f"v{i}" for i in range(15))]
    tokenizer, model = word_tokenizer(words), tiny("gpt2")
    for name, m in dict(base=model, tuned=nudged(model)).items():
        m.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "lexicon").mkdir()
    for code in RUDE:
        write_language(folder, code, words, rng)
    return folder


def prompts_of(little):
    return {c: little / f"RTP_LX_{c.upper()}.json" for c in ("en", "de")}


GROUPS = ["toxic, active", "toxic, negative", "against, active", "against, negative"]


def chain(model, tuned, tokenizer, little, folder) -> dict:
    "Pages 05 to 08 on one pair of models: the table of each step, and the neurons."
    files, lexicon = prompts_of(little), str(little / "lexicon")
    same = dict(tokenizer=tokenizer, label="little")
    tests = {c: little / f"{c}.csv" for c in ("en", "de")}
    probe = folder / "probe"
    tables = dict(probe=probe_languages(model, little / "en.csv", tests, probe, **same))
    found = find_sources(model, probe, files, lexicon, languages=list(files), top_k=20, **same)
    tables["vectors"], neurons = found.table, found.neurons
    tables["curve"] = mass_curve(model, neurons, (0.0, -1.0), files, lexicon, sets=3, **same)
    tables["activations"] = compare_activations(model, tuned, neurons, files, sets=20, **same)
    tables["explained"] = explain_neurons(model, tuned, neurons, probe, files, lexicon, **same)
    return tables | dict(neurons=neurons)


CHAIN_METRICS = {
    "probe": {"probe_auc", "probe_accuracy", "probe_majority"},
    "vectors": {"cosine", "rude_tokens", "effective_languages"},
    "curve": {"toxic_mass", "toxic_mass_change"},
    "activations": {"mean_activation", "activation_drop", "languages_falling"},
    "explained": {"toxic_mass", "explained_share"},
}


def reading_agrees(model, tokenizer, prompts, neurons, offset):
    "Left padding = no padding, decoding with hooks = reading with hooks, offset 0 = untouched, to 1e-5."
    with neuron_hooks(model, add=[(l, n, offset) for l, n in neurons]):
        means, ids = continuation_activations(model, tokenizer, prompts, neurons, 5)
        single = [continuation_activations(model, tokenizer, [p], neurons, 5) for p in prompts]
        read = forced_activations(model, tokenizer, prompts, ids, neurons)  # in one pass
    assert np.array_equal(ids, np.concatenate([i for _, i in single]))
    assert np.allclose(means, np.concatenate([m for m, _ in single]), atol=1e-5)
    assert np.allclose(means, read, atol=1e-5)
    plain, plain_ids = continuation_activations(model, tokenizer, prompts, neurons, 5)
    untouched = np.array_equal(means, plain) and np.array_equal(ids, plain_ids)
    assert untouched == (offset == 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_chain_on_every_architecture(little, tmp_path, family):
    model, tokenizer = tiny(family), load_tokenizer(str(little / "base"))
    found = chain(model, nudged(model), tokenizer, little, tmp_path)
    neurons = found.pop("neurons")
    for step, table in found.items():
        assert CHAIN_METRICS[step] <= set(table.metric) and (table.model == "little").all()
    explained = found["explained"]
    share = explained[(explained.metric == "explained_share") & (explained.control == "")]
    assert set(share.group) == {"selected", *GROUPS, "all"}
    curve = found["curve"]
    untouched = curve[(curve.metric == "toxic_mass_change") & (curve.offset == 0)]
    assert len(untouched) == 3 and (untouched.value == 0).all()
    sizes = share[share.language == "en"].set_index("group").n_neurons
    assert sizes[GROUPS].sum() == 3 * anatomy(model).n_neurons
    prompts = list(load_prompts(prompts_of(little)["en"], "en").rows["prompt"])
    assert len({len(tokenizer(p).input_ids) for p in prompts}) > 2
    for offset in (0.0, -1.0):
        reading_agrees(model, tokenizer, prompts, neurons, offset)


def test_sources_are_written_and_a_wrong_keyword_fails(little, tmp_path):
    base, probe = str(little / "base"), tmp_path / "probe"
    files, lexicon = prompts_of(little), little / "lexicon"
    train_probe(base, little / "en.csv", probe)
    found = find_sources(base, probe, files, lexicon, languages=["en", "de"], top_k=10, limit=3)
    assert found.write(tmp_path / "s.csv") == tmp_path / "s.csv"
    assert read_neurons(tmp_path / "s.json") == found.neurons
    shown = pd.read_csv(tmp_path / "s-tokens.csv", keep_default_na=False)
    assert len(shown) == 30 * (10 + len(found.neurons)) and "rude" not in set(shown.token)
    written = pd.read_csv(tmp_path / "s.csv")
    assert (written[written.metric == "cosine"].n == 3).all()
    plain = find_sources(base, probe, files, top_k=10, limit=3)  # no lists: no token is rude
    assert (plain.tokens.languages == "").all() and plain.neurons == found.neurons
    with pytest.raises(TypeError, match="topk"):
        find_sources(base, probe, files, topk=5)
    with pytest.raises(TypeError, match="randon"):
        explain_neurons(base, base, found.neurons, probe, files, lexicon, randon=5)


def test_intervention_is_kept_as_data_and_repeats(little, tmp_path):
    same = dict(scorer=f"lexicon:{little / 'lexicon'}", max_tokens=4, quality=())
    first = intervene(str(little / "base"), NEURONS, [-1], prompts_of(little), tmp_path, **same)
    runs = sorted(tmp_path.glob("offset*/intervention.json"))
    assert (
        len(runs) == 3
        and json.loads((tmp_path / "offset+0-none" / "intervention.json").read_text()) == []
    )
    stored = [json.loads(p.read_text()) for p in runs if "-1" in p.parent.name]
    assert [dict(layer=l, neuron=n, offset=-1.0) for l, n in NEURONS] in stored
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("offset*/output*.json")}
    again = intervene(str(little / "base"), NEURONS, [-1], prompts_of(little), tmp_path, **same)
    pd.testing.assert_frame_equal(first, again)
    assert stamps == {
        p: p.stat().st_mtime_ns for p in tmp_path.glob("offset*/output*.json")
    }  # finished runs are read
    zero = first[first.offset == 0]
    assert (
        zero[zero.control == ""].value.tolist() == zero[zero.control == "random-0"].value.tolist()
    )


def test_sampled_intervention(little, tmp_path):
    table = intervene(
        str(little / "base"),
        NEURONS,
        [2],
        prompts_of(little),
        tmp_path,
        scorer=f"lexicon:{little / 'lexicon'}",
        n=3,
        temperature=0.9,
        max_tokens=4,
        quality=(),
        control=False,
    )
    assert set(table.offset) == {0.0, 2.0} and table[table.metric == "missing"].n.eq(18).all()


def test_planted_neurons_are_found_by_permutation(little):
    "Where three neurons are silenced and nothing else changes, the test finds them and no random set."
    base, tokenizer = load(str(little / "base"))
    tuned = nudged(base, 3)
    tuned.load_state_dict(base.state_dict())
    plant = [[0, 5], [0, 9], [1, 20]]
    with torch.no_grad():
        for l, n in plant:
            tuned.transformer.h[l].mlp.c_fc.bias[n] -= 3
    table = compare_activations(
        base,
        tuned,
        plant,
        prompts_of(little),
        sets=200,
        n_tokens=4,
        readings=("base",),
        tokenizer=tokenizer,
    )
    drop = table[(table.language == "all") & (table.metric == "activation_drop")].iloc[0]
    assert drop.p < 0.02 and drop.value > 5 * abs(drop.null_mean)
    shares = explained_drop(
        base,
        tuned,
        {"planted": plant, "all": "all"},
        prompts_of(little),
        str(little / "lexicon"),
        tokenizer=tokenizer,
    )
    every = shares[(shares.metric == "explained_share") & (shares.group == "all")]
    assert np.allclose(every.value.dropna(), 1, atol=1e-3)  # nothing but MLP neurons differs


def test_probe_files(little, tmp_path):
    folder = train_probe(
        str(little / "base"), little / "en.csv", tmp_path / "probe", cache=tmp_path / "cache"
    )
    weight, facts = load_probe(folder)
    assert (
        weight.shape == (1, 32)
        and facts["direction"].shape == (1, 32)
        and np.isclose(np.linalg.norm(facts["direction"]), 1)
    )
    assert facts["probe_auc"] > 0.6 and not list((tmp_path / "cache").glob("*.part"))
    found = evaluate_probe(
        str(little / "base"), folder, {"de": little / "de.csv"}, output=tmp_path / "out.csv"
    )
    scores = pd.read_csv(tmp_path / "out.de.csv")
    assert (
        np.isclose(found[found.metric == "probe_auc"].value.item(), auc(scores.score, scores.label))
        and "text" in scores
        and scores.text.dtype == int
    )
    with pytest.raises(InputError, match="weights, the model"):
        save_probe(tmp_path / "other", np.ones((1, 7)), dict(layer=-1, bos="tokenizer"))
        evaluate_probe(str(little / "base"), tmp_path / "other", {"de": little / "de.csv"})


def read_labelled(little) -> dict:
    "{language: table of texts and labels}."
    return {c: pd.read_csv(little / f"{c}.csv") for c in ("en", "de")}


def shuffled_by_hand(little, probe) -> dict:
    "{language: (AUC of the probe, AUC of one probe that learned shuffled labels)}, with scikit-learn."
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    model, tokenizer = load(str(little / "base"))
    (weight, facts), read = load_probe(probe), read_labelled(little)
    features = lambda t: pooled_features(model, tokenizer, list(t.text))[:, 0].astype(np.float32)
    x = {c: features(t) for c, t in read.items()}
    z = (x["en"] - x["en"].mean(0)) / x["en"].std()
    labels = np.random.default_rng(0).permutation(read["en"].label)
    fit = LogisticRegression(C=facts["C"], max_iter=50000, tol=1e-12).fit(z.astype(float), labels)
    score = lambda c, w: roc_auc_score(read[c].label, x[c] @ w)
    return {c: (score(c, weight[0]), score(c, fit.coef_[0])) for c in read}


def test_the_shuffled_control_of_the_probe(little, tmp_path):
    "One shuffle is as by hand; of several, the labels tell nothing, and p is at least 1/(1 + shuffles)."
    base = str(little / "base")
    probe = train_probe(base, little / "en.csv", tmp_path / "p")
    files = {c: little / f"{c}.csv" for c in ("en", "de")}
    control = lambda n: shuffled_control(base, probe, little / "en.csv", files, shuffles=n)
    one, many = (control(n).set_index("language") for n in (1, 19))
    for c, (own, shuffled) in shuffled_by_hand(little, probe).items():
        assert one.null_mean[c] == pytest.approx(shuffled) and one.value[c] == pytest.approx(own)
        assert one.value[c] == many.value[c] and many.low[c] <= many.value[c] <= many.high[c]
        assert many.null_low[c] < many.null_mean[c] < many.null_high[c]
    assert many.p["en"] == pytest.approx(1 / 20) and abs(many.null_mean["en"] - 0.5) < 0.15
    assert many.n["en"] == len(read_labelled(little)["en"])


def test_probe_faults(little, tmp_path):
    pd.DataFrame(dict(text=["a b"] * 30, label=[0] * 30)).to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(InputError, match="class 0 and 1"):
        train_probe(str(little / "base"), tmp_path / "one.csv", tmp_path / "p")
    assert not (tmp_path / "p").exists()
    with pytest.raises(InputError, match="no such probe"):
        load_probe(tmp_path / "none")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match="not a probe"):
        load_probe(tmp_path / "bad.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"not one")
    with pytest.raises(InputError, match="torch.save"):
        load_probe(tmp_path / "bad.pt")


def test_a_pickle_is_read_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    linear = torch.nn.Linear(9, 1, bias=False)
    linear.trap = Trap()
    torch.save(linear, tmp_path / "probe.pt")
    (tmp_path / "ran").unlink(missing_ok=True)
    assert np.array_equal(load_probe(tmp_path / "probe.pt")[0], linear.weight.detach().numpy())
    assert not (tmp_path / "ran").exists()


def test_the_released_probe(real_data):
    weight, facts = load_probe(real_data / "reference" / "english-probe.safetensors")
    from xgdetox.datasets import paper_numbers

    known = paper_numbers("released_probe")
    assert (
        list(weight.shape) == known["shape"]
        and np.isclose(np.linalg.norm(weight), known["norm"], atol=1e-4)
        and facts["bias"] == 0
    )


@pytest.fixture
def recorded(real_data):
    "The original's file of projections, and its entries."
    path = real_data / "reference" / "value_vector_projections_top5.json"
    return path, json.loads(path.read_text())


def test_the_recorded_projections(recorded):
    "The original's 36 vectors with five tokens each, in the order of its list."
    from xgdetox.datasets import paper_numbers

    _, entries = recorded
    assert [[e["layer"], e["index"]] for e in entries] == paper_numbers("actual_sources")["neurons"]
    for e in entries:
        assert set(e) == {"layer", "index", "tokens"} and len(e["tokens"]) == 5
        assert all(isinstance(t, str) and t.strip() for t in e["tokens"])


def count_latin(tokens) -> int:
    "How many tokens have letters, and Latin ones alone: by code point, not by name."
    letters = [[ord(c) for c in t if c.isalpha()] for t in tokens]
    return sum(bool(codes) and max(codes) < 0x250 for codes in letters)


def test_the_committed_makeup_is_that_of_the_recorded_file(real_data, recorded):
    from pathlib import Path
    from xgdetox.languages import LANGUAGES
    from xgdetox.data import load_lexicon

    path, entries = recorded
    listed = [c for c in LANGUAGES if c != "id"]  # the lists have no Indonesian
    rude = {c: load_lexicon(real_data / "lexicons/ldnoobw", c) for c in listed}
    tokens = recorded_projections(path, rude)
    assert tokens.token.tolist() == [t for e in entries for t in e["tokens"]]
    kept = pd.read_csv(Path(__file__).parents[1] / "results/projections_recorded.csv")
    pd.testing.assert_frame_equal(script_makeup(tokens), kept, check_dtype=False)
    latin = [count_latin(e["tokens"]) for e in entries]
    assert (kept.lettered - kept.not_latin).tolist() == latin


def test_a_file_that_records_no_projections_is_refused(tmp_path):
    for n, made in enumerate(([[3, 7]], {"layer": 3}, [{"layer": 3, "index": 7}])):
        (tmp_path / f"{n}.json").write_text(json.dumps(made))
        with pytest.raises(InputError, match="no recorded projections"):
            recorded_projections(tmp_path / f"{n}.json", {})


@pytest.fixture(scope="module")
def world_probe(tmp_path_factory):
    "A probe for the embedded model: its folder, the model, its weight and its direction."
    from xgdetox.world import resolve_model

    folder, network = tmp_path_factory.mktemp("probe"), load(str(resolve_model("world")))[0]
    shape = (2, network.config.hidden_size)
    w, delta = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    save_probe(folder, w[None], dict(bias=0.0, layer=-1, bos="tokenizer"), delta[None])
    return folder, network, w, delta


def nearest_cosines(network, vector, k: int) -> np.ndarray:
    "The `k` largest cosines of a vector with any value vector."
    layers = range(anatomy(network).n_layers)
    V = np.concatenate([value_vector_matrix(network, l).numpy() for l in layers])
    cosine = V @ vector / np.linalg.norm(V, axis=1) / np.linalg.norm(vector)
    return np.sort(cosine)[::-1][:k]


def test_the_commands_direction_and_space_are_the_functions(world_probe, tmp_path, run):
    folder, network, w, delta = world_probe
    gain = norm_gain(anatomy(network).final_norm).numpy()
    weight, residual = ["--direction", "weight"], ["--space", "residual"]
    command = ("value-vectors", "--model", "world", "--probe", folder, "--limit", 2)
    for words, vector in (([], delta), (weight, w), (weight + residual, w * gain)):
        run(*command, "--top-k", 4, "--output", tmp_path / "v.csv", *words)
        table = pd.read_csv(tmp_path / "v.csv")
        table = table[(table.metric == "cosine") & table.control.isna()].sort_values("rank")
        assert np.allclose(table.value, nearest_cosines(network, vector, 4), atol=1e-5)


@pytest.mark.parametrize("flag", ["--direction", "--space"])
def test_a_direction_or_space_that_is_none_is_refused(world_probe, tmp_path, fails, flag):
    command = ("value-vectors", "--model", "world", "--probe", world_probe[0], "--limit", 2)
    assert "use " in fails(*command, flag, "up", "--output", tmp_path / "n.csv")


def test_a_cut_off_cache_is_not_read(little, tmp_path, monkeypatch):
    import xgdetox.probe as page

    model, tokenizer = load(str(little / "base"))
    real = page.pooled_states

    def cut(*a, out, **k):
        out[:1] = 1
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "pooled_states", cut)
    with pytest.raises(KeyboardInterrupt):
        pooled_features(model, tokenizer, ["w1 w2", "w3"], cache=tmp_path)
    monkeypatch.setattr(page, "pooled_states", real)
    x = pooled_features(model, tokenizer, ["w1 w2", "w3"], cache=tmp_path)
    assert np.allclose(x, pooled_features(model, tokenizer, ["w1 w2", "w3"]), atol=1e-2)
    assert parameter_hash(model) != parameter_hash(nudged(model))


def test_paper_training_on_cached_features_is_the_original_loop():
    "The same batches through the same Adam: caching changes nothing (float32 features)."
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(57, 6)).astype(np.float32), rng.integers(0, 2, 57)
    ours = fit_probe_paper(x, y, seed=5, epochs=3, lr=1e-2)["weight"]
    generator, linear = torch.Generator().manual_seed(5), torch.nn.Linear(6, 1, bias=False)
    linear.weight.data = ((torch.rand(6, generator=generator) * 2 - 1) / 6**0.5)[None]
    adam = torch.optim.Adam(linear.parameters(), 1e-2)
    for _ in range(3):
        for rows in torch.randperm(57, generator=generator).split(10):  # a last batch of 7
            adam.zero_grad()
            torch.nn.functional.binary_cross_entropy(
                torch.sigmoid(linear(torch.tensor(x)[rows])[:, 0]),
                torch.tensor(y, dtype=torch.float32)[rows],
            ).backward()
            adam.step()
    assert np.allclose(ours, linear.weight.detach().numpy(), atol=1e-6)
    fit = fit_probe(x + 3 * y[:, None], y)
    assert fit["weight"].shape == (1, 6) and fit["cv_auc"] > 0.9


def test_neuron_files(tmp_path):
    assert read_neurons(write_neurons(tmp_path / "n.json", [(np.int64(1), 2), [3, 4]])) == [
        [1, 2],
        [3, 4],
    ]
    pd.DataFrame(dict(layer=[1, 2], neuron=[5, 6], actual=[True, False])).to_csv(
        tmp_path / "n.csv", index=False
    )
    assert read_neurons(tmp_path / "n.csv") == [[1, 5]]
    for text in ("[]", "{}", "[[1]]", '[[1, "2"]]', "[1, 2"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError):
            read_neurons(tmp_path / "bad.json")


def test_matched_neurons():
    activation = np.random.default_rng(0).normal(size=(3, 200))
    neurons = [[0, int(i)] for i in np.argsort(-activation[0])[10:20]] + [[2, 5], [2, 6]]
    sets = [matched_neurons(activation, neurons, s) for s in range(20)]
    assert sets[0] == matched_neurons(activation, neurons, 0) and sets[0] != sets[1]
    for twins in sets:
        assert (
            sorted(l for l, _ in twins) == [0] * 10 + [2] * 2
            and len({tuple(t) for t in twins}) == 12
        )
        assert not {tuple(t) for t in twins} & {tuple(n) for n in neurons}
    mean = lambda some: np.mean([activation[l, n] for l, n in some if l == 0])
    assert abs(np.mean([mean(t) for t in sets]) - mean(neurons)) < 0.25
    with pytest.raises(InputError, match="no neuron left"):
        matched_neurons(np.zeros((1, 3)), [[0, 0], [0, 1]])


WRONG_NEURONS = {
    "layer 9 of 3": [9, 0],
    "neuron 999 of 128": [0, 999],
    "layer -1 of 3": [-1, 3],
    "neuron -2 of 128": [0, -2],
}


@pytest.mark.parametrize("match", WRONG_NEURONS)
def test_neurons_that_are_not_there_are_refused(little, tmp_path, match):
    neurons, out = [WRONG_NEURONS[match]], tmp_path / "out"
    same = dict(scorer=f"lexicon:{little / 'lexicon'}", max_tokens=2, quality=())
    given = (str(little / "base"), neurons, [-1], prompts_of(little), out)
    for control in (True, False):
        with pytest.raises(InputError, match=match):
            intervene(*given, control=control, **same)
    with pytest.raises(InputError, match=match):
        matched_neurons(np.zeros((3, 128)), neurons)
    assert not out.exists()


def test_a_model_of_another_shape_is_refused(little):
    tokenizer, files = load_tokenizer(str(little / "base")), prompts_of(little)
    base, other = tiny("gpt2"), tiny("llama")
    match = "3 layers of 128 neurons, the tuned model 3 layers of 56"
    with pytest.raises(InputError, match=match):
        compare_activations(base, other, NEURONS, files, tokenizer=tokenizer)
    with pytest.raises(InputError, match=match):
        Patched(base, other, NEURONS)


def test_groups():
    assert neuron_groups([[0.1, -0.1], [0.2, -0.3]], [[1, 1], [-1, -1]]) == {
        "toxic, active": [[0, 0]],
        "toxic, negative": [[1, 0]],
        "against, active": [[0, 1]],
        "against, negative": [[1, 1]],
    }


def test_rude_tokens(little):
    model, tokenizer = load(str(little / "base"))
    known = toxic_tokens(tokenizer, {"en": ["rude", "vile"], "de": ["gemein", "vile"]})
    found = {tokenizer.decode([i]): languages for i, languages in known.items()}
    assert found == {"rude": {"en"}, "vile": {"en", "de"}, "gemein": {"de"}}
    rude = {"en": ["rude"], "de": ["gemein"]}
    row = multilinguality(promoted_tokens(model, tokenizer, NEURONS[:1], k=101, rude=rude)).iloc[0]
    assert row.rude_tokens == 2
    assert np.isclose(row.effective_languages, 2) and np.isclose(row.effective_scripts, 1)


def test_a_mass_curve_has_every_language_and_all_of_them(little):
    model, tokenizer = load(str(little / "base"))
    given = (model, NEURONS, [-1.0], prompts_of(little), str(little / "lexicon"))
    table = mass_curve(*given, sets=4, tokenizer=tokenizer)
    assert set(table.language) == {"en", "de", "all"}
    assert table[table.metric == "toxic_mass_change"].null_mean.notna().all()
