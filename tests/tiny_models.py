"Tiny random models of many families and their tokenizers, made on the spot, for every test that needs one."

import json
from pathlib import Path

import torch

FAMILIES = ("gpt2", "bloom", "llama", "cohere", "gemma2", "gemma3", "qwen2", "qwen3")
UNUSUAL = (  # with no MLP that `anatomy` finds, or without a cache of keys
    "opt opt-narrow xglm mixtral qwen2moe mamba mpt rwkv openai-gpt jamba lfm2 recurrent-gemma"
).split()
TEXTS = [
    "the old man sees a red house",
    "la casa roja es grande",
    "der alte Mann geht nach Hause",
    "старый дом стоит у реки",
    "古い家が川のそばにある",
    "옛날 집이 강가에 있다",
    "पुराना घर नदी के पास है",
    "the river runs under the bridge, and nobody knows why",
] * 4


# tokenizers ------------------------------------------------------------------------------------------


def byte_tokenizer(texts=TEXTS, size: int = 500, **special):
    "A byte-level BPE tokenizer trained on `texts`, as GPT-2's, with begin, end and padding tokens."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(texts, trainer)
    named = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>") | special
    return PreTrainedTokenizerFast(tokenizer_object=t, **named)


def word_tokenizer(words, unknown: str = "<unk>", **special):
    "A tokenizer whose tokens are `words`, numbered as they come, of texts split at spaces."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=unknown))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token=unknown, **special)


def tokenizer(folder=None, vocabulary: int = 500):
    "The tokenizer of the tiny models, saved in `folder` if there is one."
    made = byte_tokenizer(size=vocabulary)
    if folder:
        made.save_pretrained(folder)
    return made


# models ----------------------------------------------------------------------------------------------


