"Tiny random models of eight families and a tiny tokenizer, made on the spot."

from pathlib import Path

import torch

FAMILIES = ("gpt2", "bloom", "llama", "cohere", "gemma2", "gemma3", "qwen2", "qwen3")
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


def tokenizer(folder=None, vocabulary: int = 500):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    t.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=t, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if folder:
        fast.save_pretrained(folder)
    return fast


UNUSUAL = (
    "opt",
    "opt-narrow",
    "xglm",
    "mixtral",
    "qwen2moe",
    "mamba",
    "mpt",
    "rwkv",
    "openai-gpt",
    "jamba",
    "lfm2",
    "recurrent-gemma",
)  # with no MLP that `anatomy` finds, or without a cache of keys


def unusual(wide, layers, ends, shape) -> dict:
    import transformers as tf

    opt = dict(
        hidden_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=4,
        ffn_dim=2 * wide,
        max_position_embeddings=256,
        **ends,
    )
    return {
        "opt": lambda: tf.OPTConfig(word_embed_proj_dim=wide, **opt),
        "opt-narrow": lambda: tf.OPTConfig(word_embed_proj_dim=wide // 2, **opt),
        "xglm": lambda: tf.XGLMConfig(
            d_model=wide,
            ffn_dim=2 * wide,
            num_layers=layers,
            attention_heads=4,
            max_position_embeddings=256,
            **ends,
        ),
        "mixtral": lambda: tf.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **shape),
        "qwen2moe": lambda: tf.Qwen2MoeConfig(
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=wide,
            shared_expert_intermediate_size=wide,
            **shape,
        ),
        "mamba": lambda: tf.MambaConfig(
            hidden_size=wide, num_hidden_layers=layers, state_size=4, **ends
        ),
        "mpt": lambda: tf.MptConfig(
            d_model=wide, n_layers=layers, n_heads=4, max_seq_len=200, **ends
        ),
        "rwkv": lambda: tf.RwkvConfig(
            hidden_size=wide,
            num_hidden_layers=layers,
            attention_hidden_size=wide,
            context_length=200,
            **ends,
        ),
        "openai-gpt": lambda: tf.OpenAIGPTConfig(
            n_embd=wide, n_layer=layers, n_head=4, n_positions=200, **ends
        ),
        "jamba": lambda: tf.JambaConfig(
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=4,
            use_mamba_kernels=False,
            **shape,
        ),
        "lfm2": lambda: tf.Lfm2Config(
            layer_types=["conv", "full_attention"] * (layers // 2), **shape
        ),
        "recurrent-gemma": lambda: tf.RecurrentGemmaConfig(
            hidden_size=wide,
            num_hidden_layers=layers + 1,
            num_attention_heads=4,
            intermediate_size=2 * wide,
            lru_width=wide,
            attention_window_size=16,
            **ends,
        ),
    }


def config(family: str, vocabulary: int, wide: int = 128, layers: int = 2, **changes):
    import transformers as tf

    ends = dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    shape = dict(
        hidden_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * wide,
        max_position_embeddings=256,
        **ends,
    )
    made = {
        "gpt2": lambda: tf.GPT2Config(
            n_embd=wide, n_layer=layers, n_head=4, n_positions=256, **ends
        ),
        "bloom": lambda: tf.BloomConfig(hidden_size=wide, n_layer=layers, n_head=4, **ends),
        "llama": lambda: tf.LlamaConfig(**shape),
        "cohere": lambda: tf.CohereConfig(**shape),
        "qwen2": lambda: tf.Qwen2Config(**shape),
        "qwen3": lambda: tf.Qwen3Config(head_dim=wide // 4, **shape),
        "gemma2": lambda: tf.Gemma2Config(
            head_dim=wide // 4, query_pre_attn_scalar=wide // 4, sliding_window=16, **shape
        ),
        "gemma3": lambda: tf.Gemma3TextConfig(
            head_dim=wide // 4, query_pre_attn_scalar=wide // 4, sliding_window=16, **shape
        ),
        **unusual(wide, layers, ends, shape),
    }[family]()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def model(family: str, folder=None, seed: int = 0, spread: float = 3.0, **changes):
    "A random causal LM whose next tokens are far from equally likely (`spread` times the usual initial weights)."
    from transformers import AutoModelForCausalLM

    words = tokenizer(folder)
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(family, len(words), **changes)).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim > 1:
                p.mul_(spread)
    if folder:
        made.save_pretrained(folder)
    return made, words


def seq2seq(folder=None, seed: int = 0):
    "A tiny mT5 and its tokenizer, which closes every text with the end token, as mT5's does."
    import transformers as tf
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    torch.manual_seed(seed)
    made = tf.MT5ForConditionalGeneration(
        tf.MT5Config(
            vocab_size=len(words),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=2,
            pad_token_id=2,
            eos_token_id=1,
        )
    ).eval()
    if folder:
        made.save_pretrained(folder)
        words.save_pretrained(folder)
    return made, words


def prompt_files(folder, languages=("en", "de"), n: int = 12) -> dict:
    "RTP-LX files with prompts of different length."
    import json

    files = {}
    for k, language in enumerate(languages):
        files[language] = Path(folder) / f"RTP_LX_{language.upper()}.json"
        lines = [
            {"Prompt": " ".join(TEXTS[(i + k) % 8].split()[: 1 + i % 5]) + f" {i}", "Index": i * 3}
            for i in range(n)
        ]
        files[language].write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    return files
