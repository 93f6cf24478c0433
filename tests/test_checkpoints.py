"""Model and adapter folders, broken in the ways that people meet.

Each is refused with one line before anything is written, or gives what it should."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_models
from xgdetox.files import InputError
from xgdetox.models import check_checkpoint, load_model
from xgdetox.tokens import load_tokenizer

FAMILIES = ("gpt2", "llama")
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Sound tiny models, one folder each."
    folder = tmp_path_factory.mktemp("whole")
    for family in (*FAMILIES, "gemma3"):
        tiny_models.model(family, folder / family)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    "A copy of a sound model that a test may break."

    def copy(family, name="model"):
        return Path(shutil.copytree(whole / family, tmp_path / name))

    return copy


def rewritten(folder, change, file="model.safetensors"):
    "The folder, with its tensors as `change` returns them."
    save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})
    return folder


def first(tensors, part, ndim=2):
    return next(k for k in sorted(tensors) if part in k and tensors[k].ndim == ndim)


def one(tensors, part, change, ndim=2):
    "The tensors with one of them changed."
    key = first(tensors, part, ndim)
    return tensors | {key: change(tensors[key].clone())}


def poisoned(value):
    def poison(t):
        t.view(-1)[7] = value
        return t

    return poison


FAULTS = {  # what is done to the tensors, and what must be said
    "prefix": (lambda w: {f"module.{k}": v for k, v in w.items()}, "not in the checkpoint"),
    "no layer": (lambda w: {k: v for k, v in w.items() if ".1." not in k}, "not in the checkpoint"),
    "one more layer": (
        lambda w: w | {k.replace(".1.", ".2."): v.clone() for k, v in w.items() if ".1." in k},
        "no place in",
    ),
    "another head": (
        lambda w: w | {"score.weight": torch.ones(2, 128)},
        "no place in .*score.weight",
    ),
    "fewer rows": (lambda w: one(w, ".0.", lambda t: t[:5].clone()), "another shape"),
    "flat": (lambda w: one(w, ".0.", lambda t: t.flatten()), "another shape"),
    "transposed": (lambda w: one(w, "mlp", lambda t: t.T.contiguous()), "another shape"),
    "NaN": (lambda w: one(w, ".1.", poisoned(float("nan"))), "NaN or infinite"),
    "infinity": (lambda w: one(w, ".0.", poisoned(float("inf")), 1), "NaN or infinite"),
    "nothing": (lambda w: {"x": torch.ones(1)}, "not in the checkpoint"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_refused(copy, family, fault):
    "By the loader, and by the look that loads nothing."
    change, said = FAULTS[fault]
    folder = rewritten(copy(family), change)
    for look in (load_model, check_checkpoint):
        with pytest.raises(InputError, match=said):
            look(folder)


@pytest.mark.parametrize("family", (*FAMILIES, "gemma3"))
def test_what_is_harmless_loads_as_before(copy, whole, family):
    "Buffers that older versions stored, and tied heads that are stored or are not; the weights are those of the file."
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "v_head.summary.weight": torch.ones(1, 128),
    }
    folder = rewritten(copy(family), lambda w: w | extra)
    check_checkpoint(folder)
    there, stored = load_model(folder).state_dict(), load_file(whole / family / "model.safetensors")
    assert all(torch.equal(there[k], v) for k, v in stored.items()) and len(stored) > 20


@pytest.mark.parametrize("cut", [3, 1000, 100_000])
def test_a_file_that_was_cut_off_is_named(copy, cut):
    file = copy("gpt2") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    for look in (load_model, check_checkpoint):
        with pytest.raises(InputError, match="model.safetensors: is cut off"):
            look(file.parent)


def test_old_files_of_torch_load_or_are_refused(copy):
    "pytorch_model.bin: whole, with a NaN, cut off, and no such file at all."
    folder = copy("llama")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    check_checkpoint(folder)
    assert torch.equal(load_model(folder).state_dict()["lm_head.weight"], weights["lm_head.weight"])
    torch.save(one(weights, "mlp", poisoned(float("nan"))), folder / "pytorch_model.bin")
    for look in (load_model, check_checkpoint):
        with pytest.raises(InputError, match="NaN or infinite"):
            look(folder)
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:999])
    for look in (load_model, check_checkpoint):
        with pytest.raises(InputError, match="can be loaded"):
            look(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="can be loaded"):
        load_model(folder)


CONFIGS = {
    "no json": lambda c: "{",
    "a list": lambda c: [c],
    "no type": lambda c: {k: v for k, v in c.items() if k != "model_type"},
    "unknown type": lambda c: c | dict(model_type="nobody"),
    "words for numbers": lambda c: c | dict(hidden_size="wide", n_embd="wide"),
    "wider": lambda c: c | dict(hidden_size=256, n_embd=256),
    "fewer layers": lambda c: c | dict(num_hidden_layers=1, n_layer=1),
    "an epsilon that is NaN": lambda c: (
        c | dict(rms_norm_eps=float("nan"), layer_norm_epsilon=float("nan"))
    ),
    "four bits that are not there": lambda c: (
        c | dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True))
    ),
    "heads that do not divide": lambda c: (
        c | dict(num_attention_heads=7, num_key_value_heads=7, n_head=7)
    ),
}


ONLY_SEEN_RUNNING = (
    "an epsilon that is NaN",
    "four bits that are not there",
)  # names, shapes and weights are sound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", CONFIGS)
def test_a_configuration_that_does_not_fit_is_refused(copy, family, fault):
    folder = copy(family)
    changed = CONFIGS[fault](json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(
        changed if isinstance(changed, str) else json.dumps(changed)
    )
    with pytest.raises(InputError):
        load_model(folder)
    if fault in ONLY_SEEN_RUNNING:
        return
    with pytest.raises(InputError):
        check_checkpoint(folder)


def test_whole_numbers_are_no_weights_where_a_quantised_form_is_not_known(copy):
    "transformers leaves out a form that it does not know, and would fill the model with the whole numbers."
    folder = rewritten(
        copy("llama"),
        lambda w: {k: (v * 10).to(torch.int8) if "proj" in k else v for k, v in w.items()},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | dict(quantization_config=dict(quant_method="nobody's")))
    )
    with pytest.raises(InputError, match="whole numbers"):
        load_model(folder)


def test_a_quantised_form_that_fits_no_such_weights_is_one_line(copy, fails, tmp_path):
    "The libraries that load it keep their own words to themselves; `fails` sees one line and no output."
    folder = copy("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(
            config | dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True))
        )
    )
    assert str(folder) in fails(
        "generate",
        "--model",
        folder,
        "--language",
        "en",
        "--limit",
        1,
        "--output-dir",
        tmp_path / "out",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--recipe", ""], ["--data-dir", ""], ["--data-dir", " "]])
def test_a_blank_place_is_refused(fails, tmp_path, words):
    assert "is empty" in fails(
        "train", "--model", "world", "--output-dir", tmp_path / "out", *words
    )


def test_weights_too_large_for_their_type_are_refused(copy):
    folder = rewritten(
        copy("llama"),
        lambda w: w | {"lm_head.weight": torch.full_like(w["lm_head.weight"], 3.4e38)},
    )
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(InputError, match="NaN or infinite"):
            load_model(folder, dtype)


def test_a_head_of_its_own_is_kept_and_said(copy, tmp_path):
    "A file that holds two where the configuration says one: transformers loads two; what is saved of them says so."
    folder = rewritten(
        copy("gpt2"), lambda w: w | {"lm_head.weight": w["transformer.wte.weight"] + 1}
    )
    model = load_model(folder)
    assert (
        torch.equal(model.lm_head.weight, model.transformer.wte.weight + 1)
        and not model.config.tie_word_embeddings
    )
    model.save_pretrained(tmp_path / "saved")
    assert (
        json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    )


def test_a_model_of_few_positions_loads(tmp_path):
    tiny_models.model("gpt2", tmp_path, n_positions=4)
    assert load_model(tmp_path).config.n_positions == 4


SMALL_BERT = dict(vocab_size=60, hidden_size=32, num_hidden_layers=1)
SMALL_BERT |= dict(num_attention_heads=2, intermediate_size=32)
ENCODERS = dict(bert="encoder", roberta="encoder", distilbert="encoder", mt5="encoder-decoder")


def save_encoder(family, folder):
    "A tiny model of a family that cannot continue a text."
    tf = transformers
    if family == "mt5":
        return tiny_models.seq2seq(folder)
    small = dict(vocab_size=60, dim=32, n_layers=1, n_heads=2, hidden_dim=32)
    model = {
        "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**SMALL_BERT)),
        "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**SMALL_BERT)),
        "distilbert": lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(**small)),
    }[family]()
    model.save_pretrained(folder)


@pytest.mark.parametrize("family, said", ENCODERS.items())
def test_an_encoder_is_no_causal_language_model(tmp_path, family, said):
    save_encoder(family, tmp_path / family)
    for look in (load_model, check_checkpoint):
        with pytest.raises(InputError, match=said):
            look(tmp_path / family)


def test_a_masked_model_that_says_it_decodes_is_refused(tmp_path):
    "Its weights are still those of a masked model; a model that was made as a decoder loads."
    save_encoder("bert", tmp_path / "bert")
    settings = tmp_path / "bert" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | dict(is_decoder=True)))
    with pytest.raises(InputError, match="encoder"):
        load_model(tmp_path / "bert")
    decoder = transformers.BertConfig(**SMALL_BERT, is_decoder=True)
    transformers.BertLMHeadModel(decoder).save_pretrained(tmp_path / "decoder")
    assert load_model(tmp_path / "decoder").config.is_decoder


@pytest.mark.parametrize(
    "kind, package",
    dict(
        gptq="optimum", awq="gptqmodel", aqlm="aqlm", eetq="kernels", quanto="optimum-quanto"
    ).items(),
)
def test_a_quantised_checkpoint_names_the_package_that_is_missing(copy, kind, package):
    folder = copy("llama")
    config = json.loads((folder / "config.json").read_text()) | dict(
        quantization_config=dict(quant_method=kind, bits=4, group_size=128)
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"not installed.*{package}"):
        load_model(folder)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(copy):
    folder = copy("llama")
    words = load_tokenizer(folder)
    words.add_tokens(["<one more>"])
    words.save_pretrained(folder)
    with pytest.raises(InputError, match="embeddings"):
        load_tokenizer(folder)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(
    copy, monkeypatch, fails, run, tmp_path
):
    folder = copy("llama")
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= dict(
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.delenv("XGDETOX_TRUST_REMOTE_CODE", raising=False)
    for look in (load_model, check_checkpoint, load_tokenizer):
        with pytest.raises(InputError, match="--trust-remote-code"):
            look(folder)
    monkeypatch.setenv("XGDETOX_TRUST_REMOTE_CODE", "1")
    check_checkpoint(folder)
    assert type(load_model(folder)).__name__ == "OwnModel"


def test_the_empty_name_is_refused(fails, tmp_path):
    for look in (load_model, load_tokenizer, check_checkpoint):
        for name in ("", " "):
            with pytest.raises(InputError, match="is empty"):
                look(name)
    assert "is empty" in fails("generate", "--model", "", "--output-dir", tmp_path / "out")
    assert "is empty" in fails("retrieve", "--model", " ", "--output", tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "train": lambda m, o: ("train", "--model", m, "--data-dir", "world", "--output-dir", o),
    "generate": lambda m, o: (
        "generate",
        "--model",
        m,
        "--language",
        "en",
        "--limit",
        2,
        "--output-dir",
        o,
    ),
    "mass": lambda m, o: (
        "mass",
        "--model",
        m,
        "--language",
        "en",
        "--limit",
        2,
        "--output",
        o / "t.csv",
    ),
    "probe": lambda m, o: ("probe", "--model", m, "--train-file", "world", "--output-dir", o),
    "retrieve": lambda m, o: (
        "retrieve",
        "--model",
        m,
        "--language",
        "de",
        "--output",
        o / "t.csv",
    ),
    "merge": lambda m, o: (
        "merge",
        "--base-model",
        m,
        "--lora-adapter",
        m.parent / "adapter",
        "--output-dir",
        o,
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", ["prefix", "no layer", "NaN", "cut", "no tokenizer"])
def test_every_command_refuses_a_broken_model(copy, fails, tmp_path, command, fault):
    "One line, exit code 2, no output."
    folder = copy("gpt2")
    (tmp_path / "adapter").mkdir()
    adapter_of(folder).save_pretrained(tmp_path / "adapter")
    if fault == "cut":
        (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-5000]
        )
    elif fault == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    else:
        rewritten(folder, FAULTS[fault][0])
    fails(*COMMANDS[command](folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ---- adapters


def adapter_of(base, kind="lora", std=0.05, **settings):
    "A PEFT model on the base of a folder, its adapter random."
    import peft

    model = load_model(base)
    config = {
        "lora": lambda: peft.LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules=settings.pop("targets", "all-linear"),
            task_type="CAUSAL_LM",
            **settings,
        ),
        "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM", **settings),
        "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], **settings),
        "lokr": lambda: peft.LoKrConfig(r=4, target_modules=["q_proj", "v_proj"], **settings),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }[kind]()
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape) * std)
    return tuned.eval()


@pytest.fixture
def adapter(copy, tmp_path):
    "Makes an adapter's folder on a fresh copy of a family's model; (base, adapter, the model of PEFT)."

    def adapter(family, kind="lora", file="safetensors", **settings):
        base = copy(family, "base")
        tuned = adapter_of(base, kind, **settings)
        tuned.save_pretrained(tmp_path / "adapter", safe_serialization=file == "safetensors")
        return base, tmp_path / "adapter", tuned

    return adapter


IDS = torch.arange(3, 90, 4)[None]


def says(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


KINDS = [
    ("gpt2", "lora", {}),
    ("llama", "lora", {}),
    ("llama", "lora", dict(use_dora=True)),
    ("llama", "lora", dict(use_rslora=True)),
    (
        "llama",
        "lora",
        dict(rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"v_proj": 40}),
    ),
    ("llama", "lora", dict(targets=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    ("llama", "lora", dict(targets=["embed_tokens", "q_proj"])),
    ("llama", "lora", dict(bias="lora_only")),
    ("gpt2", "ia3", dict(std=0.3)),
    ("llama", "loha", dict(std=0.3)),
    ("llama", "lokr", dict(std=0.3)),
    ("gemma3", "lora", dict(targets=["q_proj"], modules_to_save=["embed_tokens"])),
    ("gpt2", "lora", dict(targets=["c_fc"], file="bin")),
]


@pytest.mark.parametrize(
    "family, kind, settings",
    KINDS,
    ids=lambda x: x if isinstance(x, str) else "-".join(x) or "plain",
)
def test_every_kind_of_adapter_is_merged_as_peft_runs_it(adapter, tmp_path, family, kind, settings):
    "As a model, beside it, and merged by the command: the logits of the model that PEFT saved."
    from xgdetox.engines import load_adapted
    from xgdetox.merging import merge_adapter

    base, folder, tuned = adapter(family, kind, **settings)
    wanted, plain = says(tuned), says(load_model(base))
    assert (wanted - plain).abs().max() > 1e-2
    merged = merge_adapter(base, folder, tmp_path / "merged")
    for model in (load_model(folder), load_adapted(str(base), folder), load_model(merged)):
        assert torch.allclose(says(model), wanted, atol=1e-4)
    check = json.loads((merged / "manifest.json").read_text())["check"]
    assert check["rms"] <= check["allowed"] < check["effect"] or "modules_to_save" in settings
    assert check["by_hand"] <= 1e-5


def test_lora_by_hand_is_the_formula(adapter):
    "W + alpha / r B A, with each module's own alpha and rank, computed here from the file."
    from xgdetox.merging import lora_maps

    base, folder, _ = adapter("llama", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 40})
    maps, t, weights = (
        lora_maps(folder),
        load_file(folder / "adapter_model.safetensors"),
        load_file(base / "model.safetensors"),
    )
    merged = load_model(folder).state_dict()
    for name, scale in (("q_proj", 12 / 2), ("v_proj", 40 / 4), ("k_proj", 12 / 4)):
        key = f"model.layers.1.self_attn.{name}"
        a, b = (t[f"base_model.model.{key}.lora_{x}.weight"] for x in "AB")
        assert maps[key][2] == scale and torch.allclose(
            merged[f"{key}.weight"], weights[f"{key}.weight"] + scale * b @ a, atol=1e-5
        )


ADAPTER_FAULTS = {
    "prefix": (lambda w: {f"module.{k}": v for k, v in w.items()}, "no place in the model"),
    "stripped": (
        lambda w: {k.removeprefix("base_model.model."): v for k, v in w.items()},
        "does not fit",
    ),
    "other names": (
        lambda w: {k.replace("layers.", "blocks."): v for k, v in w.items()},
        "no place in the model",
    ),
    "half of them": (lambda w: {k: v for k, v in w.items() if ".1." not in k}, "got no tensor"),
    "no B": (lambda w: {k: v for k, v in w.items() if "lora_A" in k}, "got no tensor"),
    "one too many": (
        lambda w: (
            w | {k.replace("q_proj", "x_proj"): v.clone() for k, v in w.items() if "q_proj" in k}
        ),
        "no place in the model",
    ),
    "fewer rows": (lambda w: one(w, "lora_A", lambda t: t[:2].clone()), "adapter"),
    "wider": (lambda w: one(w, "lora_A", lambda t: torch.cat([t, t], 1)), "adapter"),
    "NaN": (lambda w: one(w, "lora_B", poisoned(float("nan"))), "NaN or infinite"),
    "infinity": (lambda w: one(w, "lora_A", poisoned(float("-inf"))), "NaN or infinite"),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_an_adapter_that_does_not_apply_is_refused(adapter, tmp_path, fault):
    "As a model, beside one, and in a merge, which leaves nothing behind."
    from xgdetox.engines import load_adapted
    from xgdetox.merging import merge_adapter

    change, said = ADAPTER_FAULTS[fault]
    base, folder, _ = adapter("llama")
    rewritten(folder, change, "adapter_model.safetensors")
    for look in (
        lambda: load_model(folder),
        lambda: load_adapted(str(base), folder),
        lambda: merge_adapter(base, folder, tmp_path / "merged"),
    ):
        with pytest.raises(InputError, match=said):
            look()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_adapter_of_another_model_is_refused(adapter, copy, tmp_path, fails):
    base, folder, _ = adapter("gpt2")
    other = copy("llama", "other")
    said = fails(
        "merge",
        "--base-model",
        other,
        "--lora-adapter",
        folder,
        "--output-dir",
        tmp_path / "merged",
    )
    assert "adapter" in said and not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "fault",
    [
        "cut",
        "no weights",
        "settings no json",
        "settings a list",
        "settings of nobody",
        "no settings",
    ],
)
def test_a_broken_adapter_folder_is_refused_in_a_line(adapter, fails, tmp_path, fault):
    base, folder, _ = adapter("llama")
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    said = json.loads(settings.read_text())
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    if fault == "no weights":
        weights.unlink()
    if fault == "settings no json":
        settings.write_text("{")
    if fault == "settings a list":
        settings.write_text("[1]")
    if fault == "settings of nobody":
        settings.write_text(json.dumps(said | dict(peft_type="NOBODY")))
    if fault == "no settings":
        settings.unlink()
    fails(
        "merge", "--base-model", base, "--lora-adapter", folder, "--output-dir", tmp_path / "merged"
    )
    fails("retrieve", "--model", folder, "--language", "de", "--output", tmp_path / "t.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_prompts_that_were_tuned_are_refused_in_a_line(adapter, fails, tmp_path, kind):
    base, folder, _ = adapter("llama", kind)
    assert "adds to the prompt" in fails(
        "merge", "--base-model", base, "--lora-adapter", folder, "--output-dir", tmp_path / "merged"
    )
    assert "adds to the prompt" in fails(
        "generate", "--model", folder, "--language", "en", "--output-dir", tmp_path / "texts"
    )


def test_an_adapter_that_changes_nothing_is_said_so(adapter, said, tmp_path):
    base, folder, _ = adapter("llama")
    rewritten(
        folder,
        lambda w: {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in w.items()},
        "adapter_model.safetensors",
    )
    code, _, heard = said(
        "merge", "--base-model", base, "--lora-adapter", folder, "--output-dir", tmp_path / "merged"
    )
    assert code == 0 and heard.count("changes nothing") == 1
    load_model(folder)
    assert (
        "changes nothing"
        in said(
            "mass",
            "--model",
            folder,
            "--language",
            "en",
            "--limit",
            2,
            "--output",
            tmp_path / "t.csv",
        )[2]
    )


@pytest.mark.parametrize("number", [float("nan"), 1e30])
def test_an_adapter_whose_settings_break_the_numbers_is_refused(adapter, fails, tmp_path, number):
    "Its weights are sound; what its scale makes of them is not."
    base, folder, _ = adapter("llama", targets=["q_proj", "lm_head"])
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(said | dict(lora_alpha=number * number)))
    heard = fails(
        "merge", "--base-model", base, "--lora-adapter", folder, "--output-dir", tmp_path / "merged"
    )
    assert "NaN or infinite" in heard and str(folder) in heard
    assert "NaN or infinite" in fails(
        "generate",
        "--model",
        folder,
        "--language",
        "en",
        "--limit",
        1,
        "--output-dir",
        tmp_path / "out",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def wrapped(model, **settings):
    "The model with a LoRA adapter of rank 2."
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **settings))


def shake(tuned, part=None):
    "Move what is trained by a seeded random amount, and what has `part` in its name."
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if p.requires_grad or (part and part in name):
                p.add_(torch.randn(p.shape) * 0.1)


def assert_same_model(place, tuned):
    "The model in a folder has the rows of `tuned` and says what it says."
    model = load_model(place)
    rows = [m.get_input_embeddings().weight.shape[0] for m in (model, tuned)]
    assert rows[0] == rows[1]
    assert torch.allclose(says(model), says(tuned), atol=1e-4)


@pytest.mark.parametrize(
    "settings, lost",
    [
        (dict(modules_to_save=["embed_tokens", "lm_head"]), None),
        (dict(targets=["embed_tokens", "lm_head"]), None),
        (dict(targets=["embed_tokens", "q_proj"]), "lm_head"),
    ],
    ids=["whole", "lora", "no head"],
)
def test_embeddings_that_grew_and_were_tuned_are_merged(copy, tmp_path, settings, lost):
    """PEFT writes such embeddings under several names; the merged model is the one that it ran.

    Where it leaves out the head's new rows, nobody knows them."""
    from xgdetox.merging import merge_adapter

    base, folder = copy("llama", "base"), tmp_path / "adapter"
    model = load_model(base)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    given = dict(target_modules=settings.get("targets", ["q_proj"]))
    tuned = wrapped(model, **given, modules_to_save=settings.get("modules_to_save"))
    shake(tuned)
    tuned.save_pretrained(folder)
    merge = lambda: merge_adapter(base, folder, tmp_path / "merged")
    if lost:
        for look in (lambda: load_model(folder), merge):
            with pytest.raises(InputError, match=f"not the rows that {lost} needs"):
                look()
        return
    for place in (merge(), folder):
        assert_same_model(place, tuned)