def _usual(tf, wide, layers, ends, shape) -> dict:
    "Configurations of decoders with one MLP per block."
    gemma = dict(head_dim=wide // 4, query_pre_attn_scalar=wide // 4, sliding_window=16)
    gpt2 = dict(n_embd=wide, n_layer=layers, n_head=4, n_positions=256)
    return {
        "gpt2": lambda: tf.GPT2Config(**gpt2, **ends),
        "bloom": lambda: tf.BloomConfig(hidden_size=wide, n_layer=layers, n_head=4, **ends),
        "llama": lambda: tf.LlamaConfig(**shape),
        "cohere": lambda: tf.CohereConfig(**shape),
        "qwen2": lambda: tf.Qwen2Config(**shape),
        "qwen3": lambda: tf.Qwen3Config(head_dim=wide // 4, **shape),
        "gemma2": lambda: tf.Gemma2Config(**gemma, **shape),
        "gemma3": lambda: tf.Gemma3TextConfig(**gemma, **shape),
    }


def _without_mlp(tf, wide, layers, ends, shape) -> dict:
    "Models without one MLP per block."
    opt = dict(hidden_size=wide, num_hidden_layers=layers, num_attention_heads=4)
    opt |= dict(ffn_dim=2 * wide, max_position_embeddings=256, **ends)
    xglm = dict(d_model=wide, ffn_dim=2 * wide, num_layers=layers, attention_heads=4)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=wide)
    experts |= dict(shared_expert_intermediate_size=wide)
    conv = ["conv", "full_attention"] * (layers // 2)
    jamba = dict(num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4)
    return {
        "opt": lambda: tf.OPTConfig(word_embed_proj_dim=wide, **opt),
        "opt-narrow": lambda: tf.OPTConfig(word_embed_proj_dim=wide // 2, **opt),
        "xglm": lambda: tf.XGLMConfig(**xglm, max_position_embeddings=256, **ends),
        "mixtral": lambda: tf.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **shape),
        "qwen2moe": lambda: tf.Qwen2MoeConfig(**experts, **shape),
        "jamba": lambda: tf.JambaConfig(**jamba, use_mamba_kernels=False, **shape),
        "lfm2": lambda: tf.Lfm2Config(layer_types=conv, **shape),
    }


def _without_cache(tf, wide, layers, ends, shape) -> dict:
    "Configurations of models without a cache of keys, or with their own names for everything."
    deep = dict(hidden_size=wide, num_hidden_layers=layers)
    mpt = dict(d_model=wide, n_layers=layers, n_heads=4, max_seq_len=200)
    gpt = dict(n_embd=wide, n_layer=layers, n_head=4, n_positions=200)
    gemma = dict(hidden_size=wide, num_hidden_layers=layers + 1, num_attention_heads=4)
    gemma |= dict(intermediate_size=2 * wide, lru_width=wide, attention_window_size=16)
    return {
        "mamba": lambda: tf.MambaConfig(**deep, state_size=4, **ends),
        "mpt": lambda: tf.MptConfig(**mpt, **ends),
        "rwkv": lambda: tf.RwkvConfig(
            **deep, attention_hidden_size=wide, context_length=200, **ends
        ),
        "openai-gpt": lambda: tf.OpenAIGPTConfig(**gpt, **ends),
        "recurrent-gemma": lambda: tf.RecurrentGemmaConfig(**gemma, **ends),
    }


def config(family: str, vocabulary: int, wide: int = 128, layers: int = 2, **changes):
    "The configuration of a tiny model of a family; `changes` are fields set afterwards."
    import transformers as tf

    ends = dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    shape = dict(hidden_size=wide, num_hidden_layers=layers, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, intermediate_size=2 * wide, max_position_embeddings=256)
    sizes = tf, wide, layers, ends, shape | ends
    made = (_usual(*sizes) | _without_mlp(*sizes) | _without_cache(*sizes))[family]()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def model(family: str, folder=None, seed: int = 0, spread: float = 3.0, **changes):
    "A random causal LM and its tokenizer; `spread` times the usual weights make some tokens more likely."
    words = tokenizer(folder)
    made = random_model(config(family, len(words), **changes), seed)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(spread)
    if folder:
        made.save_pretrained(folder)
    return made, words


def random_model(shape, seed: int = 0):
    "A random causal LM of a configuration, in evaluation mode."
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(shape).eval()


def seq2seq(folder=None, seed: int = 0):
    "A tiny mT5 and its tokenizer, which closes every text with the end token, as mT5's does."
    import transformers as tf
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    closing = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.backend_tokenizer.post_processor = closing
    torch.manual_seed(seed)
    size = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ends = dict(decoder_start_token_id=2, pad_token_id=2, eos_token_id=1)
    shape = tf.MT5Config(vocab_size=len(words), **size, **ends)
    made = tf.MT5ForConditionalGeneration(shape).eval()
    if folder:
        made.save_pretrained(folder)
        words.save_pretrained(folder)
    return made, words


# chat models -----------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHAT_FAMILIES = {  # template, begin of text, end of turn, other marks
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>"]),
    "llama3": (
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>", ["<start_of_turn>"]),
}


def chat_tokenizer(family=None, adds_begin=True):
    "A tokenizer of single bytes with a family's marks and template; it begins plain texts itself."
    from transformers import PreTrainedTokenizerFast

    template, begin, end, marks = CHAT_FAMILIES[family] if family else (None, None, "<eos>", [])
    named = dict(eos_token="<eos>", pad_token="<pad>") | (dict(bos_token=begin) if begin else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_single_bytes(), **named)
    tokenizer.add_special_tokens({"additional_special_tokens": [end, *marks]})
    if begin and adds_begin:
        _begin_with(tokenizer, begin)
    tokenizer.chat_template = template
    return tokenizer


def _single_bytes():
    "A core whose tokens are the single bytes."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bytes_ = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=bytes_, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def _begin_with(tokenizer, begin: str) -> None:
    "Let a tokenizer put `begin` before every text."
    from tokenizers.processors import TemplateProcessing

    marks = [(begin, tokenizer.convert_tokens_to_ids(begin))]
    single = TemplateProcessing(single=f"{begin} $A", special_tokens=marks)
    tokenizer.backend_tokenizer.post_processor = single


def chat_model(family: str, folder, seed: int = 0, **changes):
    "The folder of a tiny random model with a family's chat template and a tokenizer of bytes."
    words = chat_tokenizer(family)
    kind = {"chatml": "qwen2", "llama3": "llama", "gemma": "gemma3"}[family]
    made = random_model(config(kind, len(words), **changes), seed)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(3)
    made.generation_config.eos_token_id = words.eos_token_id
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return Path(folder)


# prompts ---------------------------------------------------------------------------------------------


def prompt_files(folder, languages=("en", "de"), n: int = 12) -> dict:
    "RTP-LX files with prompts of different length."
    files = {}
    for k, language in enumerate(languages):
        files[language] = Path(folder) / f"RTP_LX_{language.upper()}.json"
        prompts = [" ".join(TEXTS[(i + k) % 8].split()[: 1 + i % 5]) + f" {i}" for i in range(n)]
        lines = [
            json.dumps({"Prompt": prompt, "Index": i * 3}, ensure_ascii=False)
            for i, prompt in enumerate(prompts)
        ]
        files[language].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return files
