"Preference tuning: what moves, what is refused, what is equal to TRL, what survives a kill."

import inspect, json, math, os, random, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings as limits, strategies as st
from safetensors.torch import load_file

from xgdetox.files import InputError, read_json
from xgdetox.losses import LOSSES
from xgdetox.recipes import (
    DEFAULTS,
    RECIPES,
    load_recipe,
    recipe_for,
    recipe_names,
)
from xgdetox.training import (
    ReferenceKL,
    dpo_loss,
    encode_pair,
    evaluation_interval,
    plan_run,
    split_pairs,
    training_order,
)
from xgdetox.lora import check_targets
from xgdetox.merging import compare_logits, merge_adapter
from xgdetox.trainer import train
import tiny_models

WORDS = (
    "the a old new cat dog house tree friend man sees likes hates makes reads good fine nice silly rotten kind warm "
    "cold red blue"
).split()
QUICK = dict(
    recipe="world",
    max_steps=3,
    eval_pairs=4,
    kl_texts=2,
    batch_size=4,
    learning_rate=1e-3,
    lora_r=4,
    logging_steps=1,
)


def make_pairs(n=64, seed=0, prompt=5, least=3, most=8):
    draw, text = random.Random(seed), lambda words, k: " ".join(draw.choices(words, k=k))
    side = lambda words: " " + text(words, draw.randint(least, most))
    return [
        dict(
            prompt_text=text(WORDS, prompt),
            unpert_gen_text=side(WORDS[:16]),
            pert_gen_text=side(WORDS[16:]),
        )
        for _ in range(n)
    ]


def make_model(family, vocabulary, seed=0, d=64):
    "A tiny model of 128 positions, as it is when its training begins."
    shape = tiny_models.config(family, vocabulary, wide=d, max_position_embeddings=128)
    return tiny_models.random_model(shape, seed)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "Folders of tiny random models of four families with one tokenizer, and a folder of pairs."
    root, pairs = tmp_path_factory.mktemp("tiny"), make_pairs()
    (root / "pairs").mkdir()
    (root / "pairs/a.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    texts = [p["prompt_text"] + p["unpert_gen_text"] + p["pert_gen_text"] for p in pairs]
    tokenizer = tiny_models.byte_tokenizer(texts, 300)
    for family in ("gpt2", "bloom", "llama", "cohere"):
        make_model(family, len(tokenizer)).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return root


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


# recipes ------------------------------------------------------------------------------------------


FULL = dict(
    method="full", optimizer="rmsprop", learning_rate=1e-5, batch_size=4, beta=0.1, epochs=5
)
FULL |= dict(
    schedule="constant_with_warmup", warmup_steps=150, max_grad_norm=10, patience_steps=250
)
QLORA = dict(method="qlora", quantisation="nf4", double_quantisation=True, lora_r=64, lora_alpha=16)
QLORA |= dict(
    lora_dropout=0.05, epochs=20, batch_size=1, gradient_accumulation=4, learning_rate=1e-5
)
PAPER = dict.fromkeys(("mgpt", "bloom-1b7"), FULL)
PAPER |= dict.fromkeys(("bloom-7b1", "llama2-7b", "llama3-8b", "aya-23-8b"), QLORA)


def test_recipes_hold_the_papers_constants():
    for name, constants in PAPER.items():
        recipe = load_recipe(name)
        assert {key: recipe[key] for key in constants} == constants, name
    assert set(recipe_names()) == {*PAPER, "gemma", "world"}


def test_every_constant_of_a_paper_recipe_says_where_it_comes_from():
    for name in set(recipe_names()) - {"world"}:
        for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
            key = line.partition(":")[0]
            if line.startswith("#") or key in ("model", "method", "accelerate"):
                continue
            assert any(
                w in line for w in ("Table 6", "section 3", "upstream", "ours", "published")
            ), (name, line)


def test_recipes_name_accelerate_configurations_that_are_shipped():
    shipped = {
        p.stem: yaml.safe_load(p.read_text())
        for p in (RECIPES.parent / "accelerate").glob("*.yaml")
    }
    assert set(shipped) == {"single_gpu", "multi_gpu", "fsdp2", "zero2", "zero3"}
    assert (
        shipped["single_gpu"]["num_processes"] == 1
        and shipped["fsdp2"]["fsdp_config"]["fsdp_version"] == 2
    )
    assert all(load_recipe(r)["accelerate"] in shipped for r in recipe_names())


@pytest.mark.parametrize(
    "call, word",
    [
        (dict(name="mgtp"), "recipe"),
        (dict(name="mgpt", learning_rte=1), "learning_rate"),
        (dict(name="mgpt", loss="kto_pair"), "kto_pair"),
        (dict(name="mgpt", loss="simpo_"), "simpo"),
        (dict(name="mgpt", loss="exo_pair"), "label_smoothing"),
        (dict(name="mgpt", bos="yes"), "bos"),
        (dict(name="mgpt", batch_size=0), "batch_size"),
        (dict(name="mgpt", learning_rate="fast"), "fast"),
        (dict(name="mgpt", method="dora"), "method"),
        (dict(name="mgpt", batch_size="four"), "batch_size"),
        (dict(name="mgpt", epochs=float("nan")), "epochs"),
        (dict(name="mgpt", accelerate="fsdp9"), "fsdp2"),
    ],
)
def test_bad_settings_are_refused_before_anything_loads(call, word):
    with pytest.raises(InputError) as e:
        load_recipe(**call)
    assert word in str(e.value) and "\n" not in str(e.value)


def test_a_recipe_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "method: lora\nlearning_rate: 1e-4\n"
    )  # YAML 1.1 reads 1e-4 as text
    assert load_recipe(tmp_path / "mine.yaml", batch_size="8")["learning_rate"] == 1e-4
    (tmp_path / "bad.yaml").write_text("method: lora\nbatchsize: 3\n")
    with pytest.raises(InputError, match="bad.yaml.*batchsize.*batch_size"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "worse.yaml").write_text("method: [lora\n")
    with pytest.raises(InputError, match="worse.yaml:"):
        load_recipe(tmp_path / "worse.yaml")
    (tmp_path / "list.yaml").write_text("- lora\n")
    with pytest.raises(InputError, match="list.yaml"):
        load_recipe(tmp_path / "list.yaml")


def test_the_models_own_recipe_is_found():
    assert (
        recipe_for("meta-llama/Llama-2-7b-hf") == "llama2-7b"
        and recipe_for("/data/bloom-7b1/") == "bloom-7b1"
    )
    assert recipe_for("x/y/world-3") == "world" and recipe_for("gpt2") == "mgpt"


# tokens, order, cost ------------------------------------------------------------------------------


