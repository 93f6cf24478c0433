"""`--paper` is what the released code does.

Each is held against the same arithmetic, written again here from its description and not from the package."""

import json

import numpy as np
import pytest
import torch
from tiny_models import model as tiny_model, prompt_files, tokenizer as tiny_tokenizer

from xgdetox.files import InputError, read_json, write_csv
from xgdetox.intervention import check_offsets
from xgdetox.probe import fit_probe_paper, load_probe
from xgdetox.quality import quality_table
from xgdetox.merging import paper_merge


# ---- the probe


def by_hand(x, y, seed, epochs, rate, batch):
    """The script's loop with modules of torch; the last epoch's weights.

    Sigmoid and binary cross-entropy, Adam, batches in a shuffled order."""
    generator, linear = (
        torch.Generator().manual_seed(seed),
        torch.nn.Linear(x.shape[1], 1, bias=False),
    )
    linear.weight.data = (
        (torch.rand(x.shape[1], generator=generator) * 2 - 1) / x.shape[1] ** 0.5
    )[None]
    adam = torch.optim.Adam(linear.parameters(), rate)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            adam.zero_grad()
            torch.nn.BCELoss()(torch.sigmoid(linear(x[rows])).squeeze(1), y[rows]).backward()
            adam.step()
    return linear.weight.detach().numpy()


def test_the_papers_probe_is_trained_at_the_scripts_rate_and_its_last_epoch_is_kept():
    torch.manual_seed(0)
    x, y = torch.randn(43, 5), (torch.rand(43) > 0.5).float()
    found = fit_probe_paper(x.numpy(), y.numpy(), seed=2, x_val=x.numpy(), y_val=y.numpy())
    np.testing.assert_allclose(found["weight"], by_hand(x, y, 2, 20, 1e-6, 10), atol=1e-7)
    assert len(found["validation_losses"]) == 20
    worse = fit_probe_paper(
        x.numpy(),
        y.numpy(),
        seed=2,
        lr=0.05,
        epochs=4,
        batch=7,
        x_val=x.numpy(),
        y_val=1 - y.numpy(),
    )  # validation gets worse: still the last
    np.testing.assert_allclose(worse["weight"], by_hand(x, y, 2, 4, 0.05, 7), rtol=1e-4)


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("little")
    tiny_model("gpt2", folder / "m")
    rude = [
        dict(text=f"the old man {w} house", label=int(w == "red"))
        for w in ("red", "old")
        for _ in range(30)
    ]
    write_csv(folder / "en.csv", rude)
    prompt_files(folder, n=4)
    (folder / "lexicon").mkdir()
    for language in ("en", "de"):
        (folder / f"lexicon/{language}.txt").write_text("house\nHaus\n")
    (folder / "neurons.json").write_text("[[0, 1]]")
    return folder


def probe_words(little):
    "The words of a command that trains a probe; the folder for it comes next."
    given = ("--model", little / "m", "--train-file", little / "en.csv")
    return ["probe", *given, "--output-dir"]


def test_the_probes_settings_are_given_on_the_command_line(little, tmp_path, run):
    words, few = probe_words(little), ("--paper", "--epochs", 2)
    more = (*few, "--batch-size", 5, "--learning-rate", "1e-2")
    for name, settings in (("a", more), ("b", more), ("c", few)):
        run(*words, tmp_path / name, *settings)
    (a, said), (b, _), (c, plain) = (load_probe(tmp_path / name) for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c) and np.abs(a - c).max() > 1e-3
    settings = lambda facts: [facts[k] for k in ("learning_rate", "epochs", "batch_size")]
    assert settings(said) == [1e-2, 2, 5] and settings(plain) == [1e-6, 2, 10]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--epochs", 2],
        ["--learning-rate", "1e-3"],
        ["--batch-size", 3],
        ["--paper", "--epochs", 0],
        ["--paper", "--learning-rate", "nan"],
        ["--paper", "--learning-rate", -1],
        ["--layer", 99],
        ["--layer", -4],
        ["--seed", -1],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_settings_that_a_probe_cannot_have_are_refused(little, tmp_path, fails, wrong):
    fails(*probe_words(little), tmp_path / "x", *wrong)
    assert not (tmp_path / "x").exists()