def test_a_merge_keeps_the_adapters_tokenizer_template_and_embeddings(copy, tmp_path):
    "Two tokens more, a chat template, and embeddings that were trained for them."
    from xgdetox.merging import merge_adapter

    base, folder = copy("llama", "base"), tmp_path / "adapter"
    model, words = load_model(base), load_tokenizer(base)
    words.add_tokens(["<one>", "<two>"])
    words.chat_template = "{% for m in messages %}<one>{{ m['content'] }}<two>{% endfor %}"
    model.resize_token_embeddings(len(words))
    tuned = wrapped(model, target_modules=["q_proj"])
    shake(tuned, part="embed")
    tuned.save_pretrained(folder, save_embedding_layers=True)
    words.save_pretrained(folder)
    merged = merge_adapter(base, folder, tmp_path / "merged")
    back = load_tokenizer(merged)
    assert len(back) == len(words) and back.chat_template == words.chat_template
    assert back.encode("<two>") == words.encode("<two>")
    assert tuned.get_input_embeddings().weight.shape[0] == len(words)
    for place in (merged, folder):
        assert_same_model(place, tuned)


def test_an_adapters_tokenizer_that_is_larger_than_the_model_is_refused(adapter, tmp_path):
    from xgdetox.merging import merge_adapter

    base, folder, _ = adapter("llama")
    words = load_tokenizer(base)
    words.add_tokens(["<one>"])
    words.save_pretrained(folder)
    for look in (
        lambda: load_model(folder),
        lambda: merge_adapter(base, folder, tmp_path / "merged"),
    ):
        with pytest.raises(InputError, match="embeddings"):
            look()