def test_encode_pair_bos_eos_and_cuts(tiny):
    from xgdetox.tokens import load_tokenizer

    t = load_tokenizer(tiny / "gpt2")
    a, b = (
        encode_pair(t, "the old cat", " likes a tree", " hates", bos=bos)
        for bos in ("tokenizer", "paper")
    )
    assert (
        b["prompt_ids"] == [t.bos_token_id] + a["prompt_ids"]
        and a["prompt_ids"][0] != t.bos_token_id
    )
    assert a["chosen_ids"][-1] == a["rejected_ids"][-1] == t.eos_token_id
    assert t.decode(a["prompt_ids"] + a["chosen_ids"][:-1]) == "the old cat likes a tree"
    cut = encode_pair(
        t, "the old cat", " likes a tree" * 9, " hates", max_length=10, max_prompt_length=2
    )
    assert (
        len(cut["prompt_ids"]) == 2
        and len(cut["chosen_ids"]) == 8
        and cut["chosen_ids"][-1] != t.eos_token_id
    )
    assert encode_pair(t, "the old cat " * 9, " likes", " hates", max_length=10) is None


@limits(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 30),
    st.booleans(),
)
def test_training_order_uses_every_pair_once_a_pass(lengths, batch, steps, group):
    order = training_order(lengths, batch, steps, 3, group)
    assert order == training_order(lengths, batch, steps, 3, group) and len(order) == batch * steps
    n = len(lengths)
    for i in range(0, len(order) - n + 1, n):
        assert sorted(order[i : i + n]) == list(range(n))


def test_grouping_by_length_saves_padding():
    draw = random.Random(0)
    lengths = [draw.randint(5, 200) for _ in range(2000)]
    waste = lambda order: (
        sum(max(lengths[j] for j in order[i : i + 8]) * 8 for i in range(0, len(order), 8))
        / sum(lengths[j] for j in order)
    )
    assert (
        waste(training_order(lengths, 8, 200, 0))
        < 1.06
        < 1.5
        < waste(training_order(lengths, 8, 200, 0, group=False))
    )


@limits(max_examples=50, deadline=None)
@given(st.integers(2, 5000), st.integers(1, 64), st.integers(1, 300))
def test_evaluation_costs_at_most_its_share(pairs, batch, steps):
    settings = load_recipe("world", batch_size=batch, max_steps=steps, kl_texts=0)
    plan = plan_run(settings, pairs)
    evaluations = math.ceil(steps / plan["eval_steps"])  # the last step has one too
    assert (
        set(plan["train"]).isdisjoint(plan["held"])
        and len(plan["train"]) + len(plan["held"]) == pairs
    )
    if len(plan["held"]) > 1:
        assert evaluations * len(plan["held"]) <= 0.1 * 3 * batch * steps + 1e-9
    assert evaluations >= 1


def test_the_held_back_pairs_do_not_depend_on_the_seed():
    assert split_pairs(100, 0.05, 128) == split_pairs(100, 0.05, 128)


# the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "cohere"])
def test_our_loss_is_trls_on_the_same_batch(tiny, tmp_path, family):
    from xgdetox.tokens import load_tokenizer
    from xgdetox.trainer import build_trainer
    from xgdetox.training import encode_pairs

    settings = load_recipe("world", batch_size=8, max_steps=4, kl_texts=2)
    tokenizer = load_tokenizer(tiny / family)
    pairs, _ = encode_pairs(tokenizer, tiny / "pairs", settings)
    trainer, _ = build_trainer(tiny / family, tokenizer, pairs, settings, tmp_path, 0)
    leave_the_reference(trainer.model)
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model.eval()
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * mask
    reference = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    ours = dpo_loss(*picked.sum(1).chunk(2), *reference, 0.1)[0].mean()
    theirs = trainer.compute_loss(model, batch)
    assert abs(ours - math.log(2)) > 1e-3 and torch.allclose(ours, theirs, atol=1e-5)
    assert "position_ids" in inspect.signature(model.forward).parameters  # seen by later readers


def leave_the_reference(model):
    "Add small random numbers to all parameters of a model."
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        p.data.add_(noise * 0.02)


def test_kl_is_zero_at_the_reference_and_positive_after(tiny):
    model = make_model("llama", 259)
    kl = ReferenceKL(
        model,
        [dict(prompt_ids=[3, 4], chosen_ids=[5, 6, 1]), dict(prompt_ids=[7], chosen_ids=[8, 1])],
        pad=2,
    )
    assert kl.predicted.sum() == 5 and abs(kl(model)) < 1e-6
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert kl(model) > 1e-4


# training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "cohere"])
def test_full_tuning_moves_every_parameter(tiny, tmp_path, family):
    final = train(tiny / family, tiny / "pairs", tmp_path, **QUICK)
    before, after = weights(tiny / family), weights(final)
    still = [k for k in before if torch.equal(before[k], after[k])]
    assert (
        set(before) == set(after)
        and not still
        and all(torch.isfinite(v).all() for v in after.values())
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "cohere"])
def test_adapters_move_merge_and_reload(tiny, tmp_path, family, method):
    "Every adapter moved, and nothing but adapters was trained."
    settings = QUICK | dict(method=method)
    final = train(tiny / family, tiny / "pairs", tmp_path, **settings)
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    # the same seed, as good as untrained: lora_B is 0, lora_A is random
    untrained = settings | dict(learning_rate=1e-12, max_steps=1, merge="none")
    folder = train(tiny / family, tiny / "pairs", tmp_path / "start", **untrained)
    start = load_file(folder / "adapter_model.safetensors")
    assert adapter.keys() == start.keys() and all("lora_" in k for k in adapter)
    assert all((v - start[k]).abs().max() > 1e-6 for k, v in adapter.items())
    check_merged(final, tiny / family, method)


def check_merged(final, base, method):
    "The merged model differs from its base in what LoRA adapts, loads whole, and says how it was checked."
    from transformers import AutoModelForCausalLM
    from xgdetox.models import load_model

    manifest = read_json(final / "manifest.json")
    assert manifest["check"]["rms"] <= manifest["check"]["allowed"] < manifest["check"]["effect"]
    before, after = weights(base), weights(final)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    adapted = {n + ".weight" for n in check_targets(load_model(base), "all-linear")}
    assert moved == adapted  # embeddings, norms, biases and head stay
    _, report = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    assert report["missing_keys"] in ([], set())
    assert manifest["quantisation"] == ("nf4" if method == "qlora" else None)
    assert not (final / "training_args.bin").exists()


NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)  # QLoRA (Dettmers et al. 2023), appendix E


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_four_bit_weights_are_the_nearest_of_sixteen_levels_of_a_block(family, tmp_path):
    """Also where a row of 96 is not a whole number of blocks of 64, on which bitsandbytes' CPU kernel goes wrong.

    The layer computes with these numbers."""
    from xgdetox.models import load_model
    from xgdetox.lora import dequantised, load_4bit

    make_model(family, 259, d=96).save_pretrained(tmp_path)
    exact, rounded = load_model(tmp_path), load_4bit(tmp_path, double=False)
    modules = dict(rounded.named_modules())
    four = [n for n, m in modules.items() if hasattr(getattr(m, "weight", None), "quant_state")]
    assert len(four) == len(check_targets(exact, "all-linear"))
    for name in four:
        own, module = exact.get_submodule(name), modules[name]
        weight = own.weight.data  # output, input
        nearest = nearest_levels(weight if hasattr(own, "in_features") else weight.T)
        assert torch.allclose(dequantised(module.weight), nearest, atol=1e-6), name
        x, bias = torch.randn(3, nearest.shape[1]), 0 if own.bias is None else own.bias
        assert torch.allclose(module(x), x @ nearest.T + bias, atol=1e-4), name


def nearest_levels(weight):
    "Each weight as the nearest of NF4's levels, scaled by the largest of its block of 64."
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[..., None] / scale[..., None] - NF4).abs().argmin(-1)
    return (NF4[nearest] * scale).view(weight.shape)


def test_a_merge_on_the_published_base_is_named_and_differs(tiny, tmp_path):
    train(tiny / "gpt2", tiny / "pairs", tmp_path / "run", method="qlora", **QUICK)
    a, b = (
        merge_adapter(tiny / "gpt2", tmp_path / "run/adapter", tmp_path / base, base=base)
        for base in ("dequantised", "16bit")
    )
    check = {p.name: read_json(p / "manifest.json")["check"] for p in (a, b)}
    assert (
        read_json(b / "manifest.json")["base"] == "16bit"
        and check["16bit"]["rms"] > 10 * check["dequantised"]["rms"]
    )
    assert merge_adapter(tiny / "gpt2", tmp_path / "run/adapter", a) == a  # there already
    with pytest.raises(InputError, match="holds something else"):
        merge_adapter(tiny / "gpt2", tmp_path / "run/adapter", a, base="16bit")


def test_a_wrong_merge_fails_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    import peft

    train(tiny / "llama", tiny / "pairs", tmp_path / "run", method="lora", **QUICK)

    def wrong(self, *a, **k):
        merged = peft.LoraModel.merge_and_unload(
            self.base_model if isinstance(self, peft.PeftModel) else self, *a, **k
        )
        with torch.no_grad():
            merged.model.layers[0].mlp.down_proj.weight.mul_(1.01)
        return merged

    monkeypatch.setattr(peft.PeftModel, "merge_and_unload", wrong, raising=False)
    with pytest.raises(InputError, match="rounding explains"):
        merge_adapter(tiny / "llama", tmp_path / "run/adapter", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "family, target, why",
    [
        ("gpt2", "wte", "tied"),
        ("bloom", "word_embeddings", "tied"),
        ("cohere", "embed_tokens", "tied"),
        ("llama", "lm_head", "never be trained"),
        ("cohere", "lm_head", "never be trained"),
        ("gpt2", "q_proj", "no module"),
    ],
)
def test_targets_that_merge_wrongly_are_refused(tiny, family, target, why):
    with pytest.raises(InputError, match=why):
        check_targets(make_model(family, 259), [target])
    assert check_targets(make_model("llama", 259), ["embed_tokens"]) == [
        "model.embed_tokens"
    ]  # untied: it merges exactly