# ---- the merge


def test_the_merged_folder_is_named_as_the_originals():
    assert (
        str(paper_merge("out", "bigscience/bloom-7b1", "runs/dpo/final_checkpoint")[0])
        == "out/bloom-7b1/lora_dpo_final_checkpoint"
    )
    assert str(
        paper_merge("out", "world", "a.b/adapter.v2")[0]
    ) == "out/world/lora_a.b_adapter" and paper_merge("o", "b", "p/a")[1:] == ("16bit", "float32")
    for wrong in (dict(dtype="float16"), dict(base="8bit")):
        with pytest.raises(InputError):
            paper_merge("o", "b", "p/a", **wrong)


def merged_by_hand(base_file, adapter, name: str) -> torch.Tensor:
    "The weight `name`.weight with the product of the adapter's two low-rank matrices added."
    from safetensors.torch import load_file

    lora = load_file(adapter / "adapter_model.safetensors")
    parts = name.removeprefix("model.")
    low = {k.rpartition("lora_")[2][0]: v for k, v in lora.items() if parts in k}
    said = read_json(adapter / "adapter_config.json")
    scale = said["lora_alpha"] / said["r"]
    return load_file(base_file)[f"{name}.weight"] + scale * low["B"] @ low["A"]


def test_merge_as_the_original_writes_there_in_float32(tmp_path, run):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    base, adapter, out = (tmp_path / name for name in ("base", "run/adapter", "out"))
    model, _ = tiny_model("llama", base)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(adapter)
    words = ("--base_model_name", base, "--lora_adapter", adapter, "--output_dir", out)
    run("merge", *words, "--paper")
    name = "model.layers.0.self_attn.q_proj"
    merged = load_file(out / "base/lora_run_adapter/model.safetensors")[f"{name}.weight"]
    assert merged.dtype == torch.float32
    expected = merged_by_hand(base / "model.safetensors", adapter, name)
    torch.testing.assert_close(merged, expected)


# ---- diversity


def released_diversity(lines, tokenizer, sample=25):
    """The released arithmetic: the mean of dist-1, 2, 3 over blocks of `sample` lines.

    Texts without any character are left out; ids are decoded one by one."""
    found = []
    for start in range(0, len(lines), sample):
        texts = [t for t in lines[start : start + sample] if t]
        if not texts:
            continue
        seen, total = [set(), set(), set()], 0
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            pieces = [tokenizer.decode(i, skip_special_tokens=True) for i in ids]
            pieces = [p for p in pieces if p]
            total += len(pieces)
            for n in (1, 2, 3):
                seen[n - 1] |= {"_".join(pieces[i : i + n]) for i in range(len(pieces) - n + 1)}
        found.append([len(s) / total for s in seen])
    return np.mean(found, 0)


def continuations(sizes) -> list[dict]:
    "So many texts for each prompt, some of them empty or blank."
    draw, words = (
        np.random.default_rng(len(sizes)),
        "the old man sees a red house la casa roja es grande",
    )
    pick = lambda: " ".join(draw.choice(words.split(), draw.integers(1, 9)))
    text = lambda k: "" if k % 9 == 4 else " " if k % 9 == 5 else pick()
    places = [(i, s) for i, size in enumerate(sizes) for s in range(size)]
    return [
        dict(prompt=f"p{i}", generated_text=text(i + s), prompt_id=str(i), sample=s)
        for i, s in places
    ]


def diversity_of(folder, words, **how) -> list[float]:
    "dist-1, 2, 3 of a folder of continuations."
    table = quality_table(folder, metrics=["diversity"], tokenizer=words, **how)
    return [table.loc[table.metric == f"dist_{n}", "value"].item() for n in (1, 2, 3)]


