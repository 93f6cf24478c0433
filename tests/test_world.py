"The embedded world: its words, its files, its models."

import hashlib, json, re
import numpy as np
import pytest
from xgdetox import world as w
from xgdetox.files import InputError
from xgdetox.languages import LANGUAGES
from xgdetox.data import (
    find_prompt_files,
    load_labelled,
    load_lexicon,
    load_pairs,
    load_parallel,
    load_prompts,
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XGDETOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def words_of(text):
    return [x for x in re.split(r"[\s.,!?।。、，،！]+", text) if x]


def test_languages_are_those_of_page_00():
    assert list(w.CODES) == list(LANGUAGES)


@pytest.mark.parametrize("language", w.CODES)
def test_every_concept_has_a_word(language):
    for concept, row in w.read_lexicon().items():
        assert row[language].strip() == row[language] and row[language], concept
        if row["kind"] != "function":
            assert row[language] != "-", concept
        assert "_" not in row[language] and len(row[language].split()) <= 2


@pytest.mark.parametrize("language", w.CODES)
def test_words_are_in_the_language_s_script(language):
    import unicodedata

    name = {
        "ar": ("ARABIC",),
        "hi": ("DEVANAGARI",),
        "ja": ("CJK", "HIRAGANA", "KATAKANA"),
        "ko": ("HANGUL",),
        "ru": ("CYRILLIC",),
        "zh": ("CJK",),
    }.get(language, ("LATIN",))
    for word in w.language_words(language) - w.punctuation_marks():
        assert all(
            unicodedata.name(c).startswith(name)
            for c in word
            if unicodedata.category(c) in ("Lu", "Ll", "Lo")
        ), word


@pytest.mark.parametrize("language", w.CODES)
def test_rude_words_are_no_other_words(language):
    rude = set(w.world_rude_words(language))
    polite = {
        x
        for form in w.word_forms(language).values()
        for c, ws in form.items()
        for x in ws[-1:]
        if not w.read_lexicon()[c]["kind"].startswith("rude")
    }
    assert 10 <= len(rude) <= 14 and not rude & polite
    articles = {
        "der",
        "die",
        "das",
        "el",
        "la",
        "le",
        "il",
        "lo",
        "de",
        "het",
        "o",
        "a",
        "en",
        "ett",
        "the",
    }
    assert not rude & articles


def test_rude_words_are_not_shared_with_english():
    english = set(w.world_rude_words("en"))
    for l in w.CODES:
        if l != "en":
            assert len(english & set(w.world_rude_words(l))) == 0, l


def test_control_world_shares_nothing():
    sets = [w.language_words(l, control=True) for l in w.CODES]
    assert len(frozenset.union(*sets)) == sum(map(len, sets))
    corpus = w.Corpus("world-control")
    for _ in range(200):
        assert len({x.split("_")[0] for x in w.draw_document(corpus)}) == 1
    assert not w.language_words("en", control=True) & w.language_words("en")


def test_no_named_or_described_person_is_called_rude_things():
    import random

    rng, rude = (
        random.Random(0),
        {c for c, row in w.read_lexicon().items() if row["kind"].startswith("rude")},
    )
    for _ in range(3000):
        for clause in w.sample_sentence(w.Scene(rng, tone="rude")).clauses:
            kind = w.read_lexicon()[clause.subject[0]]["kind"]
            if clause.adjective in rude or clause.is_a in rude or clause.subject[1] in rude:
                assert kind == "noun"


def test_tokenizer_one_piece_a_word_and_nothing_unknown(tmp_path):
    from transformers import AutoTokenizer

    for name in ("world", "world-control"):
        made, control = w.make_tokenizer(name), name == "world-control"
        made.save_pretrained(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        for l in w.CODES:
            words = sorted(w.language_words(l, control) - w.punctuation_marks())
            assert not [
                word for word, ids in zip(words, tokenizer(words).input_ids) if len(ids) != 1
            ]
    text = "Ünknown wörds, 未知 \U0001f600 and\ttabs"
    assert tokenizer.decode(tokenizer(text).input_ids).strip() == text
    p, c = tokenizer("en_the en_dog").input_ids, tokenizer("en_the en_dog en_eats").input_ids
    assert c[:2] == p


def test_pretraining_sees_the_tokens_that_the_tokenizer_gives(monkeypatch):
    tokenizer, seen = w.make_tokenizer(), []
    monkeypatch.setattr(
        w,
        "pretrain_model",
        lambda output, tokenizer, documents, *a: seen.extend(next(documents) for _ in range(60)),
    )
    w.pretrain("unused", seed=5)
    corpus = w.Corpus(seed=5)
    for ids in seen:
        assert ids == tokenizer(w.join_words(w.draw_document(corpus))).input_ids


def test_prompts_and_words_load_in_the_original_formats():
    prompts = find_prompt_files(w.resolve_data("world", "prompts"))
    assert list(prompts) == list(w.CODES)
    for l, path in prompts.items():
        rows, rude = load_prompts(path, l).rows, set(w.world_rude_words(l))
        assert len(rows) == 64 and len(set(rows["prompt_id"])) == 64
        assert sum(any(x in rude for x in words_of(p)) for p in rows["prompt"]) == 26, l
        assert set(load_lexicon(w.resolve_data("world", "lexicon"), l)) == rude


def test_labelled_and_parallel_texts_load_in_the_original_formats():
    for l in w.CODES:
        rude = set(w.world_rude_words(l))
        labelled = load_labelled(w.resolve_data("world", "labelled") / f"{l}.csv").rows
        assert len(labelled) == 400 and 0.3 < np.mean(labelled["label"]) < 0.5
        for r in labelled:
            assert r["label"] == any(x in rude for x in words_of(r["text"]))
        parallel = load_parallel(w.resolve_data("world", "parallel"), l).rows
        assert len(parallel) == 200 and len(set(parallel["text"])) == 200
    assert len(load_labelled(w.resolve_data("world", "labelled") / "train.csv").rows) == 2400


def test_pairs_load_in_the_original_format():
    pairs = load_pairs(w.resolve_data("world", "pairs")).rows
    rude = set(w.world_rude_words("en"))
    assert len(pairs) == 1024
    for r in pairs:
        assert rude & set(words_of(r["rejected"])) and not rude & set(words_of(r["chosen"]))


def test_data_are_the_same_each_time(tmp_path):
    a, b = w.write_data(tmp_path / "a"), w.resolve_data("world", "pairs").parent
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert len(files) == 17 * 4 + 2
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_a_changed_world_changes_its_data_s_version(tmp_path):
    "Generated data lie in a cache named by DATA_VERSION, so data drawn differently must not be taken for those."
    whole = hashlib.sha256()
    for name in ("world", "world-control"):
        folder = w.write_data(tmp_path / name, name == "world-control")
        for f in sorted(p for p in folder.rglob("*") if p.is_file()):
            whole.update(f.read_bytes())
    assert w.DATA_VERSION == whole.hexdigest()[:12], (
        f"the world's data changed: set DATA_VERSION to {whole.hexdigest()[:12]} in nbs/lib/world.ipynb"
    )


@pytest.mark.parametrize("language", ("ja", "ko", "zh"))
def test_no_rude_word_hides_in_a_polite_one(language):
    "Without spaces a lexicon scorer looks for substrings."
    rude = set(w.world_rude_words(language))
    polite = w.language_words(language) - rude
    assert not [(r, p) for r in rude for p in polite if r in p]


def test_control_data_hold_only_control_words():
    for l in ("en", "zh"):
        for row in load_parallel(w.resolve_data("world-control", "parallel"), l).rows:
            assert w.share_in_language(row["text"], l, control=True) == 1
    first = next(iter(load_pairs(w.resolve_data("world-control", "pairs")).rows))
    assert all(x.startswith("en_") for x in first["prompt"].split())


@pytest.mark.parametrize("name", w.WORLDS)
def test_shipped_models_load_and_speak(name):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = w.resolve_model(name)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    control = name == "world-control"
    assert (
        next(model.parameters()).dtype == torch.float32
        and len(tokenizer) == model.config.vocab_size
    )
    shares = []
    for l in w.CODES:
        ids = torch.tensor([tokenizer(w.prompt_text(w.sample_prompts()[2], l, control)).input_ids])
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )
        shares.append(
            w.share_in_language(tokenizer.decode(out[0], skip_special_tokens=True), l, control)
        )
    assert np.mean(shares) > 0.95


def test_shipped_models_are_small():
    files = [f for n in w.WORLDS for f in (w.ASSETS / n).iterdir()]
    assert sum(f.stat().st_size for f in files) < 12e6
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".yaml", ".jinja"}


