"Edits without tuning: what changes, what stays, and that the folder is a model."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_files import jsonl
from tiny_models import chat_model
from tiny_models import model as tiny_model

from xgdetox.anatomy import anatomy, neuron_hooks, pooled_states, value_vector_matrix
from xgdetox.value_vectors import all_activations
from xgdetox.data import load_pairs
from xgdetox.edits import (
    _ids_of_side,
    difference_directions,
    edit_model,
    edit_neurons,
    edit_offset,
    edit_projection,
    push_groups,
)
from xgdetox.files import InputError
from xgdetox.models import load_model
from xgdetox.probe import save_probe
from xgdetox.tokens import encode, load_tokenizer
from xgdetox.world import resolve_data, resolve_model

PROMPTS = ["the old man sees", "the river runs under", "la casa roja"]


@pytest.fixture
def world():
    "A copy of the embedded world's model, and its tokenizer."
    name = resolve_model("world")
    return load_model(name), load_tokenizer(name)


def logits(model, tokenizer, texts=PROMPTS):
    with torch.no_grad():
        return model(**encode(tokenizer, texts)).logits.float()


def vectors(model):
    return [value_vector_matrix(model, l).clone() for l in range(anatomy(model).n_layers)]


def test_what_is_projected_out_is_gone_and_the_rest_stays(world):
    model, words = world
    pairs = resolve_data("world", "pairs")
    before = vectors(model)
    rows, _ = load_pairs(pairs, limit=80)
    rejected, chosen = (
        pooled_states(model, words, [p + t for p, t in zip(rows["prompt"], rows[s])])
        for s in ("rejected", "chosen")
    )
    facts = edit_projection(model, words, pairs, rank=3, first_block=1, limit=80)
    after = vectors(model)
    assert facts == dict(pairs=80, rank=3, blocks=[1, 2, 3])
    assert torch.equal(before[0], after[0])
    for block in (1, 2, 3):
        state = min(block + 1, 3)
        mean = chosen[:, state].mean(0) / np.linalg.norm(chosen[:, state].mean(0))
        difference = (rejected - chosen)[:, state] @ (np.eye(len(mean)) - np.outer(mean, mean))
        values, axes = np.linalg.eigh(difference.T.astype(float) @ difference)  # not by SVD
        main = torch.as_tensor(axes[:, -3:].T.copy(), dtype=torch.float32)
        assert (after[block] @ main.T).abs().max() < 1e-4 * before[block].norm(dim=1).max()
        kept = before[block] - (before[block] @ main.T) @ main
        assert torch.allclose(after[block], kept, atol=1e-4)


def test_only_neurons_that_push_towards_the_probe_change(world, tmp_path):
    model, words = world
    width = anatomy(model).d_model
    direction = np.random.default_rng(0).normal(size=width).astype(np.float32)
    probe = save_probe(tmp_path / "probe", direction[None], {})
    before, prompts = vectors(model), ["the old dog", "the cat"]
    facts = edit_neurons(model, words, probe, prompts, share=0.2, strength=0.5, direction="weight")
    after, unit = vectors(model), torch.as_tensor(direction / np.linalg.norm(direction))
    changed = [torch.nonzero((a != b).any(1)).flatten().tolist() for a, b in zip(before, after)]
    assert sum(map(len, changed)) == facts["neurons"] == sum(facts["groups"].values())
    assert set(facts["groups"]) <= {"TP", "AN"}
    for layer, neurons in enumerate(changed):
        was, now = before[layer][neurons], after[layer][neurons]
        assert torch.allclose(now @ unit, 0.5 * (was @ unit), atol=1e-5)
        assert torch.allclose(now - was, torch.outer((now - was) @ unit, unit), atol=1e-5)


