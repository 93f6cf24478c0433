"Chat models: three families of templates, preference data as messages, refusals."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import CHAT_FAMILIES, chat_model as tiny_chat_model, chat_tokenizer, prompt_files

from xgdetox.anatomy import pooled_states
from xgdetox.chat import (
    CONTINUE,
    Chat,
    chat_ids,
    chat_setting,
    conversation_pair,
    end_of_turn,
    hh_messages,
    named_for_chat,
    parse_chat,
    read_messages,
    refusal,
    refusal_phrases,
    reply_ids,
)
from xgdetox.data import load_pairs
from xgdetox.files import InputError
from xgdetox.languages import LANGUAGES
from xgdetox.mass import toxic_mass
from xgdetox.models import load_model
from xgdetox.sampling import prepare_prompts, stop_tokens
from xgdetox.tokens import load_tokenizer, token_ids
from xgdetox.training import encode_pair


@pytest.fixture(params=CHAT_FAMILIES)
def family(request):
    return request.param


def test_a_prompt_is_what_the_template_makes_of_it(family):
    tokenizer = chat_tokenizer(family)
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
    tokenizer = chat_tokenizer(family)
    begin = CHAT_FAMILIES[family][1]
    ids = chat_ids(tokenizer, ["He said"])[0]
    assert ids.count(tokenizer.bos_token_id) == (1 if begin else 0)
    if begin:  # a template that writes the token twice
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        assert chat_ids(tokenizer, ["He said"])[0] == ids


def test_a_reply_ends_at_its_turn(family):
    tokenizer, end = chat_tokenizer(family), CHAT_FAMILIES[family][2]
    messages = [dict(role="user", content="Hello")]
    head, reply = reply_ids(tokenizer, messages, "Good day")
    assert tokenizer.decode(reply) == f"Good day{end}"
    assert end_of_turn(tokenizer) == reply[-1] == tokenizer.convert_tokens_to_ids(end)
    whole = tokenizer.apply_chat_template(
        [*messages, dict(role="assistant", content="Good day")], tokenize=True, return_dict=False
    )
    assert list(whole)[: len(head) + len(reply)] == head + reply


def test_a_system_text_goes_first_or_is_refused(family):
    tokenizer, chat = chat_tokenizer(family), Chat(system="Be kind.")
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
    with_template, without = chat_tokenizer("chatml"), chat_tokenizer()
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
    assert conversation_pair(row) == ([USER], "Hi.", "Go away.")


@pytest.mark.parametrize("prompt", ["Hello", [dict(role="user", content="Hello")], None])
def test_a_prompt_that_the_sides_repeat_after_a_system_text_is_said_once(prompt):
    first = [dict(role="system", content="Be kind."), USER]
    row = dict(prompt=prompt, chosen=[*first, GOOD], rejected=[*first, BAD])
    assert conversation_pair(row) == (first, "Hi.", "Go away.")


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


@pytest.mark.parametrize(
    "row, side",
    [
        (dict(prompt=[USER], chosen=None, rejected=[BAD]), "chosen"),
        (dict(prompt=[USER], chosen="Hi.", rejected="Go away."), "chosen"),
        (dict(prompt=[USER], chosen=[GOOD]), "rejected"),
        (dict(prompt="Hello", chosen="Hi.", rejected=[BAD]), "chosen"),
    ],
)
def test_the_side_that_is_no_list_is_named(tmp_path, row, side):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(InputError, match=f"pairs.jsonl:1: {side}: is not a list of messages"):
        load_pairs(file)


MIXED = dict(prompt="Hello", chosen="Hi.", rejected=[BAD])
LISTS = dict(prompt=[USER], chosen=[GOOD], rejected=[BAD])


@pytest.mark.parametrize(
    "row, words, fault",
    [
        (MIXED, (), "pairs.jsonl:1: chosen: is not a list of messages, and rejected is one; write"),
        (LISTS, (), "pairs.jsonl:1: prompt: is a conversation; add --chat"),
        (LISTS, ("--labels", "shuffled"), "pairs.jsonl:1: prompt: is a conversation; add --chat"),
        (LISTS, ("--chat",), "the tokenizer has no chat template"),
        (dict(question="a", yes="b", no="c"), (), "chosen: is missing; the row has question, yes"),
    ],
)
def test_train_says_which_file_and_line_it_cannot_read(fails, tmp_path, row, words, fault):
    file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    file.write_text(f"{json.dumps(row)}\n" * 4)
    told = fails("train", "--model", "world", "--pairs", file, "--output-dir", out, *words)
    assert fault in told and "did you mean" not in told
    assert not out.exists()


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


# The whole way: a tiny chat model of each family, read and tuned in its own template.


@pytest.fixture
def chat_model(family, tmp_path):
    "The folder of a tiny random model with a family's template, and its tokenizer."
    folder = tiny_chat_model(family, tmp_path / f"{family}-tiny-instruct")
    return folder, load_tokenizer(folder)


def rendered(tokenizer, text):
    "What the tokenizer itself makes of a prompt to continue."
    messages = [dict(role="user", content=CONTINUE.replace("{text}", text))]
    return list(
        tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    )


