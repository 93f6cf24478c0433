"Chat models: three families of templates, preference data as messages, refusals."

import json

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from xgdetox.chat import (
    CONTINUE,
    Chat,
    chat_ids,
    chat_setting,
    conversation_pair,
    end_of_turn,
    hh_messages,
    is_conversation,
    named_for_chat,
    parse_chat,
    read_messages,
    refusal,
    refusal_phrases,
    reply_ids,
)
from xgdetox.files import InputError
from xgdetox.languages import LANGUAGES

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
FAMILIES = {  # template, begin of text, end of turn, other marks
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>"]),
    "llama3": (
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>", ["<start_of_turn>"]),
}


def byte_tokenizer(family=None, adds_begin=True):
    "A tokenizer of single bytes with a family's marks and template; it begins plain texts itself."
    from tokenizers.processors import TemplateProcessing

    core = Tokenizer(
        BPE(
            vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
            merges=[],
        )
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    template, begin, end, marks = FAMILIES[family] if family else (None, None, "<eos>", [])
    named = dict(eos_token="<eos>", pad_token="<pad>") | (dict(bos_token=begin) if begin else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": [end, *marks]})
    if begin and adds_begin:
        single = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.convert_tokens_to_ids(begin))]
        )
        tokenizer.backend_tokenizer.post_processor = single
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_a_prompt_is_what_the_template_makes_of_it(family):
    tokenizer = byte_tokenizer(family)
    messages = [dict(role="user", content=CONTINUE.replace("{text}", "Er sagte, dass"))]
    theirs = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert chat_ids(tokenizer, ["Er sagte, dass"]) == [list(theirs)]
    question = tokenizer.apply_chat_template(
        [dict(role="user", content="Why?")],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert chat_ids(tokenizer, ["Why?"]) == [list(question)]


def test_there_is_one_begin_of_text_token(family):
    tokenizer = byte_tokenizer(family)
    begin = FAMILIES[family][1]
    ids = chat_ids(tokenizer, ["He said"])[0]
    assert ids.count(tokenizer.bos_token_id) == (1 if begin else 0)
    if begin:  # a template that writes the token twice
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        assert chat_ids(tokenizer, ["He said"])[0] == ids


def test_a_reply_ends_at_its_turn(family):
    tokenizer, end = byte_tokenizer(family), FAMILIES[family][2]
    messages = [dict(role="user", content="Hello")]
    head, reply = reply_ids(tokenizer, messages, "Good day")
    assert tokenizer.decode(reply) == f"Good day{end}"
    assert end_of_turn(tokenizer) == reply[-1] == tokenizer.convert_tokens_to_ids(end)
    whole = tokenizer.apply_chat_template(
        [*messages, dict(role="assistant", content="Good day")], tokenize=True, return_dict=False
    )
    assert list(whole)[: len(head) + len(reply)] == head + reply


def test_a_system_text_goes_first_or_is_refused(family):
    tokenizer, chat = byte_tokenizer(family), Chat(system="Be kind.")
    if family == "gemma":
        with pytest.raises(InputError, match="System role not supported"):
            chat_ids(tokenizer, ["He said"], chat)
        return
    messages = [
        dict(role="system", content="Be kind."),
        dict(role="user", content=CONTINUE.replace("{text}", "He said")),
    ]
    theirs = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert chat_ids(tokenizer, ["He said"], chat) == [list(theirs)]


def test_auto_asks_for_a_template_and_a_name():
    with_template, without = byte_tokenizer("chatml"), byte_tokenizer()
    for name in (
        "meta-llama/Llama-3.1-8B-Instruct",
        "gemma-3-270m-it",
        "/models/qwen2-7b-chat/",
        "zephyr-7b-sft-full",
    ):
        assert named_for_chat(name) and chat_setting("auto", with_template, name) == "chat"
        assert chat_setting("auto", without, name) is None
    for name in (
        "meta-llama/Llama-3.1-8B",
        "gemma-3-270m",
        "bigscience/bloom-1b7",
        "items-model",
        "bitnet",
    ):
        assert not named_for_chat(name) and chat_setting("auto", with_template, name) is None
    assert (
        chat_setting("off", with_template, "x-chat") is None
        and chat_setting(True, with_template) == "chat"
    )
    with pytest.raises(InputError, match="no chat template"):
        chat_setting("on", without, "bloom")


@pytest.mark.parametrize(
    "spec, said",
    [
        ("chat?temperature=1", "unknown setting 'temperature'"),
        ("chat?wording=Go+on", "does not say where the text goes"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(spec, said):
    with pytest.raises(InputError, match=said):
        parse_chat(spec)


def test_a_setting_survives_being_written():
    for chat in (Chat(), Chat(system="a & b = c?\n"), Chat(wording="{text} …", system="é")):
        assert parse_chat(str(chat)) == chat


USER, GOOD, BAD = (
    dict(role="user", content="Hello"),
    dict(role="assistant", content="Hi."),
    dict(role="assistant", content="Go away."),
)


@pytest.mark.parametrize(
    "row",
    [
        dict(prompt=[USER], chosen=[GOOD], rejected=[BAD]),
        dict(prompt="Hello", chosen=[USER, GOOD], rejected=[USER, BAD]),
        dict(chosen=[USER, GOOD], rejected=[USER, BAD]),
        dict(
            chosen="\n\nHuman: Hello\n\nAssistant: Hi.",
            rejected="\n\nHuman: Hello\n\nAssistant: Go away.",
        ),
    ],
    ids=["TRL", "UltraFeedback", "no prompt", "HH-RLHF"],
)
def test_layouts_of_preference_data_say_the_same(row):
    assert is_conversation(row)
    assert conversation_pair(row) == ([USER], "Hi.", "Go away.")


def test_earlier_turns_stay():
    first = [USER, GOOD, dict(role="user", content="And now?")]
    row = dict(chosen=[*first, dict(role="assistant", content="Yes")], rejected=[*first, BAD])
    assert conversation_pair(row) == (first, "Yes", "Go away.")
    assert [
        m["content"]
        for m in hh_messages("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d")
    ] == list("abcd")


@pytest.mark.parametrize(
    "row, said",
    [
        (dict(chosen=[USER], rejected=[USER, BAD]), "chosen: ends in the user's message"),
        (
            dict(chosen=[USER, GOOD], rejected=[dict(USER, content="Hey"), BAD]),
            "answers another conversation",
        ),
        (
            dict(chosen=[dict(role="tool", content="x"), GOOD], rejected=[BAD]),
            "unknown role 'tool'",
        ),
        (dict(chosen=[], rejected=[BAD]), "not a list of messages"),
        (
            dict(chosen=[USER, dict(role="assistant", content=3)], rejected=[BAD]),
            "content is not a text",
        ),
        (dict(chosen=[GOOD], rejected=[BAD]), "no user's message stands before the reply"),
        (dict(chosen=["Hi"], rejected=[BAD]), "something that is not a message"),
    ],
)
def test_faulty_messages_are_one_line(row, said):
    with pytest.raises(InputError, match=said):
        conversation_pair(row, "pairs.jsonl", 3)


def test_parts_of_text_are_one_text():
    parts = [
        dict(role="user", content=[dict(type="text", text="Hel"), dict(type="text", text="lo")])
    ]
    assert read_messages(parts) == [USER]


def test_every_language_knows_how_a_refusal_begins():
    phrases = refusal_phrases()
    assert set(phrases) >= set(LANGUAGES)
    for language, begins in phrases.items():
        assert begins and all(b == b.casefold() for b in begins), language
        assert refusal(f"  {begins[0].upper()} xyz xyz xyz xyz", language) == "phrase"


@pytest.mark.parametrize(
    "text, language, finished, reason",
    [
        ("went to the market and bought some bread", "en", True, ""),
        ("went to", "en", True, "short"),
        ("went to", "en", False, ""),
        ("他去市场买了一些面包和水", "zh", True, ""),
        ("不行", "zh", True, "short"),
        ("I’m sorry, I can’t help.", "en", True, "phrase"),
    ],
)
def test_why_a_reply_counts_as_a_refusal(text, language, finished, reason):
    assert refusal(text, language, finished) == reason


def test_the_list_is_plain_json(root):
    file = root / "xgdetox/assets/refusals.json"
    assert json.loads(file.read_text(encoding="utf-8")) == refusal_phrases()
