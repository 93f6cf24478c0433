"Every file of the real data folder (XGDETOX_DATA) loads, with the row count that its README states."

import random
import re
import warnings

import pytest
from small_files import jsonl

from xgdetox.data import (
    ENTITY,
    align_rtp_lx,
    find_prompt_files,
    load_labelled,
    load_lexicon,
    load_pairs,
    load_parallel,
    load_prompts,
)
from xgdetox.splits import find_source_map, source_places, write_source_map
from xgdetox.languages import LANGUAGES
from xgdetox.datasets import data_folder, paper_numbers
from xgdetox.files import read_json, read_rows

REAL = data_folder()
README = REAL / "README.md"
ROWS = (
    {
        m[0]: int(m[1])
        for m in re.findall(r"^\| (\S+/\S+) \| (\d+) \|", README.read_text("utf-8"), re.M)
    }
    if README.exists()
    else {}
)
pytestmark = pytest.mark.skipif(not ROWS, reason="no real data with a README: set XGDETOX_DATA")


# the beginning of a path -> how many rows its loader finds, kept and dropped together, since a report hides nothing
whole = lambda loaded: loaded.report.kept + sum(loaded.report.dropped.values())
LOADERS = {
    "pairwise/": lambda file: whole(load_pairs(file)),
    "prompts/RTP_LX": lambda file: whole(load_prompts(file)),
    "scores/rtp_en": lambda file: whole(load_prompts(file)),
    "scores/gpt2": lambda file: whole(load_prompts(file)),
    "scores/rtplx_published": lambda file: 1 if read_json(file) else 0,
    "parallel/ntrex": lambda file: whole(load_parallel(file, "fr")),
    "parallel/rtplx": lambda file: whole(load_parallel(file, "fr")),
    "parallel/tatoeba": lambda file: whole(load_parallel(file, file.name.split(".")[1][:2])),
    "parallel/translated": lambda file: whole(load_parallel(file.parent, file.name.split("_")[-2])),
    "reference/dpo_toxic_challenge_prompts.json": lambda file: whole(load_prompts(file, "en")),
    "reference/neuron": lambda file: sum(map(len, read_json(file).values())),
    "reference/causal": lambda file: len(read_json(file)["outputs"]),
}


def rows_loaded(path: str) -> int:
    "Rows of a file, by the loader that its folder belongs to."
    file = REAL / path
    for beginning, rows in LOADERS.items():
        if path.startswith(beginning):
            return rows(file)
    if path.startswith("labelled/") and "paradetox" not in path:
        return whole(load_labelled(file))
    if path.endswith(".safetensors"):
        return 1 if file.stat().st_size > 0 else 0
    return (
        len(read_json(file)) if path.startswith("reference/") else sum(1 for _ in read_rows(file))
    )


@pytest.mark.parametrize("path", sorted(ROWS))
def test_every_file_loads_with_the_rows_of_the_readme(path):
    assert rows_loaded(path) == ROWS[path]


def test_nothing_of_the_real_prompts_and_pairs_is_dropped():
    for code, file in find_prompt_files(REAL / "prompts", LANGUAGES).items():
        loaded = load_prompts(file)
        assert not loaded.report.dropped and set(loaded.rows["language"]) == {code}
        assert len(set(loaded.rows["prompt_id"])) == len(loaded.rows)


def test_upstream_filter_reports_what_it_drops():
    whole, cut = (
        load_pairs(REAL / "pairwise/rtplx_pairs_en.jsonl", max_characters=m) for m in (None, 256)
    )
    assert cut.report.kept + cut.report.dropped["over 256 characters"] == whole.report.kept


def test_html_entities_are_those_of_the_reference_table():
    stated = paper_numbers("translated_prompts")["rows_with_html_entities_recomputed"]
    for code in LANGUAGES:
        raw = load_parallel(REAL / "parallel/translated_prompts", code, raw=True)
        plain = load_parallel(REAL / "parallel/translated_prompts", code)
        assert sum(bool(ENTITY.search(t)) for t in raw.rows["text"]) == stated[code]
        assert not any(ENTITY.search(t) for t in plain.rows["text"])