def test_a_merge_that_is_wrong_is_refused_also_where_logits_are_no_numbers(
    adapter, tmp_path, monkeypatch
):
    "NaN is no agreement, and neither are weights that both of PEFT's ways get wrong alike."
    from xgdetox.merging import check_merge, merge_adapter

    base, folder, _ = adapter("llama")
    facts = dict(rms=0.0, allowed=0.1, by_hand=0.0)
    check_merge(facts, folder)
    for wrong in (
        dict(rms=float("nan")),
        dict(allowed=float("nan")),
        dict(by_hand=float("nan")),
        dict(by_hand=0.1),
        dict(rms=0.2),
    ):
        with pytest.raises(InputError):
            check_merge(facts | wrong, folder)
    import peft

    true = peft.tuners.lora.Linear.get_delta_weight
    monkeypatch.setattr(
        peft.tuners.lora.Linear, "get_delta_weight", lambda self, name: 1.5 * true(self, name)
    )
    monkeypatch.setattr("xgdetox.merging.logits_of", lambda *a: torch.ones(2, 2))
    monkeypatch.setattr("xgdetox.adapters.check_same", lambda *a: None)
    with pytest.raises(InputError, match="by a share"):
        merge_adapter(base, folder, tmp_path / "merged")


def test_an_adapters_targets_are_in_order_so_that_its_hash_repeats(tmp_path):
    from xgdetox.pair_trainer import sort_lists

    (tmp_path / "adapter_config.json").write_text(
        json.dumps(
            dict(
                target_modules=["v", "q", "k"],
                r=4,
                layers_to_transform=[3, 1],
                base_model_name_or_path="x",
            )
        )
    )
    sort_lists(tmp_path / "adapter_config.json")
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said == dict(
        target_modules=["k", "q", "v"], r=4, layers_to_transform=[3, 1], base_model_name_or_path="x"
    )