def test_an_adapter_on_tied_embeddings_merges_only_untied(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from xgdetox.models import load_model

    model = get_peft_model(
        load_model(tiny / "bloom"),
        LoraConfig(
            r=4, target_modules=["word_embeddings", "query_key_value"], task_type="CAUSAL_LM"
        ),
    )
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.normal_(std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="tied"):
        merge_adapter(tiny / "bloom", tmp_path / "adapter", tmp_path / "a")
    merged = merge_adapter(tiny / "bloom", tmp_path / "adapter", tmp_path / "b", untie=True)
    facts = read_json(merged / "manifest.json")
    assert (
        facts["untied"]
        and facts["check"]["rms"] <= facts["check"]["allowed"] < facts["check"]["effect"]
    )


@pytest.mark.parametrize("loss", ["ipo", "sft", "kto", "simpo", "orpo"])
def test_other_losses_run_through_the_same_command(tiny, tmp_path, loss):
    final = train(tiny / "gpt2", tiny / "pairs", tmp_path, loss=loss, **QUICK)
    log = [e for e in read_json(tmp_path / "log.json") if "eval_loss" in e]
    assert (
        log
        and all(math.isfinite(e["eval_loss"]) and e["eval_kl"] > 0 for e in log)
        and read_json(tmp_path / "manifest.json")["settings"]["loss"] == loss
    )
    assert not torch.equal(
        weights(final)["transformer.wte.weight"], weights(tiny / "gpt2")["transformer.wte.weight"]
    )


@pytest.mark.parametrize(
    "loss",
    sorted(
        k for k, v in LOSSES.items() if v.trainer == "DPO" and k not in ("sigmoid", "ipo", "sft")
    ),
)
def test_every_loss_that_is_offered_runs(tiny, tmp_path, loss):
    "Two steps of each: finite losses, and the weights move. (The other losses are run above and everywhere.)"
    final = train(
        tiny / "gpt2",
        tiny / "pairs",
        tmp_path,
        loss=loss,
        label_smoothing=1e-3 if loss == "exo_pair" else None,
        **QUICK | dict(max_steps=2, kl_texts=0),
    )
    said = [e[k] for e in read_json(tmp_path / "log.json") for k in ("loss", "eval_loss") if k in e]
    assert (
        len(said) == 3
        and all(map(math.isfinite, said))
        and not torch.equal(
            weights(final)["transformer.wte.weight"],
            weights(tiny / "gpt2")["transformer.wte.weight"],
        )
    )


def built(tiny, family, out, **changes):
    "A trainer and its model, ready to start."
    from xgdetox.tokens import load_tokenizer
    from xgdetox.trainer import build_trainer
    from xgdetox.training import encode_pairs

    settings, tokenizer = (
        load_recipe("world", **{k: v for k, v in (QUICK | changes).items() if k != "recipe"}),
        load_tokenizer(tiny / family),
    )
    return (
        build_trainer(
            tiny / family,
            tokenizer,
            encode_pairs(tokenizer, tiny / "pairs", settings)[0],
            settings,
            out,
            0,
        )[0],
        tokenizer,
        settings,
    )


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "cohere"])
def test_a_saved_full_tuning_reloads_as_the_trained_model(tiny, tmp_path, family):
    from transformers import AutoModelForCausalLM
    from xgdetox.trainer import save_final

    trainer, tokenizer, settings = built(tiny, family, tmp_path)
    trainer.train()
    final, ids = (
        save_final(trainer, tokenizer, tiny / family, settings, tmp_path),
        torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        trained, loaded, before = (
            m.eval()(ids).logits
            for m in (
                trainer.model,
                AutoModelForCausalLM.from_pretrained(final),
                AutoModelForCausalLM.from_pretrained(tiny / family),
            )
        )
    assert torch.equal(trained, loaded) and not torch.allclose(trained, before, atol=1e-3)


@pytest.mark.parametrize(
    "family, method", [("gpt2", "full"), ("cohere", "full"), ("llama", "lora")]
)
def test_our_head_has_the_gradients_of_trls(tiny, tmp_path, family, method):
    "The same batch through the head that scores continuations only, and, without it, through TRL's own."
    trainer, *_ = built(tiny, family, tmp_path, method=method)
    model = trainer.model.train()
    leave_the_reference(model)
    inner = model.get_base_model() if method == "lora" else model
    batch = next(iter(trainer.get_train_dataloader()))

    def gradients():
        model.zero_grad()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return loss.detach(), {n: p.grad.clone() for n, p in trained}

    ours = gradients()
    inner.forward = inner.forward.__wrapped__  # TRL's, which ours had covered
    theirs = gradients()
    assert torch.allclose(ours[0], theirs[0], atol=1e-6) and ours[1].keys() == theirs[1].keys()
    for name, g in theirs[1].items():
        assert torch.allclose(ours[1][name], g, atol=1e-6 + 1e-4 * g.abs().max()), name
    assert max(g.abs().max() for g in theirs[1].values()) > 1e-3


@pytest.fixture
def progress():
    "The state of a run after twenty steps, and its line: the last that is known of each number."
    from types import SimpleNamespace

    log = [
        {"loss": 0.6931, "rewards/accuracies": 0.5, "rewards/margins": 0.01},
        {"eval_loss": 0.68, "eval_kl": 0.0123},
        {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.2},
    ]
    at = dict(global_step=20, max_steps=100, is_world_process_zero=True)
    line = "step 20/100 loss 0.500 accuracy 0.750 margin 0.200 held_back 0.680 KL 0.012"
    return SimpleNamespace(**at, log_history=log), line


def test_the_progress_line(progress, capsys, monkeypatch):
    "Rewritten in place on a terminal, a line of its own in a file, not said twice; silent on other processes."
    from xgdetox.pair_trainer import progress_line, show_progress

    state, line = progress
    assert progress_line(state) == show_progress(state) == line
    assert capsys.readouterr().err == line + "\n"
    assert show_progress(state, line) == line and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show_progress(state, line)
    assert capsys.readouterr().err == "\r\033[K" + line
    state.is_world_process_zero = False
    assert show_progress(state) == line and capsys.readouterr().err == ""


def test_progress_is_said_at_every_logging_step_also_into_a_file(tiny, tmp_path, capsys):
    train(
        tiny / "gpt2",
        tiny / "pairs",
        tmp_path,
        **QUICK | dict(max_steps=4, logging_steps=2, eval_steps=4),
    )
    lines = [l for l in capsys.readouterr().err.splitlines() if l.startswith("step ")]
    assert (
        [l.split()[1] for l in lines] == ["2/4", "4/4", "4/4"]
        and all(w in lines[0] for w in ("loss", "accuracy", "margin"))
        and "KL" not in lines[0]
        and "held_back" in lines[2]
        and "KL" in lines[2]
    )


def test_a_share_of_the_pairs(tiny, tmp_path):
    "The original's train_perc: the first pairs; what is left out is counted."
    train(
        tiny / "gpt2",
        tiny / "pairs",
        tmp_path / "a",
        **QUICK | dict(max_steps=1),
        train_fraction=0.5,
    )
    train(tiny / "gpt2", tiny / "pairs", tmp_path / "b", **QUICK | dict(max_steps=1), limit=32)
    a, b = (read_json(tmp_path / n / "manifest.json") for n in "ab")
    assert (
        a["kept"] == b["kept"] == 32
        and a["dropped"] == {"outside train_fraction": 32}
        and all(
            torch.equal(v, weights(tmp_path / "b/final_checkpoint")[k])
            for k, v in weights(tmp_path / "a/final_checkpoint").items()
        )
    )
    with pytest.raises(InputError, match="train_fraction"):
        load_recipe("world", train_fraction=2)


# LoRA folders -------------------------------------------------------------------------------------


FIVE_WORDS = [" ".join(WORDS[i : i + 5]) for i in range(20)]


LORA_RUNS = [("gpt2", "lora"), ("cohere", "lora"), ("llama", "qlora"), ("gpt2", "qlora")]


@pytest.fixture(scope="module", params=LORA_RUNS, ids="-".join)
def lora_run(request, tiny, tmp_path_factory) -> tuple:
    "Three folders: a base, an adapter without a tokenizer of its own, and the merged model."
    family, method = request.param
    out, quick = tmp_path_factory.mktemp("lora"), QUICK | dict(max_steps=2)
    final = train(tiny / family, tiny / "pairs", out / "t", method=method, **quick)
    adapter = shutil.copytree(out / "t/adapter", out / "adapter")
    for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (adapter / f).unlink(missing_ok=True)
    return tiny / family, adapter, final


def test_a_lora_folder_stands_for_its_merged_model(lora_run):
    "Its logits and hidden states are those of the merged model, to rounding; it needs no tokenizer of its own."
    from xgdetox.anatomy import pooled_states
    from xgdetox.models import load, load_model

    base, adapter, final = lora_run
    (adapted, tokenizer), merged, base = load(adapter), load_model(final), load_model(base)
    left = [n for n, _ in adapted.named_parameters() if "lora_" in n]
    assert not hasattr(adapted, "peft_config") or not left
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two, plain = (m(ids).logits for m in (adapted, merged, base))
    assert torch.allclose(one, two, atol=1e-5) and (two - plain).abs().max() > 1e-3
    states = [pooled_states(m, tokenizer, FIVE_WORDS) for m in (adapted, merged)]
    assert abs(states[0] - states[1]).max() < 1e-5


def test_what_is_measured_on_a_lora_folder_is_what_its_merged_model_gives(lora_run, tmp_path):
    "The activations before and after, and the probe."
    from xgdetox.activations import compare_activations
    from xgdetox.probe import train_probe

    base, *both = lora_run
    files, neurons = tiny_models.prompt_files(tmp_path, ("en",), 5), [[0, 3], [1, 60]]
    how = dict(readings=("own",), sets=20, n_tokens=4)
    tables = [compare_activations(base, tuned, neurons, files, **how) for tuned in both]
    drops = [table.value.tolist() for table in tables]
    assert drops[0] == pytest.approx(drops[1], abs=1e-5, nan_ok=True)
    comments = [f"{text},{i % 2}" for i, text in enumerate(FIVE_WORDS * 2)]
    (tmp_path / "c.csv").write_text("\n".join(["text,label", *comments]))
    probes = [
        train_probe(model, tmp_path / "c.csv", tmp_path / f"p{i}", paper=True)
        for i, model in enumerate(both)
    ]
    assert torch.allclose(
        *(load_file(p / "probe.safetensors")["weight"] for p in probes), atol=1e-4
    )


@pytest.fixture
def lora_folder(tiny, tmp_path):
    "The folder of an adapter on the tiny Llama, not merged."
    settings = QUICK | dict(max_steps=2, merge="none", method="lora")
    train(tiny / "llama", tiny / "pairs", tmp_path / "t", **settings)
    return tmp_path / "t/adapter"


def test_a_lora_folder_in_the_commands(tiny, lora_folder, tmp_path, run):
    "Every command that takes a model takes it."
    from xgdetox.grid.checks import check_model

    files = tiny_models.prompt_files(tmp_path, ("en",), 4)["en"]
    (tmp_path / "n.json").write_text("[[0, 3], [1, 60]]")
    neurons = ("--neurons", tmp_path / "n.json", "--no-control")
    prompts = ("--prompt-file", files, "--language", "en")
    both = ("--model", tiny / "llama", "--tuned-model", lora_folder)
    run("activations", *both, *neurons, *prompts, "--output", tmp_path / "a.csv")
    adapted, scored = ("--model", lora_folder), ("--scorer", "lexicon:world", "--offset", -1)
    run("intervene", *adapted, *neurons, *prompts, *scored, "--output-dir", tmp_path / "i")
    run("generate", *adapted, *prompts, "--output-dir", tmp_path / "g", "--n", 2)
    texts = ("--generations", tmp_path / "g/adapter", "--metric", "perplexity")
    run("quality", *texts, "--lm", lora_folder, "--output", tmp_path / "q.csv")
    check_model(str(lora_folder))  # refuses what is not a model


def test_a_lora_folder_finds_its_base(tiny, lora_folder, tmp_path, fails):
    "As seen from the folder, by the name of a shipped world, or not at all, which is one line."
    from xgdetox.checkpoints import adapter_base
    from xgdetox.models import load_model

    settings = lora_folder / "adapter_config.json"
    assert adapter_base(lora_folder) == str(tiny / "llama")
    said = read_json(settings)
    name = lambda base: settings.write_text(json.dumps(said | dict(base_model_name_or_path=base)))
    name(os.path.relpath(tiny / "llama", lora_folder))
    assert Path(adapter_base(lora_folder)).samefile(tiny / "llama") and load_model(lora_folder)
    name("world")
    assert adapter_base(lora_folder).endswith("assets/world/world")
    name("/gone/away")
    adapted = ("--model", lora_folder)
    gone = fails("retrieve", *adapted, "--output", tmp_path / "r.csv")
    assert "its base '/gone/away' is not at hand" in gone
    assert "not at hand" in fails("generate", *adapted, "--output-dir", tmp_path / "x")
    name(str(tiny / "llama"))
    words = ("--data-dir", tiny / "pairs", "--output-dir", tmp_path / "y")
    assert "merge it first" in fails("train", *adapted, *words)


def test_an_adapter_on_tied_embeddings_is_loaded_as_peft_runs_it(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from xgdetox.models import load_model

    tuned = get_peft_model(
        load_model(tiny / "bloom"),
        LoraConfig(
            r=4, target_modules=["word_embeddings", "query_key_value"], task_type="CAUSAL_LM"
        ),
    )
    with torch.no_grad():
        for n, p in tuned.named_parameters():
            if "lora_" in n:
                p.normal_(std=0.05)
    tuned.save_pretrained(tmp_path)
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(tuned.eval()(ids).logits, load_model(tmp_path)(ids).logits, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("double", [True, False])
def test_rounding_in_place_is_what_a_four_bit_model_computes_with(family, double, tmp_path):
    from xgdetox.adapters import round_to_4bit
    from xgdetox.models import load_model
    from xgdetox.lora import dequantised_base

    make_model(family, 259, d=96).save_pretrained(tmp_path)
    mine = load_model(tmp_path)
    round_to_4bit(mine, "nf4", double)
    theirs = dequantised_base(tmp_path, "nf4", double).state_dict()
    assert all(torch.allclose(v, theirs[k], atol=1e-6) for k, v in mine.state_dict().items())


def test_the_same_seed_gives_the_same_weights(tiny, tmp_path):
    seeds = dict(a=0, b=0, c=1)
    go = lambda name, seed: train(
        tiny / "gpt2", tiny / "pairs", tmp_path / name, seed=seed, **QUICK
    )
    a, b, c = (weights(go(name, seed)) for name, seed in seeds.items())
    same = lambda x, y: all(torch.equal(x[k], y[k]) for k in x)
    assert same(a, b) and not same(a, c)


def test_a_finished_run_returns_at_once_and_is_not_mixed_up(tiny, tmp_path):
    out = tmp_path / "a"
    go = lambda **changes: train(tiny / "gpt2", tiny / "pairs", out, **QUICK | changes)
    a = go()
    stamp, start = (a / "model.safetensors").stat().st_mtime_ns, time.time()
    assert go() == a and time.time() - start < 1
    assert (a / "model.safetensors").stat().st_mtime_ns == stamp
    (out / "checkpoint-3").mkdir()
    (out / "checkpoint-3/optimizer.pt").touch()  # killed after the manifest was written
    go()
    with pytest.raises(InputError, match="another settings beta"):
        go(beta=0.2)
    with pytest.raises(InputError, match="another seed"):
        go(seed=5)
    left = sorted(p.name for p in out.iterdir())
    assert left == ["final_checkpoint", "log.json", "manifest.json", "run.json"]


def test_patience_stops_and_the_best_weights_are_kept(tiny, tmp_path):
    noise = [
        p | dict(pert_gen_text=q["unpert_gen_text"])
        for p, q in zip(make_pairs(40, 1), make_pairs(40, 2))
    ]  # nothing to learn but the pairs
    (tmp_path / "noise.jsonl").write_text("\n".join(map(json.dumps, noise)))
    settings = QUICK | dict(
        max_steps=60,
        learning_rate=1e-2,
        eval_steps=3,
        patience_steps=12,
        kl_texts=0,
        eval_fraction=0.3,
        eval_pairs=12,
    )
    train(tiny / "gpt2", tmp_path / "noise.jsonl", tmp_path / "out", **settings)
    m, losses = (
        read_json(tmp_path / "out/manifest.json"),
        {
            e["step"]: e["eval_loss"]
            for e in read_json(tmp_path / "out/log.json")
            if "eval_loss" in e
        },
    )
    assert (
        m["last_step"] < 60
        and m["last_step"] - m["best_step"] >= 12
        and m["best_step"] == min(losses, key=losses.get)
    )


@pytest.mark.parametrize("final", ["best", "last"])
def test_the_final_weights_are_those_of_the_best_or_of_the_last_step(tiny, tmp_path, final):
    noise = [
        p | dict(pert_gen_text=q["unpert_gen_text"])
        for p, q in zip(make_pairs(40, 1), make_pairs(40, 2))
    ]  # nothing to learn: the held-back loss soon rises
    (tmp_path / "noise.jsonl").write_text("\n".join(map(json.dumps, noise)))
    settings = QUICK | dict(max_steps=12, eval_steps=3, learning_rate=1e-2, final=final)
    settings |= dict(kl_texts=0, eval_fraction=0.3, eval_pairs=12, keep_steps=[3, 6, 9, 12])
    train(tiny / "gpt2", tmp_path / "noise.jsonl", tmp_path / "out", **settings)
    log, m = (read_json(tmp_path / f"out/{name}.json") for name in ("log", "manifest"))
    losses = {e["step"]: e["eval_loss"] for e in log if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert best < 12 and m["best_step"] == best and m["last_step"] == 12
    assert m["final_step"] == {"best": best, "last": 12}[final]
    same = [
        step
        for step in losses
        if _weights(tmp_path / f"out/kept/step-{step}")
        == _weights(tmp_path / "out/final_checkpoint")
    ]
    assert same == [m["final_step"]]


def _weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "what", ["no pairs", "no tokenizer", "no model", "bad line", "optimizer", "schedule", "targets"]
)
def test_bad_input_leaves_nothing_behind(tiny, tmp_path, what):
    model, pairs = tiny / "gpt2", tiny / "pairs"
    if what == "no pairs":
        pairs = tmp_path / "nothing"
    if what == "bad line":
        pairs = tmp_path / "p.jsonl"
        pairs.write_text(json.dumps(make_pairs(1)[0]) + "\n{oops\n")
    if what == "no tokenizer":
        model = tmp_path / "m"
        model.mkdir()
        for f in ("config.json", "model.safetensors"):
            shutil.copy(tiny / "gpt2" / f, model)
    if what == "no model":
        model = tmp_path / "absent"
    wrong = dict(
        optimizer=dict(optimizer="rmspropp"),
        schedule=dict(schedule="constnt"),
        targets=dict(method="lora", lora_targets="wte"),
    ).get(what, {})
    with pytest.raises(InputError) as e:
        train(model, pairs, tmp_path / "out", **QUICK, **wrong)
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_real_pairs(real_data, tmp_path):
    "On real pairs: the loss on held-back pairs falls, and the manifest says what was kept and dropped."
    from xgdetox.data import load_pairs

    file = real_data / "pairwise/paradetox_prefix_pairs_en.jsonl.gz"
    rows = load_pairs(file, limit=600).rows
    texts = [r[k] for r in rows for k in ("prompt", "chosen", "rejected")]
    tokenizer = tiny_models.byte_tokenizer(texts, 1000)
    make_model("gpt2", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    shutil.copy(file, tmp_path / "pairs")
    settings = dict(recipe="world", max_steps=60, batch_size=16, learning_rate=1e-3, limit=1000)
    settings |= dict(eval_steps=15, max_characters=100)
    train(tmp_path / "model", tmp_path / "pairs", tmp_path / "out", **settings)
    m = read_json(tmp_path / "out/manifest.json")
    losses = [e["eval_loss"] for e in read_json(tmp_path / "out/log.json") if "eval_loss" in e]
    assert m["kept"] == 1000 and sum(m["dropped"].values()) > 0
    assert losses[-1] < losses[0] < math.log(2) + 0.02 and losses[-1] < 0.65


@pytest.mark.parametrize(
    "words, said",
    [
        (["--loss", "kto_pair"], "kto_pair"),
        (["--lora-rank=3"], "did you mean lora_r"),
        (["stray"], "belongs to no option"),
        (["--report_to", "tensorbord"], "report_to"),
        (["--gradient-checkpointing", "maybe"], "gradient_checkpointing"),
    ],
)
def test_any_setting_is_an_option_and_a_wrong_one_a_line(tiny, tmp_path, capfd, words, said):
    from xgdetox import cli

    with pytest.raises(SystemExit) as end:
        cli.main(
            [
                "train",
                "--model",
                str(tiny / "gpt2"),
                "--data-dir",
                str(tiny / "pairs"),
                "--output-dir",
                str(tmp_path / "o"),
                *words,
            ]
        )
    err = capfd.readouterr().err
    assert (
        end.value.code == 2
        and said in err
        and len(err.strip().splitlines()) == 1
        and not (tmp_path / "o").exists()
    ), err


@pytest.fixture
def upstream(capfd):
    "Runs one of the original's command lines, which must end well; what it said on stdout and stderr."
    from xgdetox import cli

    def run(line):
        with pytest.raises(SystemExit) as end:
            cli.main(line.split())
        out, err = capfd.readouterr()
        assert end.value.code == 0, err
        return out, err

    return run


def test_the_originals_command_for_lora_runs(tiny, tmp_path, upstream):
    "Its README's command, with its flags."
    out, _ = upstream(
        f"train --data_dir {tiny}/pairs --model_name_or_path {tiny}/llama --output_dir {tmp_path}/o "
        "--per_device_train_batch_size 4 --wandb_run_name mine --use_lora --lora_r 4 --max_steps 2 --loss ipo "
        "--optimizer_type adamw_torch --lr_scheduler_type constant"
    )
    assert "pairs: kept 64, dropped 0; 2 steps; held-back loss" in out
    said = read_json(tmp_path / "o/manifest.json")["settings"]
    wanted = dict(loss="ipo", optimizer="adamw_torch", schedule="constant", lora_r=4)
    assert {**said, **wanted, "run_name": "mine", "method": "lora"} == said
    upstream(
        f"train --data_dir {tiny}/pairs --model_name_or_path {tiny}/llama --output_dir {tmp_path}/q "
        "--use_lora --load_in_4bit --max_steps 1"
    )
    assert read_json(tmp_path / "q/manifest.json")["settings"]["method"] == "qlora"


def test_the_originals_merge_is_written_exactly_where_it_is_told_to(tiny, tmp_path, upstream):
    "Also where its README looks for the adapter: in the folder of the final checkpoint."
    settings = QUICK | dict(max_steps=2, method="lora")
    train(tiny / "llama", tiny / "pairs", tmp_path / "o", **settings)
    merge = f"merge --base_model_name {tiny}/llama --dtype bfloat16 --lora_adapter {tmp_path}/o"
    upstream(f"{merge}/adapter --output_dir {tmp_path}/m")
    upstream(f"{merge}/final_checkpoint --output_dir {tmp_path}/again")
    one, two = weights(tmp_path / "m"), weights(tmp_path / "again")
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert next(iter(one.values())).dtype == torch.bfloat16


def test_the_originals_switches_and_idle_flags_are_taken(tiny, tmp_path, upstream):
    "Its parser wants True or False behind a switch; what changes nothing here is said in a line each."
    _, err = upstream(
        f"train --data_dir {tiny}/pairs --model_name_or_path {tiny}/llama --output_dir {tmp_path}/f "
        "--use_lora False --train_perc 0.5 --sanity_check True --save_steps 25 --model_dtype float --log_freq 1 "
        "--ignore_bias_buffers False --gradient_checkpointing_use_reentrant False --max_steps 1 --report_to none"
    )
    f = read_json(tmp_path / "f/manifest.json")
    assert (f["settings"]["method"], f["settings"]["limit"], f["kept"]) == ("full", 1000, 32)
    assert len([l for l in err.splitlines() if l.startswith("xgdetox: ")]) == 5


def test_the_gpu_script_runs_at_a_tiny_size_on_a_cpu(root, tmp_path, capsys):
    from importlib.util import module_from_spec, spec_from_file_location
    from xgdetox.stats import read_table

    spec = spec_from_file_location("gpu_training", root / "experiments/gpu_training.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    words = "--tiny --only llama --steps 2 --warm 1 --peak 1 --output".split()
    script.main([*words, str(tmp_path / "g.csv")])
    t = read_table(tmp_path / "g.csv").set_index("metric").value
    wanted = {"tokens_per_second", "seconds_per_step", "peak_gib", "flops_utilisation"}
    assert (t > 0).all() and t["flops_utilisation"] < 1 and set(t.index) == wanted
    model = make_model("llama", 300)
    # two layers and the head; looked-up embeddings cost nothing
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 64 * 300
    assert script.flops_a_token(model, True, 0) == 6 * linear
    assert script.flops_a_token(model, False, 0) == 4 * linear


# points of a run that are kept --------------------------------------------------------------------

KEPT = dict(max_steps=8, eval_steps=4, keep_steps=[2, 6], keep_kl=1e-4, kl_texts=4)


def kept_of(out):
    return sorted(p.name for p in (out / "kept").iterdir())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_keeps_the_models_that_it_is_asked_for(tiny, tmp_path, method):
    "At the steps named, and at the first evaluation at or beyond the KL."
    from xgdetox.trainer import summarise_run

    settings = QUICK | KEPT | dict(method=method)
    train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **settings)
    points = read_json(tmp_path / "a/manifest.json")["points"]
    log = [e for e in read_json(tmp_path / "a/log.json") if "eval_loss" in e]
    assert [e["step"] for e in log] == [2, 4, 6, 8]
    first = next(e["step"] for e in log if e["eval_kl"] >= 1e-4)
    assert {p["step"] for p in points} == {2, 6, first}
    assert [p["step"] for p in points if p["reached"]] == [first]
    by_step = {e["step"]: e for e in log}
    for p in points:
        assert p["kl"] == by_step[p["step"]]["eval_kl"]
        assert p["margin"] == by_step[p["step"]]["eval_rewards/margins"]
        assert f"kept step-{p['step']} (KL" in summarise_run(tmp_path / "a")
    assert kept_of(tmp_path / "a") == sorted(f"step-{p['step']}" for p in points)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_kept_model_is_that_of_a_run_which_ends_there(tiny, tmp_path, method):
    from xgdetox.models import load_model

    long = QUICK | KEPT | dict(method=method)
    short = QUICK | dict(max_steps=2, eval_steps=2, kl_texts=0, method=method)
    train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **long)
    ends = load_model(train(tiny / "gpt2", tiny / "pairs", tmp_path / "b", **short))
    kept, ids = load_model(tmp_path / "a/kept/step-2"), torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(kept(ids).logits, ends(ids).logits, atol=1e-5)


def kill_before_mark(monkeypatch, step: int):
    "Stop a run where the checkpoint of `step` is written and not yet marked as whole."
    from xgdetox import pair_trainer

    true = pair_trainer._mark_whole

    def killed(checkpoint, state):
        if state.global_step == step:
            raise KeyboardInterrupt
        true(checkpoint, state)

    monkeypatch.setattr(pair_trainer, "_mark_whole", killed)


def test_a_killed_run_ends_in_the_same_kept_models(tiny, tmp_path, monkeypatch):
    "Killed after a point was kept, before its checkpoint was whole, with a point that it will not come to again."
    settings = QUICK | KEPT
    calm = train(tiny / "gpt2", tiny / "pairs", tmp_path / "calm", **settings)
    with monkeypatch.context() as m:
        kill_before_mark(m, 6)
        with pytest.raises(KeyboardInterrupt):
            train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **settings)
    assert "step-6" in kept_of(tmp_path / "a")
    (tmp_path / "a/kept/step-7").mkdir()
    (tmp_path / "a/kept/.step-8.part").mkdir()
    final = train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **settings)
    assert kept_of(tmp_path / "a") == kept_of(tmp_path / "calm")
    for name in kept_of(tmp_path / "a"):
        mine, its = (weights(tmp_path / run / "kept" / name) for run in ("a", "calm"))
        assert all(torch.equal(mine[k], its[k]) for k in its)
    assert all(torch.equal(v, weights(final)[k]) for k, v in weights(calm).items())


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(keep_steps=[2, 99]), "keep_steps: 99 is after the last step, 6"),
        (dict(keep_steps=[0]), "keep_steps"),
        (dict(keep_steps="two"), "keep_steps"),
        (dict(keep_kl=[0.5, -1]), "keep_kl"),
        (dict(keep_kl=1, kl_texts=0), "keep_kl"),
        (dict(keep_kl=1, accelerate="fsdp2"), "keep_kl"),
    ],
)
def test_points_that_no_run_comes_to_are_refused(tiny, tmp_path, changes, word):
    with pytest.raises(InputError, match=word):
        train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **QUICK | dict(max_steps=6) | changes)
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())