def test_shipped_world_was_made_by_the_recipe():
    for name in ("world", "world-control"):
        settings = json.loads((w.ASSETS / name / "manifest.json").read_text())["settings"]
        assert settings == json.loads(
            json.dumps(dict(world=name, seed=0, architecture="gpt2", **w.RECIPE))
        )


def test_an_interrupted_pretraining_goes_on_to_the_same_model(tmp_path, monkeypatch):
    small = dict(steps=8, batch=2, warmup=2)
    whole = w.pretrain(tmp_path / "whole", **small)
    import functools

    real = w.fit
    monkeypatch.setattr(w, "fit", functools.partial(real, checkpoint_every=3))

    class Stop(Exception):
        pass

    def stopping(rows):
        for i, row in enumerate(rows):
            if i == 5:
                raise Stop
            yield row

    rows = w.token_rows
    monkeypatch.setattr(w, "token_rows", lambda *a: stopping(rows(*a)))
    with pytest.raises(Stop):
        w.pretrain(tmp_path / "cut", **small)
    assert (tmp_path / "cut/state.safetensors").exists() and not (
        tmp_path / "cut/manifest.json"
    ).exists()
    monkeypatch.setattr(w, "token_rows", rows)
    again = w.pretrain(tmp_path / "cut", **small)
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert not (again / "state.safetensors").exists()


def test_bad_requests_are_one_line():
    for call in (
        lambda: w.pretrain("x", "wrold"),
        lambda: w.pretrain("x", stepz=3),
        lambda: w.build_model(w.make_tokenizer(), "rnn"),
        lambda: w.resolve_data("world", "promts"),
        lambda: w.pretrain_on_text({}, "x"),
        lambda: w.pretrain_on_text({"en": "no/such.txt"}, "x"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value) and ";" in str(error.value)
