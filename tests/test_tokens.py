"""Begin and end of a text, for tokenizers of every habit: ids written by hand, wherever a text becomes tokens.

The vocabulary: <s> 0, </s> 1, <pad> 2, <unk> 3, a 4, b 5, c 6, d 7."""

import sys
import json

import numpy as np
import pytest
import torch

from xgdetox.files import InputError
from xgdetox.generation import generate, read_generations
from xgdetox.sampling import prepare_prompts, stop_tokens
from xgdetox.anatomy import pooled_states
from xgdetox.tokens import bos_of, encode, last_tokens, token_ids
from xgdetox.training import encode_pair

VOCABULARY = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "a": 4, "b": 5, "c": 6, "d": 7}
ADDS = {
    "nothing": None,
    "bos": "<s> $A",
    "bos and eos": "<s> $A </s>",
    "eos": "$A </s>",
    "two bos": "<s> <s> $A",
    "two eos": "$A </s> </s>",
}


def tokenizer(adds: str = "nothing", bos="<s>", eos="</s>"):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if ADDS[adds]:
        words.post_processor = TemplateProcessing(
            single=ADDS[adds], special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        **{k: v for k, v in dict(bos_token=bos, eos_token=eos).items() if v},
    )


def small(**ends):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=16,
            n_layer=1,
            n_head=2,
            vocab_size=8,
            n_positions=16,
            **dict(bos_token_id=0, eos_token_id=1, pad_token_id=2) | ends,
        )
    ).eval()


# what the tokenizer adds, its own bos and eos -> ids of "a b" with bos: tokenizer, paper, none
EXPECTED = [
    ("nothing", "<s>", "</s>", [4, 5], [0, 4, 5], [4, 5]),
    ("bos", "<s>", "</s>", [0, 4, 5], [0, 4, 5], [4, 5]),
    ("bos and eos", "<s>", "</s>", [0, 4, 5], [0, 4, 5], [4, 5]),
    ("eos", "<s>", "</s>", [4, 5], [0, 4, 5], [4, 5]),
    ("two bos", "<s>", "</s>", [0, 4, 5], [0, 4, 5], [4, 5]),
    ("two eos", "<s>", "</s>", [4, 5], [0, 4, 5], [4, 5]),
    ("nothing", None, "</s>", [4, 5], [4, 5], [4, 5]),  # no begin-of-text token at all
    ("eos", None, "</s>", [4, 5], [4, 5], [4, 5]),  # like T5
    ("nothing", "</s>", "</s>", [4, 5], [1, 4, 5], [4, 5]),  # like GPT-2: one token for both
    ("eos", "</s>", "</s>", [4, 5], [1, 4, 5], [4, 5]),
    ("nothing", None, None, [4, 5], [4, 5], [4, 5]),
]


@pytest.mark.parametrize("adds, bos, eos, own, paper, none", EXPECTED)
def test_a_text_begins_as_asked_and_never_ends_with_an_end_token(adds, bos, eos, own, paper, none):
    words = tokenizer(adds, bos, eos)
    for how, wanted in dict(tokenizer=own, paper=paper, none=none).items():
        assert token_ids(words, "a b", how) == wanted and token_ids(words, ["a b", "c"], how) == [
            wanted,
            wanted[:-2] + [6],
        ]
        assert encode(words, ["a b", "c a b"], how)["input_ids"].tolist() == [
            [2] + wanted,
            wanted[:-2] + [6, 4, 5],
        ]  # padded on the left
        prompts, _ = prepare_prompts(words, ["1"], ["a b"], how)
        assert prompts[0].ids == wanted


@pytest.mark.parametrize("adds, bos, eos, own, paper, none", EXPECTED)
def test_a_training_pair_has_one_end_token_where_the_tokenizer_knows_one(
    adds, bos, eos, own, paper, none
):
    words, end = tokenizer(adds, bos, eos), [1] if eos else []
    for how, wanted in dict(tokenizer=own, paper=paper, none=none).items():
        assert encode_pair(words, "a b", " c", " d d", bos=how) == dict(
            prompt_ids=wanted, chosen_ids=[6] + end, rejected_ids=[7, 7] + end
        )


def test_tokens_that_a_text_spells_out_are_not_doubled():
    words = tokenizer("bos and eos")
    assert token_ids(words, "<s> a") == token_ids(words, "<s> a", "paper") == [0, 4] and token_ids(
        words, "<s> a", "none"
    ) == [4]
    assert encode_pair(words, "<s> a", " b </s>", " c </s> </s>") == dict(
        prompt_ids=[0, 4], chosen_ids=[5, 1], rejected_ids=[6, 1]
    )
    assert (
        token_ids(words, "") == [0]
        and token_ids(words, "", "none") == []
        and token_ids(tokenizer("eos"), "") == []
    )
    with pytest.raises(InputError, match="^bos: "):
        token_ids(words, "a", "always")


def test_a_text_that_is_cut_keeps_its_begin_token():
    words = tokenizer("bos and eos")
    assert (
        last_tokens(words, [0, 4, 5, 6], 2) == [0, 6]
        and last_tokens(words, [4, 5, 6], 2) == [5, 6]
        and last_tokens(words, [0, 4], 1) == [4]
    )
    assert prepare_prompts(words, ["1"], ["a b c d"], room=3)[0][0].ids == [0, 6, 7]
    assert encode(words, ["a b c d"], "paper", max_length=3, keep="end")["input_ids"].tolist() == [
        [0, 6, 7]
    ]
    pair = encode_pair(words, "a b c d", " a", " b", max_length=6, max_prompt_length=3)
    assert pair == dict(prompt_ids=[0, 6, 7], chosen_ids=[4, 1], rejected_ids=[5, 1])