def test_every_reader_reads_the_template(chat_model):
    folder, tokenizer = chat_model
    text = "the old man"
    assert token_ids(tokenizer, [text], "chat") == [rendered(tokenizer, text)]
    prompts, remarks = prepare_prompts(tokenizer, ["0"], [text], "chat")
    assert prompts[0].ids == rendered(tokenizer, text) and prompts[0].text == text and not remarks
    model = load_model(folder)
    states = pooled_states(model, tokenizer, [text], "chat", layers=[1])
    with torch.no_grad():
        ids = torch.tensor([rendered(tokenizer, text)])
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0].mean(0)
    assert np.allclose(states[0, 0], hidden, atol=1e-4)


def test_mass_is_read_where_the_reply_begins(chat_model):
    folder, tokenizer = chat_model
    model = load_model(folder)
    mass = toxic_mass(model, tokenizer, ["the old man"], ["q"], "chat")[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rendered(tokenizer, "the old man")])).logits[0, -1]
    token = tokenizer("q", add_special_tokens=False)["input_ids"]
    assert len(token) == 1 and mass == pytest.approx(logits.softmax(-1)[token[0]].item(), rel=1e-4)


def test_generation_stops_at_the_end_of_the_turn(chat_model, family):
    folder, tokenizer = chat_model
    end = tokenizer.convert_tokens_to_ids(CHAT_FAMILIES[family][2])
    assert end in stop_tokens(str(folder), tokenizer, "chat")
    assert end not in stop_tokens(str(folder), tokenizer)


def test_a_long_prompt_is_cut_inside_its_template(chat_model):
    _, tokenizer = chat_model
    long, room = "x" * 300 + " the end", 200
    prompts, remarks = prepare_prompts(tokenizer, ["0"], [long], "chat", room)
    ids, text = prompts[0].ids, tokenizer.decode(prompts[0].ids)
    whole = rendered(tokenizer, long)
    assert len(ids) <= room and "cut to the last" in remarks[0]["reason"]
    assert " the end" in text and ids[:5] == whole[:5] and ids[-5:] == whole[-5:]
    with pytest.raises(InputError, match="leaves no room"):
        prepare_prompts(tokenizer, ["0"], [long], "chat", 20)


def test_pairs_are_trained_on_in_the_template(chat_model, tmp_path):
    _, tokenizer = chat_model
    pair = encode_pair(tokenizer, "the old man", " sat down", " fell", "chat", max_length=1000)
    assert pair["prompt_ids"] == rendered(tokenizer, "the old man")
    assert tokenizer.decode(pair["chosen_ids"][:-1]) == "sat down"
    assert pair["chosen_ids"][-1] == pair["rejected_ids"][-1] == end_of_turn(tokenizer)
    assert encode_pair(tokenizer, "the old man", " sat", " fell", "chat", max_length=20) is None


@pytest.mark.parametrize(
    "words, fault",
    [
        (("generate", "--model", "world", "--chat", "maybe"), "--chat: is 'maybe'; write --chat"),
        (("generate", "--system", "--model", "world"), "--system: has no value"),
        (("score", "--generations", "texts", "--chat"), "No such option: --chat (or --bos)"),
    ],
)
def test_flags_that_cannot_be_are_one_line(fails, tmp_path, words, fault):
    assert fault in fails(*words, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_message_lists_are_preference_data(tmp_path, ending):
    first = [USER, GOOD, dict(role="user", content="And now?")]
    rows = [
        dict(chosen=[*first, dict(role="assistant", content="Yes")], rejected=[*first, BAD])
    ] * 2
    file = tmp_path / f"pairs.{ending}"
    if ending == "parquet":
        pd.DataFrame(rows).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    loaded = load_pairs(file).rows
    assert json.loads(loaded["prompt"][0]) == first and loaded["chosen"][0] == "Yes"
    tokenizer = chat_tokenizer("chatml")
    pair = encode_pair(tokenizer, loaded["prompt"][0], "Yes", "Go away.", "chat", max_length=1000)
    theirs = tokenizer.apply_chat_template(
        first, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert pair["prompt_ids"] == list(theirs)
    with pytest.raises(InputError, match="is a conversation"):
        encode_pair(tokenizer, loaded["prompt"][0], "Yes", "Go away.")


@pytest.fixture
def few_replies(tmp_path):
    "The words of a command that writes two short replies to each of three prompts into a folder."
    prompts = prompt_files(tmp_path, n=3)["de"]
    return "--prompt-file", prompts, "--n", 2, "--max-tokens", 4, "--output-dir"


def test_commands_speak_chat(chat_model, few_replies, said, tmp_path):
    folder, _ = chat_model
    words = ("generate", "--model", folder, "--chat")
    code, _, err = said(*words, *few_replies, tmp_path / "a")
    assert code == 0, err
    manifest = next((tmp_path / "a").rglob("manifest.json"))
    assert '"bos": "chat"' in manifest.read_text()
    assert said(*words, "auto", *few_replies, tmp_path / "b")[0] == 0
    chat, auto = (next((tmp_path / d).rglob("output-*.json")).read_text() for d in "ab")
    assert chat == auto
    assert "assistant" not in json.loads(chat.splitlines()[0])["prompt"]


def test_commands_refuse_what_no_chat_can_be(chat_model, family, few_replies, fails, tmp_path):
    folder, _ = chat_model
    if family == "gemma":
        words = ("generate", "--model", folder, "--system", "Be kind")
        assert "System role not supported" in fails(*words, *few_replies, tmp_path / "c")
    words = ("generate", "--model", "world", "--chat")
    assert "no chat template" in fails(*words, *few_replies, tmp_path / "d")
    words = ("generate", "--model", folder, "--chat", "--bos", "paper")
    assert "beside --chat" in fails(*words, *few_replies, tmp_path / "e")