def test_a_loss_of_ones_own_is_one_row(tiny, tmp_path, monkeypatch, said):
    "The command trains with it, and an unknown name lists it."
    from xgdetox.losses import Loss, pair_columns

    asked = dict(precompute_ref_log_probs="precompute_reference")
    mine = Loss("DPO", pair_columns, fixed=dict(loss_type=["ipo"]), asked=asked)
    monkeypatch.setitem(LOSSES, "mine", mine)
    words = ["train", "--model", tiny / "gpt2", "--data-dir", tiny / "pairs", "--recipe", "world"]
    words += ["--max-steps", 2, "--set", "batch_size=4", "--set", "kl_texts=0"]
    ends = []
    for loss in ("mine", "ipo"):
        code, _, err = said(*words, "--output-dir", tmp_path / loss, "--loss", loss)
        assert code == 0, err
        ends.append(weights(tmp_path / loss / "final_checkpoint"))
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    code, _, err = said(*words, "--output-dir", tmp_path / "x", "--loss", "yours")
    assert code == 2 and "mine" in err


# kills and processes ------------------------------------------------------------------------------

COMMAND = """import pathlib, xgdetox.trainer as t
true = t.callbacks
def marked(*args, **kwargs):  # all is loaded, training is about to begin
    pathlib.Path({mark!r}).touch()
    return true(*args, **kwargs)
t.callbacks = marked
t.train({model!r}, {pairs!r}, {out!r}, recipe='world', method={method!r}, max_steps=40, batch_size=8, eval_steps=5,
    eval_pairs=8, learning_rate=1e-3, lora_r=4, max_length=64)"""


