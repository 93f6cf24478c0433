"""What identifies a file or a model: the values stand in manifests, ledgers and journals, so they must never change.

The expected values are those of the functions that wrote these files before they stood on one page."""

import hashlib

import pytest
import torch

from xgdetox.identity import (
    checkpoint_revision,
    file_hash,
    file_hashes,
    model_hash,
    model_revision,
    parameter_hash,
    weight_file_hash,
)

FILES = {
    "model.safetensors": bytes(range(256)) * 2000,
    "config.json": b'{"model_type": "gpt2"}',
    "tokenizer.json": b"{}",
    "README.md": b"a note",
    ".settings.json": b"{}",
    "manifest.json": b"{}",
}


@pytest.fixture
def model(tmp_path):
    "A folder with the files of a model, which hold nothing that could be loaded."
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_values_that_stand_in_files_of_users(model):
    short = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in FILES.items()}
    del short["README.md"], short[".settings.json"]
    assert file_hashes(model) == short and list(file_hashes(model)) == sorted(short)
    weights = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert checkpoint_revision(str(model)) == f"model.safetensors {weights}"
    assert file_hash(model / "model.safetensors") == weights
    assert weight_file_hash(model / "model.safetensors") == weights
    assert model_hash(model) == "9510de685e39c2cf"
    assert model_revision(model, None) == "19187c40d439"


def test_values_of_a_model_in_memory():
    layer = torch.nn.Linear(50, 40)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(2000.0).reshape(40, 50))
        layer.bias.copy_(torch.arange(40.0))
    assert (parameter_hash(layer), model_hash(layer)) == ("7b3160253776cec8", "ec0c794e2b7c1f5e")
    assert parameter_hash(layer) == parameter_hash(layer.to(torch.float32))
    assert parameter_hash(layer) != parameter_hash(layer.to(torch.bfloat16))


def test_large_files_are_told_by_their_size(tmp_path):
    large = tmp_path / "a.bin"
    with open(large, "wb") as f:
        f.truncate(2**26)
    assert file_hashes(large) == {"a.bin": "67108864 bytes"}
    assert file_hash(large, limit=2**20) == "size 67108864"
    with open(large, "wb") as f:
        f.truncate(2**26 - 1)
    assert len(file_hashes(large)["a.bin"]) == 16


def test_a_hub_name_has_its_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert checkpoint_revision("org/model") == "not at hand"
    place = tmp_path / "hub/models--org--model/refs"
    place.mkdir(parents=True)
    (place / "main").write_text("abc123\n")
    assert checkpoint_revision("org/model") == "abc123"
    config = type("Config", (), {"_commit_hash": "0123456789abcdef"})
    assert model_revision("org/model", config) == "0123456789ab"
    assert file_hashes("org/model") == model_hash("org/model") == "org/model"


def test_a_change_of_anything_that_counts_is_another_model(model):
    before = model_hash(model), model_revision(model, None), file_hashes(model)
    (model / "README.md").write_text("another note")
    assert before == (model_hash(model), model_revision(model, None), file_hashes(model))
    (model / "config.json").write_text('{"model_type": "gpt_neo"}')
    after = model_hash(model), model_revision(model, None), file_hashes(model)
    assert all(old != new for old, new in zip(before, after))
