"Every listed architecture, tiny and random: the parts, padding, hooks in forward and in generate."

import pytest
import torch
import transformers as tr

from xgdetox.files import InputError
from xgdetox.anatomy import Anatomy, anatomy, neuron_hooks, pooled_states, value_vector_matrix
from xgdetox.models import load_model
from xgdetox.tokens import encode, length_batches, load_tokenizer
import tiny_models

D, L, V = 32, 3, 101
GATED = dict(
    hidden_size=D,
    intermediate_size=56,
    num_hidden_layers=L,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=V,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=0,
)
CONFIGS = {
    "gpt2": lambda: tr.GPT2Config(
        n_embd=D, n_layer=L, n_head=4, vocab_size=V, n_positions=128, bos_token_id=0, eos_token_id=1
    ),
    "bloom": lambda: tr.BloomConfig(
        hidden_size=D, n_layer=L, n_head=4, vocab_size=V, bos_token_id=0, eos_token_id=1
    ),
    "llama": lambda: tr.LlamaConfig(**GATED),
    "cohere": lambda: tr.CohereConfig(**GATED),
    "qwen2": lambda: tr.Qwen2Config(**GATED),
    "qwen3": lambda: tr.Qwen3Config(**GATED, head_dim=16),
    "gemma2": lambda: tr.Gemma2Config(**GATED, head_dim=16, sliding_window=8),
    "gemma3": lambda: tr.Gemma3TextConfig(**GATED, head_dim=16, sliding_window=8),
    "mistral": lambda: tr.MistralConfig(**GATED, sliding_window=8),
}
FAMILIES = list(CONFIGS)


def tiny(family):
    torch.manual_seed(0)
    model = tr.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    for p in model.parameters():  # random biases and norms too, so that a forgotten one shows
        if p.dim() == 1:
            torch.nn.init.normal_(p, 1.0, 0.1)
    model.generation_config.eos_token_id = None
    return model


class Words:
    "A tokenizer of numbers."

    pad_token_id, bos_token_id = 0, 0

    def __call__(self, text):
        return {
            "input_ids": [int(w) for w in text.split()]
            if isinstance(text, str)
            else [self(t)["input_ids"] for t in text]
        }


TEXTS = ["5 6 7 8 9 10 11 12 13 14 15 16", "20 21 22", "33"]
NEURONS = [(2, 17), (0, 3), (2, 1), (1, 50)]