def test_bible_and_common_voice_read_as_line_files():
    assert len(load_parallel(REAL / "corpus/bible", "ja", limit=50).rows) == 50


def test_lexicons_of_16_languages():
    for code in LANGUAGES:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            words = load_lexicon(REAL / "lexicons/ldnoobw", code)
        assert bool(words) == (code != "id") == (not told)


@pytest.fixture(scope="module")
def places():
    "language -> the rows of the source map."
    found = {}
    for _, row in read_rows(REAL / "prompts/rtp_source_map.tsv.gz"):
        found.setdefault(row["lang"], []).append(row)
    return found


def scoring_row(code: str, row: dict, text: str) -> dict:
    "A row of a scoring file, from one of the source map; those of English were run on the string NA."
    entry = {"Prompt": "NA" if code == "en" else text, "Index": row["index"]}
    if row["en_position"]:
        names = {"Filename": "rtp_filename", "Begin": "rtp_begin", "End": "rtp_end"}
        entry["OriginalMetadata"] = {ours: row[theirs] for ours, theirs in names.items()}
    return {"Prompt": entry["Prompt"], "Index": row["index"], "OriginalEntry": entry}


@pytest.fixture(scope="module")
def scoring(tmp_path_factory, places):
    "Scoring files of all 17 languages, written from the source map, in another order."
    folder = tmp_path_factory.mktemp("scoring")
    for code, l in LANGUAGES.items():
        prompts = load_prompts(find_prompt_files(REAL / "prompts", [code])[code]).rows
        texts = dict(zip(prompts["prompt_id"], prompts["prompt"]))
        shuffled = random.Random(code).sample(places[code], len(places[code]))
        by = "gpt4" if code == "en" else "acs"
        rows = [scoring_row(code, row, texts[row["index"]]) for row in shuffled]
        jsonl(folder / f"{by}_results_{l.rtp_lx}.json", rows)
    return folder


@pytest.fixture(scope="module")
def aligned(scoring):
    return align_rtp_lx(scoring, REAL / "prompts")


def test_align_by_keys_gives_the_aligned_table(aligned):
    "Text for text; the table has no line ends inside a text."
    spaces = lambda text: " ".join(text.split())
    table = read_rows(REAL / "parallel/rtplx_aligned/rtplx.17way.tsv.gz")
    expected = {spaces(row["en"]): row for _, row in table}
    assert aligned.report.kept == len(expected) == 800 and not aligned.report.dropped
    for row in aligned.rows:
        known = expected[spaces(row["en"])]
        assert all(spaces(known[c]) == spaces(row[c]) for c in LANGUAGES)


def test_align_leaves_out_prompts_of_their_own_culture_and_counts_them(aligned, places):
    for code in LANGUAGES:
        noted = lambda what: aligned.report.notes.get(f"{code} {what}", 0)
        own, again = noted("without an English source"), noted("place named again")
        assert own == sum(not row["en_position"] for row in places[code])
        assert len(places[code]) - own - again >= 800


def test_align_without_prompts_gives_the_same_texts(aligned, scoring):
    alone = align_rtp_lx(scoring, None, [c for c in LANGUAGES if c != "en"])
    assert alone.report.kept == 800
    texts = lambda loaded, code: dict(zip(loaded.rows["place"], loaded.rows[code]))
    assert all(texts(alone, c) == texts(aligned, c) for c in ("ar", "id", "zh"))


def test_a_source_map_made_from_scoring_files_is_the_one_that_lies_there(tmp_path, scoring):
    write_source_map(scoring, REAL / "prompts", tmp_path / "map.tsv")
    as_they_lie = source_places(find_source_map(REAL / "prompts"))
    first = {(r["language"], r["place"]): r for r in reversed(as_they_lie) if r["place"]}
    made = {(r["language"], r["place"]): r for r in source_places(tmp_path / "map.tsv")}
    assert made.keys() == first.keys()
    assert all(made[key]["en_position"] == first[key]["en_position"] for key in made)
    again = [k for k in made if made[k]["index"] != first[k]["index"]]
    named_twice = len([r for r in as_they_lie if r["place"]]) - len(first)
    assert len(again) <= named_twice, "only a place named twice has a choice of rows"