@pytest.fixture
def start_training(tiny, tmp_path, method):
    "Start a training into a folder; returns the process when its training is about to begin."
    mark = tmp_path / "mark"
    same = dict(model=str(tiny / "gpt2"), pairs=str(tiny / "pairs"), method=method)

    def start(out):
        mark.unlink(missing_ok=True)
        command = COMMAND.format(mark=str(mark), out=str(out), **same)
        child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", command])
        while child.poll() is None and not mark.exists():
            time.sleep(0.005)
        return child

    return start


def train_through_kills(start, out, kills: list, moment):
    "Start a training again until it ends, and kill it after `moment()` seconds while there are fewer than 5 `kills`."
    code = None
    while code != 0:
        child = start(out)
        if len(kills) < 5:
            try:
                child.wait(timeout=moment())
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                kills.append(sorted(p.name for p in out.iterdir()))
        code = child.wait(timeout=300)
        assert code in (0, -signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_five_kills_at_random_moments_change_nothing(start_training, tmp_path):
    """Killed at random moments between the first step and the end of the calm run.

    A run that finishes before the fifth kill is followed by another: how many that takes depends on how much faster
    than the calm run they are."""
    calm, began = start_training(tmp_path / "calm"), time.time()
    assert calm.wait(timeout=300) == 0
    whole, a = time.time() - began, weights(tmp_path / "calm/final_checkpoint")
    draw, kills = random.Random(0), []
    for k in range(40):
        out = tmp_path / f"killed{k}"
        train_through_kills(start_training, out, kills, lambda: draw.uniform(0, whole))
        b = weights(out / "final_checkpoint")
        assert all(torch.equal(a[name], b[name]) for name in a), kills
        assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".bin", ".part")]
        if len(kills) == 5:
            break
    assert len(kills) == 5 and any("checkpoint" in name for seen in kills for name in seen), kills


