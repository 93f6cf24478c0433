"Other people's data in their own layouts: PolygloToxicityPrompts, FLORES, NTREX."

import json
from pathlib import Path

import pytest
from small_files import jsonl, refused

from xgdetox.data import find_parallel_files, find_prompt_files, load_parallel
from xgdetox.data import load_prompts, summarise_prompts
from xgdetox.grid.checkpoints import prompt_inputs
from xgdetox.grid.load import load_grid
from xgdetox.languages import LANGUAGES, add_languages
from xgdetox.pairs import choose_prompts
from xgdetox.retrieval import load_aligned

# PolygloToxicityPrompts


def polyglo(code: str, part: str, n: int = 3) -> list[dict]:
    "Rows as the hub has them: the prompt is the first half of the text, and the toxicity a machine's."
    rows = [
        {
            "text": f"{part} {i} in {code}, and so on",
            "prompt": f"{part} {i} in {code},",
            "toxicity": 0.3 * i,
            "meta_data": {"lang": code, "url": "https://example.org"},
        }
        for i in range(n)
    ]
    if part != "wildchat":
        return rows
    return [
        {"index": float(7 * i), "prompt": row["prompt"], "prompt_toxicity": row["toxicity"]}
        for i, row in enumerate(rows)
    ]


def as_downloaded(folder: Path):
    "What `huggingface-cli download` leaves, with its hidden folder."
    from datasets import Dataset

    for code in ("de", "zh"):
        for part in ("small", "full"):
            file = folder / f"ptp-{code}" / f"{part}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(polyglo(code, part)).to_parquet(file)
    (folder / "wildchat-de").mkdir()
    wild = Dataset.from_list(polyglo("de", "wildchat"))
    wild.to_parquet(folder / "wildchat-de" / "wildchat-00000-of-00001.parquet")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / "README.md").touch()


def as_saved(folder: Path):
    "What `load_dataset(...).save_to_disk` leaves."
    from datasets import Dataset, DatasetDict

    for code in ("de", "zh"):
        parts = {p: Dataset.from_list(polyglo(code, p)) for p in ("small", "full")}
        DatasetDict(parts).save_to_disk(folder / f"ptp-{code}")


def as_json(folder: Path):
    "What `to_json` leaves, in folders and beside each other."
    for part in ("small", "full"):
        jsonl(folder / "ptp-de" / f"{part}.jsonl", polyglo("de", part))
        jsonl(folder / f"ptp-zh-{part}.json", polyglo("zh", part))


LAYOUTS = [as_downloaded, as_saved, as_json]


@pytest.mark.parametrize("write", LAYOUTS)
def test_polyglo_is_read_in_every_layout_and_part(tmp_path, write):
    write(tmp_path)
    for place, part in ((tmp_path, "small"), (tmp_path / "full", "full")):
        files = find_prompt_files(place)
        assert list(files) == ["de", "zh"]
        rows = load_prompts(files["zh"]).rows
        assert rows["prompt"][:] == [f"{part} {i} in zh," for i in range(3)]
        assert rows["toxicity"][:] == [0.0, 0.3, 0.6] and set(rows["language"]) == {"zh"}
        assert set(prompt_inputs(str(place))) >= {str(p) for p in files.values() if p.is_file()}
        assert prompt_inputs(str(place)) and all(
            map(Path.is_file, map(Path, prompt_inputs(str(place))))
        )


def test_polyglo_conversations_have_no_index_of_their_own(tmp_path):
    as_downloaded(tmp_path)
    files = find_prompt_files(tmp_path / "wildchat")
    rows = load_prompts(files["de"]).rows
    assert list(files) == ["de"] and rows["prompt_id"][:] == ["0", "1", "2"]
    assert rows["prompt_toxicity"][:] == [0.0, 0.3, 0.6]