# ---- models with other blocks than those that `anatomy` knows


@pytest.fixture(scope="module", params=tiny_models.UNUSUAL)
def unusual(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_models.model(request.param, folder, spread=1.0)
    return folder


SENTENCES = [
    "the old man sees a red house by the river",
    "la casa",
    "der alte Mann geht nach Hause und nicht fort",
]


@torch.no_grad()
def test_hidden_states_need_no_known_blocks(unusual):
    "`pooled_states` of texts in one batch is the mean of the states that transformers gives for each alone."
    from xgdetox.anatomy import pooled_states

    model, words = load_model(unusual), load_tokenizer(unusual)
    pooled = pooled_states(model, words, SENTENCES)
    last = pooled_states(model, words, SENTENCES, layers=[-1])[:, 0]
    for i, text in enumerate(SENTENCES):
        states = model.base_model(
            words(text, return_tensors="pt")["input_ids"], output_hidden_states=True
        )
        for l, state in enumerate(states.hidden_states):
            mean = state[0].mean(0)
            assert (
                abs(pooled[i, l, : len(mean)] - mean.numpy()).max() < 1e-4
                and not pooled[i, l, len(mean) :].any()
            )
        mean = states.last_hidden_state[0].mean(0).numpy()
        assert abs(last[i, : len(mean)] - mean).max() < 1e-4


@torch.no_grad()
def test_generation_of_other_blocks_is_that_of_each_text_alone(unusual):
    "In a padded batch: the likeliest tokens, by passes over unpadded text."
    from xgdetox.sampling import plan_batches, prepare_prompts, sample
    from xgdetox.tokens import encode

    model, words = load_model(unusual), load_tokenizer(unusual)
    greedy, together = dict(n=2, max_tokens=5, temperature=0, stop=[]), {}
    for batch in plan_batches(model, prepare_prompts(words, range(3), SENTENCES)[0], 2, 5):
        rows = sample(model, encode(words, [p.ids for p in batch]), **greedy)
        together |= {p.text: rows[2 * i : 2 * i + 2].tolist() for i, p in enumerate(batch)}
    for text in SENTENCES:
        ids = words(text)["input_ids"]
        for _ in range(5):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        assert together[text] == [ids[-5:]] * 2


@torch.no_grad()
def test_mass_of_other_blocks_is_that_of_each_text_alone(unusual):
    "In a padded batch: the mass of words of several pieces, by passes over unpadded text."
    from xgdetox.mass import rude_sequences, toxic_mass

    model, words = load_model(unusual), load_tokenizer(unusual)
    bad = ["river", "nobody knows", "x"]
    for mass, text in zip(toxic_mass(model, words, SENTENCES, bad), SENTENCES):
        ids = words(text)["input_ids"]
        total = 0
        for sequence in rude_sequences(words, bad)[0]:
            logs = model(torch.tensor([ids + list(sequence)])).logits[0].log_softmax(-1)
            total += sum(logs[len(ids) - 1 + k, t] for k, t in enumerate(sequence)).exp().item()
        assert mass == pytest.approx(total, rel=1e-3)


# ---- steps that a model cannot have


def grid_of(family, folder):
    "The grid that compares a tiny model of a family with itself."
    from xgdetox.grid.load import load_grid
    from xgdetox.grid.runner import comparison

    tiny_models.model(family, folder)
    how = dict(languages=["en", "de"], scorer="lexicon:world")
    return load_grid(comparison(str(folder), str(folder), **how))


def stages_of(grid) -> set:
    from xgdetox.grid.jobs import jobs

    return {job.stage for job in jobs(grid)}


def notes_of(grid):
    "What the report of a grid will say of what was left out; None if nothing."
    from xgdetox.grid.jobs import jobs

    report = next(job for job in jobs(grid) if job.stage == "report")
    return (report.parameters.get("options") or {}).get("notes")


@pytest.mark.parametrize("family", ["mixtral", "mamba", "opt"])
def test_a_grid_leaves_out_what_a_model_cannot_have_and_says_so(tmp_path, family, monkeypatch):
    "The steps on neurons, and no other; with the map named, where there is one, none."
    monkeypatch.delenv("XGDETOX_OUT_PROJECTION", raising=False)
    own, known = (grid_of(name, tmp_path / name) for name in (family, "gpt2"))
    neurons = {"value_vectors", "intervene", "activations", "explain"}
    there, all_ = stages_of(own), stages_of(known)
    assert there == all_ - neurons
    assert {"probe", "retrieve"} <= there and "intervene" in all_
    (note,) = notes_of(own)
    assert f"{family} has no value_vectors, intervene, activations:" in note
    if family == "opt":
        monkeypatch.setenv("XGDETOX_OUT_PROJECTION", "fc2")
        assert stages_of(own) == all_ and notes_of(own) is None


def test_a_grid_of_known_families_is_as_before():
    from xgdetox.grid.jobs import lacks, left_out
    from xgdetox.grid.load import load_grid
    from xgdetox.grid.runner import comparison

    assert lacks("world") == {} and left_out(load_grid(comparison("world", "world-tuned"))) == []


@pytest.fixture
def opt_grid(tmp_path, monkeypatch):
    "A function that gives a grid of a model whose blocks `anatomy` does not understand, with changes of that model."
    monkeypatch.delenv("XGDETOX_OUT_PROJECTION", raising=False)
    tiny_models.model("opt", tmp_path / "m")
    (tmp_path / "n.json").write_text("[[0, 3], [1, 60]]")
    prompts = tiny_models.prompt_files(tmp_path, n=4)["de"].parent

    def grid(**own) -> dict:
        model = dict(path=str(tmp_path / "m"), neurons=str(tmp_path / "n.json"), **own)
        data = dict(prompts=str(prompts), lexicon="world")
        grid = dict(name="opt", models={"m": model}, languages=["de"], data=data)
        grid |= dict(stages=["generate", "intervene"], scorers={"words": "lexicon:world"})
        short = dict(n=1, max_tokens=3)
        return grid | dict(generate=short, intervene=dict(offsets=[0.0, 1.0], options=short))

    return grid


def test_a_grid_names_the_map_of_one_model(opt_grid, tmp_path, run_grid):
    "Its jobs on neurons get it as a parameter, and find it; without it they are left out, a wrong one is refused."
    from xgdetox.grid.checks import check_at_hand
    from xgdetox.grid.jobs import jobs, left_out
    from xgdetox.grid.load import load_grid

    assert "m has no intervene" in left_out(load_grid(opt_grid()))[0]
    named = load_grid(opt_grid(out_projection="fc2"))
    given = {j.stage: j.parameters.get("out_projection") for j in jobs(named)}
    assert given == {"generate": None, "intervene": "fc2"} and left_out(named) == []
    with pytest.raises(InputError, match="models.m.out_projection: .*no part 'fc9'"):
        check_at_hand(load_grid(opt_grid(out_projection="fc9")))
    (tmp_path / "grid.yaml").write_text(json.dumps(opt_grid(out_projection="fc2")))
    run_grid("run", tmp_path / "grid.yaml", "--run-dir", tmp_path / "run", "--cores", 1)
    rows = (tmp_path / "run/parts/intervention/m.csv").read_text().splitlines()
    offset = rows[0].split(",").index("offset")
    assert {row.split(",")[offset] for row in rows[1:]} == {"0.0", "1.0"}


SMALL_COMPARISON = (
    "--languages en,de --prompts 3 --scorer lexicon:world --lexicon world "
    "--set generate.n=2 --set probe.limit=60 --cores 1"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "mamba"])