SIZES = [[25, 25, 25], [25, 7, 25, 25], [3, 4, 5], [26, 24, 30], [1], [60]]  # texts of each prompt


@pytest.mark.parametrize("sizes", SIZES)
def test_diversity_is_cut_in_blocks_of_25_lines(tmp_path, sizes):
    words, rows = tiny_tokenizer(), continuations(sizes)
    (tmp_path / "output-rtp_lx_en.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    expected = released_diversity([r["generated_text"] for r in rows], words)
    np.testing.assert_allclose(diversity_of(tmp_path, words, paper=True), expected, rtol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_diversity_without_paper_is_by_prompt_and_leaves_blanks_out(tmp_path, sizes):
    words, rows, texts = tiny_tokenizer(), continuations(sizes), {}
    (tmp_path / "output-rtp_lx_en.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for r in rows:
        if r["generated_text"].strip():
            texts.setdefault(r["prompt_id"], []).append(r["generated_text"])
    own = [released_diversity(lines, words, 10**6) for lines in texts.values()]
    np.testing.assert_allclose(diversity_of(tmp_path, words), np.mean(own, 0), rtol=1e-12)


def test_perplexity_that_is_no_number_is_counted_apart_from_blanks(tmp_path):
    model, words = tiny_model("gpt2")
    rows = [
        dict(prompt="the old", generated_text=t, prompt_id=str(i))
        for i, t in enumerate([" man", "", " house", "  "])
    ]
    (tmp_path / "output-rtp_lx_en.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    value = lambda: (
        quality_table(tmp_path, metrics=["perplexity"], lm=(model, words)).set_index("metric").value
    )
    fine = value()
    assert (
        fine["perplexity_blank"] == 0.5
        and fine["perplexity_not_finite"] == 0
        and np.isfinite(fine["perplexity"])
    )
    with torch.no_grad():
        model.transformer.wte.weight[words(" house")["input_ids"][-1]] = float(
            "nan"
        )  # every logit row of the head has one NaN
    broken = value()
    assert (
        broken["perplexity_blank"] == 0.5
        and broken["perplexity_not_finite"] == 1
        and np.isnan(broken["perplexity"])
        and np.isnan(broken["loss"])
    )


# ---- interventions


def test_intervene_writes_as_many_tokens_as_asked(little, tmp_path, run):
    run(
        "intervene",
        "--model",
        little / "m",
        "--neurons",
        little / "neurons.json",
        "--offset",
        1,
        "--prompt-file",
        little,
        "-l",
        "en",
        "--scorer",
        f"lexicon:{little / 'lexicon'}",
        "--no-control",
        "--max-tokens",
        3,
        "--output-dir",
        tmp_path / "o",
    )
    tokens = [
        json.loads(line)["tokens"]
        for path in tmp_path.glob("o/offset*/output*.json")
        for line in path.read_text().splitlines()
    ]
    assert len(tokens) == 8 and max(tokens) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        ["--offset", "nan"],
        ["--offset", "inf"],
        ["--offset", "1e300"],
        ["--n", 0],
        ["--n", 10**6],
        ["--temperature", "1e-300"],
        ["--temperature", "nan"],
        ["--max-tokens", 0],
        ["--max-tokens", 10**6],
        ["--max-tokens", 256],
    ],
)
def test_nonsense_is_refused_before_the_model_is_loaded(
    little, tmp_path, fails, monkeypatch, wrong
):
    import xgdetox.intervention as page

    monkeypatch.setattr(page, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    fails(
        "intervene",
        "--model",
        little / "m",
        "--neurons",
        little / "neurons.json",
        "--offset",
        1,
        "--prompt-file",
        little,
        "-l",
        "en",
        "--scorer",
        f"lexicon:{little / 'lexicon'}",
        *wrong,
        "--output-dir",
        tmp_path / "o",
    )
    assert not (tmp_path / "o").exists()
    with pytest.raises(InputError):
        check_offsets([float("nan")])