def test_polyglo_faults_are_said_in_one_line(tmp_path):
    as_downloaded(tmp_path)
    assert "no prompts in Swedish; add ptp-sv" in str(refused(find_prompt_files, tmp_path, ["sv"]))
    (tmp_path / "other").mkdir()
    error = refused(find_prompt_files, tmp_path / "other" / "full", ["de"])
    assert "no part full of ptp-{lang} in it" in str(error)
    assert "RTP_LX_{LANG}.json or ptp-" in str(refused(find_prompt_files, tmp_path / "other"))
    (tmp_path / "ptp-de" / "small-00001-of-00002.parquet").touch()
    error = refused(find_prompt_files, tmp_path)
    assert "ptp-de/small-00001-of-00002.parquet are both German" in str(error)
    (tmp_path / "ptp-zh" / "full-00000-of-00001.parquet").write_text("no Parquet")
    assert "is not Parquet" in str(
        refused(load_prompts, find_prompt_files(tmp_path / "full")["zh"])
    )
    wrong = jsonl(tmp_path / "j" / "ptp-fr" / "small.jsonl", polyglo("de", "small"))
    assert "the row is German, the file should be French" in str(refused(load_prompts, wrong))


def test_its_toxicity_stands_where_the_annotators_stands(tmp_path):
    as_json(tmp_path)
    files = find_prompt_files(tmp_path)
    summary = summarise_prompts(files).set_index("language")
    assert summary.toxicity["de"] == pytest.approx(0.3)
    assert summary.toxic["zh"] == pytest.approx(1 / 3)  # .6 of 0, .3, .6
    chosen, left_out = choose_prompts(files["de"], "de", above=0.2)
    assert len(chosen) == 2 and left_out == {"toxicity not above": 1}


@pytest.mark.parametrize("write", LAYOUTS)
def test_commands_continue_polyglo(tmp_path, run, write):
    write(tmp_path / "ptp")
    words = ("generate", "--model", "world", "-l", "de", "--n", "1", "--max-tokens", "2")
    place = tmp_path / "ptp" / "full"
    for _ in range(2):  # the second time there is nothing to do
        run(*words, "--prompt-file", place, "--output-dir", tmp_path / "out")
    rows = (tmp_path / "out/world/output-rtp_lx_de.json").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == [f"full {i} in de," for i in range(3)]
    folders = [p for p in (tmp_path / "ptp").glob("ptp-de/small*")]
    run(*words, "--prompt-file", folders[0], "--output-dir", tmp_path / "one")
    assert "small 0" in (tmp_path / "one/world/output-rtp_lx_de.json").read_text()


def test_a_grid_names_polyglo(tmp_path):
    from xgdetox.grid.checks import read_all
    from xgdetox.grid.jobs import jobs

    as_downloaded(tmp_path / "ptp")
    grid = load_grid(
        {
            "name": "polyglo",
            "languages": ["de", "zh"],
            "models": {"m": {"path": "world"}},
            "data": {"prompts": str(tmp_path / "ptp" / "full")},
            "stages": ["generate", "score"],
            "scorers": {"words": "lexicon:world"},
        }
    )
    read_all(grid)
    waits = [need for job in jobs(grid) if job.stage == "generate" for need in job.needs]
    assert {
        f"{p.parent.name}/{p.name[:4]}" for p in map(Path, waits) if p.suffix == ".parquet"
    } == {
        "ptp-de/full",
        "ptp-zh/full",
    }


# FLORES and NTREX

SENTENCES = {
    "eng_Latn": [f"Sentence {i}" for i in range(12)],
    "deu_Latn": [f"Satz {i}" for i in range(12)],
    "zho_Hans": [f"第{i}句" for i in range(12)],
}