def test_a_comparison_of_models_without_neurons_finishes(tmp_path, family):
    tiny_models.model(family, tmp_path / "a")
    tiny_models.model(family, tmp_path / "b", seed=1)
    words = ["--base", tmp_path / "a", "--tuned", tmp_path / "b", "--run-dir", tmp_path / "run"]
    words = [sys.executable, "-m", "xgdetox.cli", "compare", *map(str, words), *SMALL_COMPARISON]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has no value_vectors" in done.stdout
    assert "has no value_vectors" in (tmp_path / "run/report.html").read_text()
    made = {p.name for p in (tmp_path / "run/parts").iterdir()}
    assert made >= {"toxicity", "mass", "probe", "retrieval", "quality"}


def test_a_map_that_is_named_serves_the_commands_on_neurons(tmp_path, run, fails):
    "OPT's two matrices lie in the block itself: refused with the flag's name, and read with it."
    tiny_models.model("opt", tmp_path / "m")
    (tmp_path / "n.json").write_text("[[0, 3], [1, 60]]")
    words = (
        "activations",
        "--model",
        tmp_path / "m",
        "--tuned-model",
        tmp_path / "m",
        "--neurons",
        tmp_path / "n.json",
        "--language",
        "en",
        "--limit",
        3,
        "--no-control",
        "--output",
        tmp_path / "a.csv",
    )
    assert "--out-projection" in fails(*words)
    run(*words, "--out-projection", "fc2")
    assert "--out-projection" in fails(*words)  # of that command only
    assert "no part 'fc9'" in fails(*words, "--out-projection", "fc9")


