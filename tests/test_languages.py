"The table of languages: every spelling is one language's, and a file adds another without an edit of the package."

import subprocess
import sys

import pytest
from small_files import jsonl, refused

from xgdetox.data import find_prompt_files, load_lexicon, load_parallel, load_prompts
from xgdetox.languages import (
    LANGUAGES,
    Language,
    add_language,
    add_languages,
    covered_by,
    file_language,
    normalise_language,
    read_languages,
)


def test_every_spelling_in_the_table_is_its_own_language():
    spellings = [
        (l.code, s)
        for l in LANGUAGES.values()
        for s in (l.code, l.name, l.autonym, l.rtp_lx, l.iso3, l.ntrex, l.flores, *l.aliases)
    ]
    for code, spelling in spellings:
        for form in (
            spelling,
            spelling.upper(),
            f" {spelling.lower()} ",
            spelling.replace("-", "_"),
        ):
            assert normalise_language(form) == code
    assert refused(normalise_language, "xx").remedy


def test_scorer_coverage_is_that_of_their_cards():
    assert {s: len(covered_by(s)) for s in COVERED} == COVERED


# scorer -> how many of the 17 its card names
COVERED = {
    "perspective": 17,
    "textdetox": 10,
    "textdetox-v1": 7,
    "citizenlab": 8,
    "llamaguard": 7,
    "azure": 8,
    "detoxify": 6,
    "polyguard": 16,
    "mutox": 14,
    "qwen3guard": 17,
    "usem3": 13,
}


# a language from a file

TOY = """
tlh:
  name: Klingon
  autonym: tlhIngan Hol
  script: Latin
  aliases: [kli-ngon]
  scorers: {lexicon: tlh}
tr: {name: Turkish, script: Latin, iso3: tur}
"""


@pytest.fixture
def toy(tmp_path):
    "A file with two languages; what it adds is taken out again."
    before = dict(LANGUAGES)
    file = tmp_path / "languages.yaml"
    file.write_text(TOY)
    yield file
    LANGUAGES.clear()
    LANGUAGES.update(before)


def test_a_language_from_a_file_has_prompts_sentences_and_words(toy, tmp_path):
    jsonl(tmp_path / "p/RTP_LX_TLH.json", [{"Prompt": "nuqneH", "Index": 0, "Locale": "TLH"}])
    assert "no RTP_LX_" in str(refused(find_prompt_files, tmp_path / "p"))
    assert add_languages(toy) == ["tlh", "tr"] and list(LANGUAGES)[-2:] == ["tlh", "tr"]
    files = find_prompt_files(tmp_path / "p")
    assert list(files) == ["tlh"] and load_prompts(files["tlh"]).rows["language"][:] == ["tlh"]
    for name, text in {"tlh.txt": "Qapla'\n", "en.txt": "Success\n"}.items():
        (tmp_path / name).write_text(text)
    assert load_parallel(tmp_path, "Klingon").rows["english"][:] == ["Success"]
    assert load_lexicon(tmp_path, "kli_ngon") == ["Qapla'"] and file_language("tlh") == "tlh"
    assert LANGUAGES["tr"] == Language("tr", "Turkish", "Turkish", "Latin", "TR", iso3="tur")
    assert covered_by("lexicon") == ("tlh",) and "tr" not in covered_by("perspective")


def test_a_scorer_covers_a_language_that_was_added_before_it(toy):
    toy.write_text("tr: {name: Turkish, script: Latin, scorers: {qwen3guard: tr, usem3: tr}}\n")
    code = f"""
from xgdetox.languages import add_languages
add_languages({str(toy)!r})
from xgdetox.scorers.guard import GUARDS
from xgdetox.scorers.perspective import Perspective
assert GUARDS["qwen3guard"][1][-1] == "tr" and "tr" not in Perspective.languages
"""
    subprocess.run([sys.executable, "-c", code], check=True)


WRONG = {
    "- tr": "languages.yaml: is not a table of languages",
    "": "languages.yaml: is not a table of languages",
    "tr: Turkish": "languages.yaml: tr: is not a table",
    "tr: {name: Turkish}": "tr.script: is missing",
    "tr: {script: Latin}": "tr.name: is missing",
    "tr: {name: Turkish, script: Latin, iso: tur}": "tr.iso: is unknown; did you mean iso3?",
    "tr: {name: Turkish, script: Latin, code: tr}": "tr.code: is unknown",
    "tr: {name: 7, script: Latin}": "tr.name: is not like the table's",
    "tr: {name: Turkish, script: Latin, spaced: 1}": "tr.spaced: is not like",
    "tr: {name: Turkish, script: Latin, aliases: tur}": "tr.aliases: is not like",
    "tr: {name: Turkish, script: Latin, scorers: [qwen3guard]}": "tr.scorers: is not like",
    # YAML takes a bare no for false
    "no: {name: Norwegian, script: Latin}": "False: is not the code of a language",
    "nn: {name: Norwegian, script: Latin, scorers: {x: no}}": "nn.scorers: is not like",
    "TR: {name: Turkish, script: Latin}": "TR: is not the code",
    "../x: {name: Turkish, script: Latin}": "../x: is not the code",
    "de: {name: Alemannic, script: Latin}": "de: shares the spelling de with German",
    "gsw: {name: Alemannic, script: Latin, aliases: [GER]}": "gsw: shares the spelling ger with German",
    "tr: {name: Turkish, script: Latin}\ntk: {name: turkish, script: Latin}": "tk: shares the spelling turkish with",
    "tr: {name: Turkish, script: Latin}\ntr: {name: Turkish, script: Latin}": "tr: stands twice, in lines 1 and 2",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_of_languages_is_right_or_adds_none(toy, text):
    toy.write_text(text)
    before = dict(LANGUAGES)
    assert WRONG[text] in str(refused(add_languages, toy))
    assert LANGUAGES == before


def test_norwegian_in_quotes(toy):
    toy.write_text("'no': {name: Norwegian, script: Latin, rtp_lx: 'NO'}\n")
    (norwegian,) = read_languages(toy)
    assert add_language(norwegian).code == normalise_language("Norwegian") == "no"
    assert "shares the spelling" in str(refused(add_language, norwegian))