@pytest.mark.parametrize("adds", ADDS)
def test_every_measure_reads_the_same_ids(adds, tmp_path):
    "Pooled states, activations, loss and mass do not depend on what a tokenizer adds, once `bos` is said."
    from xgdetox.probe import pooled_features
    from xgdetox.fluency import continuation_loss
    from xgdetox.mass import toxic_mass
    from xgdetox.value_vectors import all_activations

    model, plain, words = small(), tokenizer(), tokenizer(adds)

    def measured(t, how):
        return [
            pooled_states(model, t, ["a b"], how),
            pooled_features(model, t, ["a b"], bos=how),
            all_activations(model, t, ["a b"], 3, how),
            continuation_loss(model, t, ["a b"], [" c d"], how)[0],
            toxic_mass(model, t, ["a b"], ["c"], how),
        ]

    for how in ("paper", "none"):
        for one, other in zip(measured(plain, how), measured(words, how)):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    with torch.no_grad():
        states = model(torch.tensor([[0, 4, 5]]), output_hidden_states=True).hidden_states
    pooled = pooled_states(model, words, ["a b"], "paper", layers=[1])[:, 0]
    np.testing.assert_allclose(pooled, states[1].mean(1), rtol=1e-5)


def test_a_text_ends_at_the_union_of_all_end_tokens(tmp_path):
    from transformers import GenerationConfig

    words, model = tokenizer("bos and eos"), small(eos_token_id=6)
    model.generation_config = GenerationConfig(eos_token_id=[7, 6])
    assert stop_tokens(model, words) == [7, 6, 1] and stop_tokens(model) == [7, 6]
    model.save_pretrained(tmp_path)
    assert stop_tokens(tmp_path, words) == [7, 6, 1]
    (tmp_path / "generation_config.json").unlink()
    assert stop_tokens(tmp_path, words) == [6, 1] and stop_tokens(tmp_path) == [6]
    assert stop_tokens(small(eos_token_id=None), tokenizer(eos=None)) == []


def test_end_tokens_that_are_no_numbers_are_refused_before_a_file_is_begun(tmp_path):
    words = tokenizer("bos and eos")
    small(eos_token_id=6).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(InputError, match="no token id"):
        stop_tokens(tmp_path, words)
    (tmp_path / "RTP_LX_EN.json").write_text(json.dumps({"Prompt": "a b"}) + "\n")
    files, how = {"en": tmp_path / "RTP_LX_EN.json"}, dict(max_tokens=2, backend="transformers")
    with pytest.raises(InputError, match="no token id"):
        generate(str(tmp_path), files, tmp_path / "out", **how)
    begun = [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(("output", ".output"))]
    assert not begun


@pytest.mark.parametrize("end", [1, 6, 7])
def test_generate_stops_at_each_of_them(tmp_path, end):
    "A model that always writes one token: each of the three end tokens ends its text at once, another token never."
    from transformers import GenerationConfig

    model, words = small(eos_token_id=6), tokenizer("eos")
    model.generation_config = GenerationConfig(eos_token_id=[7])
    (tmp_path / "RTP_LX_EN.json").write_text(json.dumps({"Prompt": "a b"}) + "\n")

    def written(token, name):
        with torch.no_grad():
            model.transformer.ln_f.weight.zero_(), model.transformer.ln_f.bias.zero_()
            model.transformer.ln_f.bias[0] = 1
            model.transformer.wte.weight[:, 0] = torch.arange(8).eq(token).float() * 50
        files = generate(
            model,
            {"en": tmp_path / "RTP_LX_EN.json"},
            tmp_path / "out",
            name=name,
            n=2,
            max_tokens=3,
            tokenizer=words,
        )
        return read_generations(files["en"])[["tokens", "finish_reason"]].to_numpy().tolist()

    assert written(end, "ends") == [[0, "stop"]] * 2 and written(5, "goes") == [[3, "length"]] * 2


def test_a_model_says_how_it_was_trained(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(dict(bos="none")))
    assert bos_of(tmp_path) == "none" and bos_of(tmp_path, "paper") == "paper"


def stand_in_for_vllm(monkeypatch) -> dict:
    "What a module in vLLM's place was told, once it has answered with the tokens 4 and 7."
    from types import ModuleType, SimpleNamespace
    from unittest.mock import MagicMock

    told, fake = {}, ModuleType("vllm")
    answer = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[4, 7])])

    def generate(prompts, params, **rest):
        told.update(prompts=prompts, params=params)
        return [answer]

    fake.LLM = lambda **how: MagicMock(generate=generate)
    fake.SamplingParams = lambda **how: how
    fake.TokensPrompt = lambda prompt_token_ids: prompt_token_ids
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return told


def test_vllm_is_told_every_end_token_and_gets_our_ids(tmp_path, monkeypatch):
    "One BOS before the prompt, no EOS after it, and the union of the end tokens."
    from transformers import GenerationConfig
    from xgdetox.engines import vllm_engine

    told = stand_in_for_vllm(monkeypatch)
    model, words = small(eos_token_id=6), tokenizer("bos and eos")
    model.generation_config = GenerationConfig(eos_token_id=[7, 6])
    model.save_pretrained(tmp_path)
    prompts, _ = prepare_prompts(words, ["1"], ["a b"])
    settings = dict(n=1, temperature=0, top_p=1.0, max_tokens=3, seed=0)
    settings |= dict(dtype="float32", bos="tokenizer")
    with vllm_engine(str(tmp_path), words, settings) as run:
        (rows,) = run(prompts, "en", set())
    assert told["params"][0]["stop_token_ids"] == [7, 6, 1] and told["prompts"] == [[0, 4, 5]]
    assert (rows[0]["tokens"], rows[0]["finish_reason"]) == (1, "stop")