@pytest.fixture
def opt(tmp_path, monkeypatch):
    "A tiny OPT, its tokenizer, and its anatomy with the map named."
    from xgdetox.anatomy import anatomy

    model, words = tiny_models.model("opt", tmp_path)
    return model, words, anatomy(model, out_projection="fc2")


@torch.no_grad()
def test_neurons_are_read_from_a_map_that_sees_flattened_batches(opt):
    "OPT: the neurons of each token in a padded batch, by hand from a pass over one text alone."
    from xgdetox.anatomy import neuron_hooks
    from xgdetox.tokens import encode

    model, words, parts = opt
    with neuron_hooks(model, read=[(1, 7), (0, 9)], parts=parts, reduce=lambda a: a) as seen:
        model(**encode(words, SENTENCES))
    read = seen.values()[0]  # text, position, neuron
    inner = []
    down = model.model.decoder.layers[1].fc2
    down.register_forward_pre_hook(lambda module, arguments: inner.append(arguments[0]))
    for i, text in enumerate(SENTENCES):
        ids = words(text, return_tensors="pt")["input_ids"]
        model(ids)
        n = ids.shape[1]
        assert torch.allclose(read[i, -n:, 0], inner[i].reshape(n, -1)[:, 7], atol=1e-5)


@torch.no_grad()
def test_neurons_of_a_map_that_sees_flattened_batches_are_changed(opt):
    "OPT: an offset to a neuron does what its column, added to the map's bias, does."
    from xgdetox.anatomy import neuron_hooks

    model, words, parts = opt
    down = model.model.decoder.layers[1].fc2
    for text in SENTENCES:
        ids = words(text, return_tensors="pt")["input_ids"]
        plain = model(ids).logits
        with neuron_hooks(model, add=[(1, 7, 3.0)], parts=parts):
            moved = model(ids).logits
        with torch.no_grad():
            down.bias.add_(3 * down.weight[:, 7])
            by_hand = model(ids).logits
            down.bias.sub_(3 * down.weight[:, 7])
        assert torch.allclose(moved, by_hand, atol=1e-4)
        assert not torch.allclose(moved, plain, atol=1e-3)