EIGHT_STEPS = """from xgdetox.trainer import train
train({model!r}, {pairs!r}, {out!r}, recipe='world', max_steps=8, batch_size={batch}, eval_steps=4, eval_pairs=8,
    learning_rate=1e-3, lora_r=4, method={method!r}, logging_steps=1, group_by_length=False)"""


def torchrun_words() -> list[str]:
    "What follows Python where two processes run a script, on a free port."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return [*words, "--master_addr", "127.0.0.1", "--master_port", str(port)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_do_what_one_does(tiny, tmp_path, method):
    """torchrun with gloo: half the batch on each of two processes gives the losses of the whole batch on one.

    (`accelerate launch --cpu` runs one process.)"""
    launches = dict(one=(8, []), two=(4, torchrun_words()))
    same = dict(model=str(tiny / "gpt2"), pairs=str(tiny / "pairs"), method=method)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, (batch, words) in launches.items():
        script = tmp_path / f"{name}.py"
        script.write_text(EIGHT_STEPS.format(out=str(tmp_path / name), batch=batch, **same))
        subprocess.run([sys.executable, *words, str(script)], check=True, timeout=300, env=env)
    logs = [read_json(tmp_path / name / "log.json") for name in launches]
    one, two = ([entry["loss"] for entry in log if "loss" in entry] for log in logs)
    assert len(one) == len(two) == 8 and all(abs(x - y) < 1e-4 for x, y in zip(one, two))
    a, b = weights(tmp_path / "one/final_checkpoint"), weights(tmp_path / "two/final_checkpoint")
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-3


@pytest.mark.parametrize("labels", ["shuffled", "benign"])
def test_a_placebo_is_a_run_of_its_own_and_keeps_its_pairs(tiny, tmp_path, labels, said):
    "The file is the seeded placebo of all pairs, the manifest says so; a run on the pairs as they are is another."
    from xgdetox.placebos import PLACEBOS, read_pairs

    run = tmp_path / "run"
    again = lambda **own: train(tiny / "gpt2", tiny / "pairs", run, seed=3, **own, **QUICK)
    first = again(labels=labels)
    lines = (run / f"pairs-{labels}.jsonl").read_text().splitlines()
    rows, given = [json.loads(line) for line in lines], read_pairs(tiny / "pairs")
    assert rows == PLACEBOS[labels](given, 3) and rows != given
    facts = json.loads((run / "manifest.json").read_text())
    assert facts["settings"]["labels"] == labels and facts["placebo"]["kind"] == labels
    assert facts["placebo"]["seed"] == 3 and facts["placebo"]["pairs"] == len(given)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert again(labels=labels) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="another settings labels"):
        again()


def test_labels_on_the_command_line(tiny, tmp_path, said):
    words = [
        "train",
        "--model",
        tiny / "gpt2",
        "--data-dir",
        tiny / "pairs",
        "--recipe",
        "world",
        "--max-steps",
        "2",
        "--eval-pairs",
        "4",
        "-o",
        tmp_path / "run",
    ]
    code, _, err = said(*words, "--labels", "swapped")
    assert (
        code == 2
        and "labels: 'swapped' is not known; use shuffled or benign" in err
        and len(err.strip().splitlines()) == 1
    )
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
    code, _, _ = said(*words, "--labels", "shuffled")
    assert code == 0 and (tmp_path / "run" / "pairs-shuffled.jsonl").is_file()
