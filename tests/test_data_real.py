"Every file of the real data folder (XGDETOX_DATA) loads, with the row count that its README states."

import json
import random
import re
import warnings

import pytest

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


def rows_loaded(path: str) -> int:
    "Rows of a file, by the loader that its folder belongs to; kept and dropped together, since a report hides nothing."
    file, whole = (
        REAL / path,
        lambda loaded: loaded.report.kept + sum(loaded.report.dropped.values()),
    )
    if path.startswith("pairwise/"):
        return whole(load_pairs(file))
    if path.startswith("prompts/RTP_LX") or path.startswith(("scores/rtp_en", "scores/gpt2")):
        return whole(load_prompts(file))
    if path == "reference/dpo_toxic_challenge_prompts.json":
        return whole(load_prompts(file, "en"))
    if path.startswith("labelled/") and "paradetox" not in path:
        return whole(load_labelled(file))
    if path.startswith(("parallel/ntrex", "parallel/rtplx")):
        return whole(load_parallel(file, "fr"))
    if path.startswith("parallel/tatoeba"):
        return whole(load_parallel(file, file.name.split(".")[1][:2]))
    if path.startswith("parallel/translated"):
        return whole(load_parallel(file.parent, file.name.split("_")[-2]))
    if path.startswith("reference/neuron"):
        return sum(map(len, read_json(file).values()))
    if path.startswith("reference/causal"):
        return len(read_json(file)["outputs"])
    if path.startswith("scores/rtplx_published"):
        return 1 if read_json(file) else 0
    if path.endswith(".safetensors"):
        return 1 if file.stat().st_size > 0 else 0
    if path.startswith("reference/"):
        return len(read_json(file))
    return sum(1 for _ in read_rows(file))


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
        mended = load_parallel(REAL / "parallel/translated_prompts", code)
        assert sum(bool(ENTITY.search(t)) for t in raw.rows["text"]) == stated[code]
        assert not any(ENTITY.search(t) for t in mended.rows["text"])


def test_bible_and_common_voice_read_as_line_files():
    assert len(load_parallel(REAL / "corpus/bible", "ja", limit=50).rows) == 50


def test_lexicons_of_16_languages():
    for code in LANGUAGES:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            words = load_lexicon(REAL / "lexicons/ldnoobw", code)
        assert bool(words) == (code != "id") == (not told)


def test_align_by_keys_gives_the_aligned_table(tmp_path):
    "Scoring files of all 17 languages written from the source map, in another order, joined again: the aligned table comes out, text for text."
    places, texts = {}, {}
    for _, row in read_rows(REAL / "prompts/rtp_source_map.tsv.gz"):
        places.setdefault(row["lang"], []).append(row)
    (tmp_path / "scoring").mkdir()
    for code, l in LANGUAGES.items():
        texts[code] = dict(
            zip(
                *(
                    load_prompts(find_prompt_files(REAL / "prompts", [code])[code]).rows[c]
                    for c in ("prompt_id", "prompt")
                )
            )
        )
        rows = random.Random(code).sample(places[code], len(places[code]))
        with open(
            tmp_path / "scoring" / f"{'gpt4' if code == 'en' else 'acs'}_results_{l.rtp_lx}.json",
            "w",
            encoding="utf-8",
        ) as f:
            for row in rows:
                entry = {
                    "Prompt": "NA" if code == "en" else texts[code][row["index"]],
                    "Index": row["index"],
                }
                if row["en_position"]:
                    entry["OriginalMetadata"] = {
                        "Filename": row["rtp_filename"],
                        "Begin": row["rtp_begin"],
                        "End": row["rtp_end"],
                    }
                f.write(
                    json.dumps(
                        {"Prompt": entry["Prompt"], "Index": row["index"], "OriginalEntry": entry}
                    )
                    + "\n"
                )
    spaces = lambda text: " ".join(text.split())  # the table has no line ends inside a text
    expected = {
        spaces(row["en"]): row
        for _, row in read_rows(REAL / "parallel/rtplx_aligned/rtplx.17way.tsv.gz")
    }
    aligned = align_rtp_lx(tmp_path / "scoring", REAL / "prompts")
    assert aligned.report.kept == len(expected) == 800 and not aligned.report.dropped
    assert all(
        spaces(expected[spaces(row["en"])][c]) == spaces(row[c])
        for row in aligned.rows
        for c in LANGUAGES
    )
    for (
        code
    ) in LANGUAGES:  # what is left out are the prompts of their own culture, and it is counted
        own, again = (
            aligned.report.notes.get(f"{code} {what}", 0)
            for what in ("without an English source", "place named again")
        )
        assert (
            own == sum(not row["en_position"] for row in places[code])
            and len(places[code]) - own - again >= 800
        )
    alone = align_rtp_lx(tmp_path / "scoring", None, [c for c in LANGUAGES if c != "en"])
    assert alone.report.kept == 800 and all(
        dict(zip(alone.rows["place"], alone.rows[c]))
        == dict(zip(aligned.rows["place"], aligned.rows[c]))
        for c in ("ar", "id", "zh")
    )