def test_a_context_is_read_from_whichever_field_holds_it():
    import transformers as tf
    from types import SimpleNamespace as S
    from xgdetox.checkpoints import context_length

    for config, length in (
        (tf.GPT2Config(n_positions=77), 77),
        (tf.MptConfig(max_seq_len=55), 55),
        (tf.LlamaConfig(max_position_embeddings=99), 99),
        (tf.RwkvConfig(context_length=44), 44),
        (tf.MambaConfig(), None),
        (tf.T5Config(n_positions=512), None),
        (S(seq_length=66), 66),
    ):
        assert context_length(S(config=config)) == length, config


@pytest.mark.parametrize(
    "kind",
    [
        "Roberta",
        "XLMRoberta",
        "Camembert",
        "MPNet",
        "Bert",
        "Electra",
        "Longformer",
        "XLMRobertaXL",
    ],
)
def test_a_classifier_reads_to_the_end_of_its_positions_and_no_further(tmp_path, kind):
    "A text of exactly that many tokens passes, one more is one too many for the model itself."
    import transformers as tf
    from xgdetox.tokens import position_room

    more = dict(attention_window=4) if kind == "Longformer" else {}
    config = getattr(tf, f"{kind}Config")(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        pad_token_id=1,
        **more,
    )
    model = getattr(tf, f"{kind}ForSequenceClassification")(config).eval()
    room = position_room(model)
    with torch.no_grad():
        assert model(input_ids=torch.full((1, room), 5)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=torch.full((1, room + 1), 5))