@pytest.mark.parametrize("family", FAMILIES)
def test_parts(family):
    model = tiny(family)
    parts = anatomy(model)
    assert (parts.n_layers, parts.d_model, len(parts.out_projections)) == (L, D, L)
    assert parts.unembedding is model.get_output_embeddings()
    a = torch.randn(5, parts.n_neurons)
    bias = getattr(parts.out_projections[1], "bias", None)
    out = a @ value_vector_matrix(model, 1) + (0 if bias is None else bias)
    assert torch.allclose(parts.out_projections[1](a), out, atol=1e-5)
    ids = torch.randint(2, V, (1, 6))
    states = model.base_model(ids, output_hidden_states=True)
    assert torch.equal(
        states.hidden_states[-1], states.last_hidden_state
    )  # post final norm everywhere
    seen = []
    handle = parts.final_norm.register_forward_hook(lambda m, a, o: seen.append(o))
    model.base_model(ids)
    handle.remove()
    assert torch.equal(seen[0], states.last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_left_padding_is_no_padding(family):
    model = tiny(family)
    with neuron_hooks(model, read=NEURONS) as together:
        logits = model(**encode(Words(), TEXTS)).logits[:, -1]
    for i, text in enumerate(TEXTS):
        with neuron_hooks(model, read=NEURONS) as alone:
            single = model(**encode(Words(), [text])).logits[0, -1]
        assert torch.allclose(logits[i], single, atol=1e-5)
        assert torch.allclose(together.values()[0, i], alone.values()[0, 0], atol=1e-5)
    pooled = pooled_states(model, Words(), TEXTS)
    for i, text in enumerate(TEXTS):
        assert abs(pooled[i] - pooled_states(model, Words(), [text])[0]).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_generate_with_hooks_is_forward_with_hooks(family):
    model, new, batch = tiny(family), 6, encode(Words(), TEXTS)
    text = {k: batch[k] for k in ("input_ids", "attention_mask")}
    greedy = dict(max_new_tokens=new, do_sample=False, pad_token_id=0)
    wanted = dict(output_logits=True, return_dict_in_generate=True)
    add = [(2, 17, 1.5), (0, 3, -2.0), (2, 17, 0.5)]
    with neuron_hooks(model, read=NEURONS, add=add) as cached:
        out = model.generate(**text, **greedy, **wanted)
    assert cached.values().shape == (new, len(TEXTS), len(NEURONS))
    for i, prompt in enumerate(TEXTS):
        ids = torch.tensor([int(w) for w in prompt.split()])
        tokens = torch.cat([ids, out.sequences[i, -new:]])[None]
        with neuron_hooks(model, read=NEURONS, add=add, reduce=lambda a: a) as whole:
            logits = model(tokens).logits[0]
        at = slice(len(ids) - 1, len(ids) - 1 + new)  # last prompt token ... last but one new token
        assert torch.allclose(cached.values()[:, i], whole.values()[0, 0, at], atol=1e-5)
        assert torch.allclose(torch.stack(out.logits)[:, i], logits[at], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_offsets(family):
    model, parts, batch = tiny(family), anatomy(tiny(family)), encode(Words(), TEXTS)
    plain = model(**batch).logits
    with neuron_hooks(model, add=[(l, n, 0.0) for l, n in NEURONS]):
        assert torch.equal(model(**batch).logits, plain)
    with neuron_hooks(model, add=[(1, 5, 2.0), (1, 5, 1.0)]):
        twice = model(**batch).logits
    with neuron_hooks(model, add=[(1, 5, 3.0)]):
        once = model(**batch).logits
    assert torch.allclose(twice, once, atol=1e-5) and not torch.allclose(once, plain, atol=1e-4)
    assert torch.equal(model(**batch).logits, plain)  # the hooks are gone
    with neuron_hooks(model, read="all", reduce=lambda a: a) as seen:
        model(**batch)
    layers = seen.values()[0].unflatten(-1, (L, parts.n_neurons))  # batch, position, layer, neuron
    put = {l: (None, layers[:, :, l]) for l in range(L)}
    with neuron_hooks(model, put=put):
        assert torch.allclose(model(**batch).logits, plain, atol=1e-6)


@pytest.fixture
def spread(tmp_path):
    "A function that gives a tiny model with its blocks in memory and on disk, to come block by block."
    accelerate = pytest.importorskip("accelerate")

    def make(family):
        model = tiny(family)
        paths = anatomy(model).paths
        stack = paths["blocks"]
        held = [n for n, m in model.named_modules() if m is not model and has_numbers(m)]
        device = {n: "cpu" for n in held if not n.startswith(stack + ".")}
        device |= {f"{stack}.{l}": ("disk", "cpu", "disk")[l] for l in range(L)}
        device |= {paths["final_norm"]: "disk"}
        options = dict(main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
        accelerate.dispatch_model(model, device_map=device, **options)
        assert anatomy(model).paths == paths and is_offloaded(model)
        return model

    return make


def has_numbers(module) -> bool:
    return bool(list(module.parameters(False)) or list(module.buffers(False)))


def is_offloaded(model) -> bool:
    return anatomy(model).out_projections[0].weight.is_meta


@pytest.mark.parametrize("total", (False, True))
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_hooks_on_a_model_that_is_spread_over_devices(family, total, spread):
    "Readings and offsets are those of the plain model, in `generate` and in a forward pass."
    batch, seen = encode(Words(), TEXTS), []
    text = {k: batch[k] for k in ("input_ids", "attention_mask")}
    options = dict(read=NEURONS, add=[(1, 5, 2.0), (2, 17, -1.0)], total=total)
    for model in (tiny(family), spread(family)):
        with neuron_hooks(model, **options) as read:
            ids = model.generate(**text, max_new_tokens=4, do_sample=False)
            seen.append((ids, read.values(), model(**batch).logits))
    assert torch.equal(seen[0][0], seen[1][0])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(seen[0][1:], seen[1][1:]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_parts_of_a_model_that_is_spread_over_devices(family, spread):
    "All activations, value vectors and pooled states are those of the plain model; weights go away again."
    both, everything = (tiny(family), spread(family)), []
    for model in both:
        with neuron_hooks(model, read="all", reduce=lambda a: a) as read:
            model(**encode(Words(), TEXTS))
        everything.append(read.values())
    assert torch.allclose(*everything, atol=1e-5)
    for l in range(L):
        assert torch.equal(*(value_vector_matrix(model, l) for model in both))
    assert is_offloaded(both[1])
    states = [torch.as_tensor(pooled_states(model, Words(), TEXTS)) for model in both]
    assert torch.allclose(*states, atol=1e-5)


def test_hooks_leave_nothing_behind_after_an_error():
    model = tiny("llama")
    with pytest.raises(ZeroDivisionError):
        with neuron_hooks(model, read=NEURONS, add=[(0, 0, 1.0)]):
            1 / 0
    with pytest.raises(InputError, match="layer 9"):
        with neuron_hooks(model, add=[(0, 0, 1.0), (9, 0, 1.0)]):
            pass
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_clear_errors(tmp_path):
    opt = tr.AutoModelForCausalLM.from_config(
        tr.OPTConfig(
            hidden_size=D,
            ffn_dim=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=V,
            word_embed_proj_dim=D,
        )
    )
    with pytest.raises(InputError, match="out_projection.*fc2"):
        anatomy(opt)
    assert isinstance(anatomy(opt, out_projection="fc2"), Anatomy)
    with pytest.raises(InputError, match="config.json"):
        load_model(tmp_path)
    tiny("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no-such"):
        load_model(tmp_path / "no-such")
    with pytest.raises(InputError, match="no tokens"):
        encode(Words(), ["5", ""])
    with pytest.raises(InputError, match="neuron 9999"):
        with neuron_hooks(opt, read=[(0, 9999)], parts=anatomy(opt, out_projection="fc2")):
            pass
    with pytest.raises(InputError, match="never called"):
        with neuron_hooks(tiny("gpt2"), read=[(0, 1)]) as seen:
            pass
        seen.values()


def test_length_batches():
    lengths = [5, 1, 9, 3, 30, 2]
    batches = length_batches(lengths, max_tokens=10, max_rows=2)
    assert sorted(i for b in batches for i in b) == list(range(6))
    assert all(
        len(b) <= 2 and (len(b) * max(lengths[i] for i in b) <= 10 or len(b) == 1) for b in batches
    )


def test_bos():
    class Tokenizer(Words):
        bos_token_id = 7

    assert encode(Tokenizer(), ["3"], bos="paper")["input_ids"].tolist() == [[7, 3]]
    assert encode(Tokenizer(), ["7 3"], bos="paper")["input_ids"].tolist() == [[7, 3]]
    assert encode(Tokenizer(), ["3"])["input_ids"].tolist() == [[3]]
    with pytest.raises(InputError):
        encode(Tokenizer(), ["3"], bos="other")


def test_an_architecture_is_one_row(tmp_path, monkeypatch):
    "With its row, hooks and the steps on neurons work as for a model whose parts are found."
    from xgdetox.anatomy import ARCHITECTURES
    from xgdetox.models import stages_without

    model, words = tiny_models.model("opt", tmp_path)
    assert "intervene" in stages_without(tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "opt", dict(out_projection="fc2"))
    assert stages_without(tmp_path) == {} and anatomy(model).n_neurons == 256
    with neuron_hooks(model, read=[(1, 3)]) as read, torch.inference_mode():
        model(**encode(words, ["a house"]))
    assert read.values().shape == (1, 1, 1)
    monkeypatch.setitem(ARCHITECTURES, "opt", dict(out_projection="nowhere"))
    assert "has no part 'nowhere'" in stages_without(tmp_path)["intervene"]