def text_file(path: Path, sentences: list[str]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{s}\n" for s in sentences), encoding="utf-8")


def table_file(path: Path, rows: list[dict]):
    "Rows as Parquet, or as JSON Lines where the name says so."
    from datasets import Dataset

    if path.suffix == ".jsonl":
        jsonl(path, rows)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def plus(code: str) -> str:
    "The code in FLORES+, which follows ISO 639-3."
    return code.replace("zho", "cmn")


def flores_rows(code: str, field: str) -> list[dict]:
    return [{"id": i, field: s, "domain": "wikinews"} for i, s in enumerate(SENTENCES[code])]


FLORES = {  # where the user points -> file of a code, how it is written
    "archive": lambda d, c: text_file(d / f"devtest/{c}.devtest", SENTENCES[c]),
    "archive, dev alone": lambda d, c: text_file(d / f"dev/{c}.dev", SENTENCES[c]),
    "one split": lambda d, c: text_file(d / f"{c}.devtest", SENTENCES[c]),
    "release": lambda d, c: text_file(d / f"devtest/devtest.{plus(c)}", SENTENCES[c]),
    "flores_plus": lambda d, c: table_file(
        d / f"devtest/{plus(c)}.parquet", flores_rows(c, "text")
    ),
    "flores_plus, jsonl": lambda d, c: table_file(
        d / f"devtest/{plus(c)}.jsonl", flores_rows(c, "text")
    ),
    "facebook/flores": lambda d, c: table_file(
        d / f"{c}/devtest-00000-of-00001.parquet", flores_rows(c, "sentence")
    ),
}


@pytest.mark.parametrize("layout", FLORES)
def test_flores_is_read_in_every_layout(tmp_path, layout):
    for code in SENTENCES:
        FLORES[layout](tmp_path, code)
    for code, flores in (("de", "deu_Latn"), ("zh", "zho_Hans")):
        rows = load_parallel(tmp_path, code).rows
        assert rows["text"][:] == SENTENCES[flores]
        assert rows["english"][:] == SENTENCES["eng_Latn"]
    pairs, left_out = load_aligned(tmp_path)
    assert set(pairs) == {"de", "zh"} and "no sentences in Swedish" in set(left_out.reason)
    assert len(find_parallel_files(tmp_path)) == 3
    assert "Swedish; add " in str(refused(load_parallel, tmp_path, "sv"))


def test_the_split_for_tests_comes_first(tmp_path):
    for code in ("eng_Latn", "deu_Latn"):
        text_file(tmp_path / f"dev/{code}.dev", ["dev"])
        text_file(tmp_path / f"devtest/{code}.devtest", ["devtest"])
    assert load_parallel(tmp_path, "de").rows["text"][:] == ["devtest"]
    assert load_parallel(tmp_path / "dev", "de").rows["text"][:] == ["dev"]


def test_rows_of_other_sentences_are_refused(tmp_path):
    FLORES["flores_plus, jsonl"](tmp_path, "eng_Latn")
    rows = flores_rows("deu_Latn", "text")
    table_file(tmp_path / "devtest/deu_Latn.jsonl", [rows[1], rows[0], *rows[2:]])
    error = str(refused(load_parallel, tmp_path, "de"))
    assert "deu_Latn.jsonl:1: id: is 1 in one language and 0 in the other" in error
    table_file(tmp_path / "devtest/deu_Latn.jsonl", rows[:-1])
    assert "has 11 rows" in str(refused(load_parallel, tmp_path, "de"))
    table_file(tmp_path / "devtest/deu_Latn.jsonl", [{"id": 0, "satz": "Satz"}])
    assert "is missing" in str(refused(load_parallel, tmp_path, "de"))


@pytest.mark.parametrize("below", ["", "NTREX-128"])
def test_ntrex_is_read_from_its_clone_too(tmp_path, below):
    text_file(tmp_path / below / "newstest2019-src.eng.txt", SENTENCES["eng_Latn"])
    text_file(tmp_path / below / "newstest2019-ref.deu.txt", SENTENCES["deu_Latn"])
    assert load_parallel(tmp_path, "de").rows["text"][:] == SENTENCES["deu_Latn"]


def test_a_language_of_a_file_has_its_sentences(tmp_path):
    (tmp_path / "languages.yaml").write_text(
        "sw: {name: Swahili, script: Latin, iso3: swh, ntrex: swa, flores: swh_Latn}\n"
    )
    add_languages(tmp_path / "languages.yaml")
    try:
        text_file(tmp_path / "f/devtest/eng_Latn.devtest", ["One"])
        text_file(tmp_path / "f/devtest/swh_Latn.devtest", ["Moja"])
        text_file(tmp_path / "n/newstest2019-src.eng.txt", ["Two"])
        text_file(tmp_path / "n/newstest2019-ref.swa.txt", ["Mbili"])
        assert load_parallel(tmp_path / "f", "Swahili").rows["text"][:] == ["Moja"]
        assert load_parallel(tmp_path / "n", "sw").rows["text"][:] == ["Mbili"]
    finally:
        del LANGUAGES["sw"]