# ---- scorers, other judges, other loaders


@pytest.mark.parametrize("fault", ["prefix", "NaN", "cut", "no head", "one more layer"])
def test_a_broken_classifier_is_refused(tmp_path, fails, fault):
    import transformers as tf
    from xgdetox.scorers.base import load_scorer

    folder = tmp_path / "judge"
    words = tiny_models.tokenizer(folder)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    named = dict(id2label={0: "neutral", 1: "toxic"})
    shape = tf.BertConfig(vocab_size=len(words), **size, **named)
    tf.BertForSequenceClassification(shape).save_pretrained(folder)
    load_scorer(f"classifier:{folder}")
    again = lambda w: {k.replace(".1.", ".2."): v.clone() for k, v in w.items() if ".1." in k}
    changes = {
        "prefix": lambda w: {f"module.{k}": v for k, v in w.items()},
        "NaN": lambda w: one(w, "query.weight", poisoned(float("nan"))),
        "no head": lambda w: {k: v for k, v in w.items() if "classifier" not in k},
        "one more layer": lambda w: w | again(w),
    }
    cut_short(folder) if fault == "cut" else rewritten(folder, changes[fault])
    with pytest.raises(InputError):
        load_scorer(f"classifier:{folder}")


def cut_short(folder):
    "Take the last bytes from a model's file."
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("fault", ["prefix", "no layer", "NaN", "cut"])
def test_a_broken_judge_of_perplexity_is_refused(copy, fails, run, tmp_path, fault):
    "A causal one and an encoder-decoder."
    (tmp_path / "g").mkdir()
    line = json.dumps(dict(prompt="the old man", generated_text=" sees a house")) + "\n"
    (tmp_path / "g/output-rtp_lx_en.json").write_text(3 * line)
    tiny_models.seq2seq(tmp_path / "mt5")
    for folder in (copy("gpt2", "judge"), tmp_path / "mt5"):
        words = ["quality", "--generations", tmp_path / "g", "--lm", folder]
        words += ["--metric", "perplexity", "--output", tmp_path / "t.csv"]
        run(*words)
        for old in tmp_path.glob("t*"):
            old.unlink()
        if fault == "cut":
            cut_short(folder)
        elif fault == "NaN":
            rewritten(folder, lambda w: one(w, ".1.", poisoned(float("nan"))))
        else:
            rewritten(folder, FAULTS[fault][0])
        fails(*words)
        assert not list(tmp_path.glob("t*"))


@pytest.mark.parametrize("fault", ["prefix", "no layer", "fewer rows"])
def test_a_base_in_four_bits_is_checked_too(copy, fault):
    pytest.importorskip("bitsandbytes")
    from xgdetox.lora import load_4bit

    folder = copy("llama")
    load_4bit(folder)
    rewritten(folder, FAULTS[fault][0])
    with pytest.raises(InputError):
        load_4bit(folder)


def test_vllm_is_not_started_on_a_broken_model(copy):
    from xgdetox.engines import vllm_engine

    folder = rewritten(copy("llama"), FAULTS["NaN"][0])
    with pytest.raises(InputError, match="NaN or infinite"):
        with vllm_engine(folder, None, {}):
            pass