def test_a_neurons_group_says_where_it_writes_and_how():
    cosine, activation = np.array([0.5, 0.5, -0.5, -0.5]), np.array([2.0, -2.0, 2.0, -2.0])
    assert push_groups(cosine, activation).tolist() == ["TP", "TN", "AP", "AN"]


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama"])
def test_an_offset_is_what_the_hook_adds(family, tmp_path):
    model, tokenizer = tiny_model(family)
    neurons = [[0, 3], [0, 5], [1, 2]]
    with neuron_hooks(model, add=[(l, n, -1.5) for l, n in neurons]):
        hooked = logits(model, tokenizer)
    plain = logits(model, tokenizer)
    edit_offset(model, neurons, -1.5)
    assert torch.allclose(logits(model, tokenizer), hooked, atol=1e-5)
    assert not torch.allclose(hooked, plain, atol=1e-3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert torch.allclose(logits(load_model(tmp_path), tokenizer), hooked, atol=1e-5)


def test_an_architecture_without_a_bias_is_refused():
    with pytest.raises(InputError, match="no bias that could hold an offset"):
        edit_offset(tiny_model("gemma3")[0], [[0, 1]], 1.0)


def test_directions_are_read_through_a_norm_behind_the_mlp(tmp_path):
    "In Gemma the stream sees value vectors through a gain; an edited neuron writes nothing along the direction."
    model, tokenizer = tiny_model("gemma3")
    parts = anatomy(model)
    gain = torch.linspace(0.5, 2, parts.d_model)
    for block in parts.blocks:
        with torch.no_grad():
            block.post_feedforward_layernorm.weight.copy_(gain - 1)
    direction = np.random.default_rng(0).normal(size=parts.d_model).astype(np.float32)
    probe, before = save_probe(tmp_path / "probe", direction[None], {}), vectors(model)
    edit_neurons(model, tokenizer, probe, PROMPTS, share=1.0, direction="weight")
    for was, now in zip(before, vectors(model)):
        changed = (was != now).any(1)
        push = (now.float() * gain) @ torch.as_tensor(direction)
        assert changed.any() and push[changed].abs().max() < 1e-4
        assert push[~changed].abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_neurons_that_lose_their_part_are_those_that_push_along_the_probe(
    tmp_path, family, sign
):
    "Not those that push away from it, whichever way the probe points, also behind a norm with gains of both signs."
    model, tokenizer = tiny_model(family)
    parts = anatomy(model)
    gain = torch.ones(parts.d_model)
    if family == "gemma3":
        gain = torch.linspace(-1, 2, parts.d_model)
        for block in parts.blocks:
            with torch.no_grad():
                block.post_feedforward_layernorm.weight.copy_(gain - 1)
    direction = sign * np.random.default_rng(0).normal(size=parts.d_model).astype(np.float32)
    probe, before = save_probe(tmp_path / "probe", direction[None], {}), vectors(model)
    active = torch.as_tensor(all_activations(model, tokenizer, PROMPTS))
    edit_neurons(model, tokenizer, probe, PROMPTS, share=0.2, direction="weight")
    push = torch.stack([v.float() @ (gain * torch.as_tensor(direction)) for v in before]) * active
    changed = torch.stack([(b != a).any(1) for b, a in zip(before, vectors(model))])
    assert push[changed].min() > 0 and push[changed].min() >= push[~changed].max()


def test_the_main_direction_is_the_one_that_differs():
    rng = np.random.default_rng(1)
    calm = rng.normal(size=(50, 6)) + 4 * np.eye(6)[2]
    rude = calm + np.outer(rng.uniform(1, 2, 50), np.eye(6)[5])
    assert abs(difference_directions(rude, calm, 1)[0][5]) > 0.95


def test_the_command_writes_a_model_and_does_it_once(said, fails, tmp_path):
    out = tmp_path / "edited"
    words = ("edit", "projection", "--model", "world", "--output-dir", out, "--limit", 40)
    code, heard, _ = said(*words)
    assert code == 0 and "next: xgdetox compare --base world" in heard
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert said(*words)[0] == 0 and (out / "model.safetensors").stat().st_mtime_ns == stamp
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["method"] == "projection" and manifest["done"]["pairs"] == 40
    assert load_tokenizer(out) and load_model(out)
    assert "holds something else" in fails(*words, "--rank", 3)


@pytest.mark.parametrize(
    "words, fault",
    [
        (("projection", "--rank", 100000), "rank: is 100000"),
        (("projection", "--first-block", 99), "first_block: is 99"),
        (("projection", "--pairs", "nowhere"), "no such file or folder"),
        (("neurons", "--probe", "nowhere"), "no such file or folder"),
        (("neurons",), "--probe"),
        (("offset", "--neurons", "nowhere", "--offset", 1), "no such file or folder"),
        (("offset", "--neurons", "nowhere", "--offset", "nan"), "--offset"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(fails, tmp_path, words, fault):
    out = tmp_path / "edited"
    method, *rest = words
    assert fault in fails("edit", method, "--model", "world", "--output-dir", out, *rest)
    assert not out.exists()


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_a_chat_model_is_edited_by_its_replies_in_its_template(fails, run, tmp_path, family):
    words = load_tokenizer(
        folder := chat_model(family, tmp_path / "chat", max_position_embeddings=512)
    )
    asked = [dict(role="user", content="Say it")]
    reply = lambda text: [dict(role="assistant", content=text)]
    rows = [dict(prompt=asked, chosen=reply("Hello"), rejected=reply("Away"))] * 3
    pairs, out = jsonl(tmp_path / "pairs.jsonl", rows), tmp_path / "edited"
    (ids, *_) = _ids_of_side(words, load_pairs(pairs).rows, "rejected", "chat")
    theirs = words.apply_chat_template(asked + reply("Away"), tokenize=True, return_dict=False)
    assert list(theirs)[: len(ids)] == ids and words.decode(theirs[len(ids) :]).strip() == ""
    asks = ("edit", "projection", "--model", folder, "--pairs", pairs, "--output-dir", out)
    assert "prompt: is a conversation; add --chat" in fails(*asks) and not out.exists()
    assert "read_at: mean over the whole template" in run(*asks, "--chat")


def test_the_users_model_is_not_changed(tmp_path):
    name = Path(resolve_model("world"))
    stamp = {p.name: p.stat().st_mtime_ns for p in name.iterdir()}
    edit_model(name, tmp_path / "e", "projection", pairs=resolve_data("world", "pairs"), limit=20)
    assert {p.name: p.stat().st_mtime_ns for p in name.iterdir()} == stamp


@pytest.mark.parametrize(
    "folder, table, metric, edits",
    [
        ("edits", "drops", "toxic_mass_relative_drop", ["neurons", "offset", "projection"]),
        ("edits-gemma", "outcome_drops", "outcome_relative_drop", ["neurons", "projection"]),
    ],
)
def test_the_committed_differences_are_those_of_the_committed_falls(
    root, folder, table, metric, edits
):
    kept = root / "results" / folder
    t = pd.read_csv(kept / f"{table}.csv")
    judged = t.scorer.isna() | t.scorer.astype(str).str.startswith("judge:e5")
    t = t[(t.metric == metric) & (t.language != "pooled") & judged]
    falls = t.pivot(index="language", columns="tuning", values="value")
    expected = falls.sub(falls.pop("dpo"), axis=0)
    differences = pd.read_csv(kept / "differences.csv")
    found = differences.pivot(index="language", columns="tuning", values="value")
    assert list(found.columns) == edits and set(found.index) == {*expected.index, "others"}
    if (
        folder == "edits"
    ):  # every language has the same prompts there, so that their mean is the others'
        expected.loc["others"] = expected.drop(index="en").mean()
    else:
        found = found.drop(index="others")
    pd.testing.assert_frame_equal(found, expected.loc[found.index], atol=1e-5, check_names=False)
