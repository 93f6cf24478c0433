"Loaders, atomic writes, splits and downloads: what is not pretty in prose."

import os
import subprocess
import sys

import pytest
from small_files import jsonl, pair, refused

from xgdetox.languages import LANGUAGES
from xgdetox.files import write_json
from xgdetox.data import (
    align_rtp_lx,
    cut_prompt,
    row_files,
    find_parallel_files,
    find_prompt_files,
    load_labelled,
    load_pairs,
    load_parallel,
    load_prompts,
    mask,
    split_rows,
)


# pairs


def test_pairs_from_a_folder_in_sorted_order_whatever_the_disk_says(tmp_path):
    for i in (2, 0, 1):
        jsonl(tmp_path / f"split_{i}.jsonl", [pair(f"Prompt {i}")])
    jsonl(tmp_path / ".hidden.jsonl", [{"bad": 1}])
    write_json(tmp_path / "manifest.json", {})
    assert load_pairs(tmp_path).rows["prompt"][:] == ["Prompt 0", "Prompt 1", "Prompt 2"]


@pytest.mark.parametrize(
    "prompt,continuation,rest",
    [
        ("The cat", "The cat sat", " sat"),
        ("The cat", " The cat sat", " sat"),
        ("The cat", "<|endoftext|>The cat sat", " sat"),
        ("The cat ", " sat", " sat"),
        ("The cat", " the cat sat", " the cat sat"),
        ("Then he told them all about it", "told them all about it again", " again"),
        ("", " sat", " sat"),
        ("a b", " b c", " b c"),
        ("The cat", "The cat", ""),
        ("The cat", "The cats ran", "The cats ran"),
        ("猫が", "猫が走る", "走る"),
        ("The friend cries.", " The friend cries slowly.", " The friend cries slowly."),
    ],
)
def test_cut_prompt(prompt, continuation, rest):
    assert cut_prompt(prompt, continuation) == rest


def test_a_pair_that_is_only_its_prompt_is_dropped_and_reported(tmp_path):
    loaded = load_pairs(jsonl(tmp_path / "p.jsonl", [pair(chosen="The cat"), pair(), pair()]))
    assert loaded.report.dropped == {"empty chosen": 1} and loaded.report.notes == {
        "prompt cut from the continuation": 1,
        "repeated pair": 1,
    }
    assert "kept 2, dropped 1" in str(loaded.report)


def test_token_filter_counts_tokens_and_character_filter_characters(tmp_path):
    words = lambda texts: {"input_ids": [t.split() for t in texts]}
    file = jsonl(
        tmp_path / "p.jsonl",
        [
            pair(),
            pair(rejected=" hissed and hissed."),
            pair(prompt="The " + "very " * 60 + "old cat"),
        ],
    )
    assert load_pairs(file, tokenizer=words, max_tokens=3).report.dropped == {"over 3 tokens": 2}
    assert load_pairs(file, max_characters=256).report.dropped == {"over 256 characters": 1}
    assert refused(load_pairs, file, max_tokens=3).field == "max_tokens"


def test_pairs_in_hugging_face_formats(tmp_path):
    from datasets import Dataset

    rows = {"prompt": ["The cat"], "chosen": [" sat."], "rejected": [" hissed."]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    Dataset.from_dict(rows).to_parquet(tmp_path / "p.parquet")
    Dataset.from_dict(rows).to_csv(tmp_path / "p.csv")
    for where in ("saved", "p.parquet", "p.csv"):
        assert load_pairs(tmp_path / where).rows[:] == rows


def test_pairs_of_dialogues_that_share_their_beginning(tmp_path):
    talk = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:"
    rows = [{"chosen": talk + " ciao", "rejected": talk + " go"}]
    implicit = load_pairs(jsonl(tmp_path / "hh.jsonl", rows))
    assert implicit.rows[0] == {"prompt": talk, "chosen": " ciao", "rejected": " go"}
    apart = jsonl(tmp_path / "n.jsonl", [{"chosen": "a", "rejected": "b"}])
    assert refused(load_pairs, apart).field == "prompt"


def test_a_list_of_messages_that_ends_in_the_users_is_refused(tmp_path):
    said = [{"role": "user", "content": "x"}]
    file = jsonl(tmp_path / "c.jsonl", [{"prompt": "x", "chosen": said, "rejected": []}])
    error = refused(load_pairs, file)
    assert error.field == "chosen" and "assistant's" in error.remedy


def test_pairs_from_rtp_lx_benign_completions(tmp_path):
    row = {
        "BenignCompletion": "how are you",
        "OriginalEntry": {"Prompt": "Good morning,", "Completion": "you dolt"},
    }
    assert load_pairs(jsonl(tmp_path / "acs_results_benign_EN.json", [row])).rows[0] == {
        "prompt": "Good morning,",
        "chosen": " how are you",
        "rejected": " you dolt",
    }


def test_split_is_seeded_disjoint_and_stable(tmp_path):
    rows = load_pairs(
        jsonl(tmp_path / "p.jsonl", [pair(f"Prompt {i % 40}", f" a{i}") for i in range(80)])
    ).rows
    train, held = split_rows(rows, 0.25, seed=3)
    assert len(train) == 60 and len(held) == 20 and not set(train["prompt"]) & set(held["prompt"])
    assert (
        split_rows(rows, 0.25, seed=3)[1]["chosen"][:]
        == held["chosen"][:]
        != split_rows(rows, 0.25, seed=4)[1]["chosen"][:]
    )


def test_24576_pairs_in_500_megabytes(tmp_path):
    """The speed is in bench_data.py.

    VmHWM starts anew with the child; ru_maxrss would begin at the size of the process that runs the tests."""
    sys.path.insert(0, os.path.dirname(__file__))
    from bench_data import write_pairs

    write_pairs(tmp_path, batch=4)
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc: peak memory cannot be read")
    code = f"""
import re
from xgdetox.data import load_pairs
n = len(load_pairs({str(tmp_path)!r}).rows)
print(n, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 24_576 and kilobytes / 1024 < 500


def test_dropped_rows_are_logged_even_if_nobody_asks(tmp_path, caplog):
    for load, file in (
        (load_pairs, jsonl(tmp_path / "p.jsonl", [pair(), pair(chosen="")])),
        (
            lambda p: load_prompts(p, "en"),
            jsonl(tmp_path / "q.jsonl", [{"text": "Hi,", "id": 1}] * 2),
        ),
    ):
        caplog.clear()
        load(file)
        assert [r.getMessage() for r in caplog.records] == [
            f"{file.name}: kept 1, dropped 1 ({'empty chosen' if load is load_pairs else 'repeated row'} 1)"
        ]
    caplog.clear()
    load_pairs(jsonl(tmp_path / "whole.jsonl", [pair()]))
    assert not caplog.records


# prompts


def test_prompts_of_the_wrong_language_are_refused(tmp_path):
    file = jsonl(tmp_path / "RTP_LX_DE.json", [{"Prompt": "Bonjour,", "Index": 0, "Locale": "FR"}])
    error = refused(load_prompts, file)
    assert "French" in str(error) and "German" in str(error) and error.line == 1
    assert (
        refused(load_prompts, jsonl(tmp_path / "x.jsonl", [{"text": "Hello,"}])).field == "language"
    )


def test_ids_repeat_only_for_the_same_prompt(tmp_path):
    rows = [{"Prompt": "a", "Index": 1}, {"Prompt": "a", "Index": "1"}, {"Prompt": "a", "Index": 2}]
    loaded = load_prompts(jsonl(tmp_path / "RTP_LX_EN.json", rows))
    assert (
        loaded.rows["prompt_id"][:] == ["1", "2"]
        and loaded.report.dropped == {"repeated row": 1}
        and loaded.report.notes
    )
    error = refused(
        load_prompts,
        jsonl(
            tmp_path / "RTP_LX_FR.json", [{"Prompt": "a", "Index": 1}, {"Prompt": "b", "Index": 1}]
        ),
    )
    assert (error.line, error.field) == (2, "prompt_id")


def test_empty_prompt_and_bad_annotation_name_line_and_field(tmp_path):
    assert (
        e := refused(
            load_prompts, jsonl(tmp_path / "RTP_LX_EN.json", [{"Prompt": "a"}, {"Prompt": "  "}])
        )
    ).line == 2 and e.field == "Prompt"
    assert (
        refused(
            load_prompts,
            jsonl(
                tmp_path / "RTP_LX_IT.json", [{"Prompt": "a", "Annotations": {"Toxicity": "high"}}]
            ),
        ).field
        == "Toxicity"
    )
    assert (
        refused(load_prompts, jsonl(tmp_path / "RTP_LX_ES.json", [{"prompts": "a"}])).field
        == "Prompt"
    )


def test_polyglotoxicityprompts_parquet(tmp_path):
    from datasets import Dataset

    Dataset.from_dict(
        {
            "text": ["Guten Tag,", "Na,"],
            "meta_data": [{"lang": "de"}] * 2,
            "toxicity": [0.1, None],
            "perspective": [{"x": 1}] * 2,
        }
    ).to_parquet(tmp_path / "small-00000.parquet")
    loaded = load_prompts(tmp_path / "small-00000.parquet")
    assert loaded.rows["language"][:] == ["de", "de"] and loaded.rows["toxicity"][:] == [0.1, None]


def test_limit_stops_reading(tmp_path):
    file = jsonl(tmp_path / "RTP_LX_EN.json", [{"Prompt": "a"}] + [{"Prompt": "b"}])
    file.write_text(file.read_text() + "broken\n")
    assert len(load_prompts(file, limit=2).rows) == 2


def test_empty_files_keep_their_columns(tmp_path):
    assert load_prompts(jsonl(tmp_path / "RTP_LX_EN.json", [])).rows.column_names == [
        "prompt_id",
        "prompt",
        "language",
    ]
    assert load_pairs(jsonl(tmp_path / "p.jsonl", [])).rows.features["prompt"].dtype == "string"


def test_two_files_of_one_language_are_refused_but_the_tables_spelling_wins(tmp_path):
    for name in ("RTP_LX_ZH-Hans.json", "rtp_lx_zh.jsonl"):
        (tmp_path / name).touch()
    assert find_prompt_files(tmp_path)["zh"].name == "RTP_LX_ZH-Hans.json"
    (tmp_path / "RTP_LX_zh-CN.json").touch()
    (tmp_path / "RTP_LX_ZH-Hans.json").unlink()
    assert "both" in str(refused(find_prompt_files, tmp_path))


# parallel


LAYOUTS = {
    "ntrex": {
        "newstest2019-src.eng.txt": "One\nTwo\n",
        f"newstest2019-ref.{LANGUAGES['de'].ntrex}.txt": "Eins\nZwei\n",
    },
    "tatoeba": {"tatoeba.deu-eng.deu": "Eins\nZwei\n", "tatoeba.deu-eng.eng": "One\nTwo\n"},
    "table": {"tatoeba.de-en.tsv": "line\tde\ten\n1\tEins\tOne\n2\tZwei\tTwo\n"},
    "lines": {"de.txt": "Eins\nZwei\n", "en.txt": "One\nTwo\n"},
    "wide": {
        "ntrex.17way.tsv": "line\tdoc\tDE\ten\tzh-hans\n1\td\tEins\tOne\t一\n2\td\tZwei\tTwo\t二\n"
    },
}


def write_layout(folder, name):
    "The folder, where the files of that layout now stand."
    for file, text in LAYOUTS[name].items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_parallel_layouts(tmp_path, name):
    loaded = load_parallel(write_layout(tmp_path, name), "de")
    assert loaded.rows["text"][:] == ["Eins", "Zwei"]
    assert loaded.rows["english"][:] == ["One", "Two"]
    if name not in ("table", "wide"):
        assert "Swedish" in str(refused(load_parallel, tmp_path, "sv"))


def test_columns_and_ids_of_parallel_tables(tmp_path):
    write_layout(tmp_path, "wide")
    assert load_parallel(tmp_path, "zh").rows["id"][:] == ["1", "2"]
    assert "column" in str(refused(load_parallel, tmp_path / "ntrex.17way.tsv", "sv"))
    (tmp_path / "keyed.csv").write_text("id,de,en\n7,Eins,One\n")
    assert load_parallel(tmp_path / "keyed.csv", "de").rows["id"][:] == ["7"]
    assert "Indonesian" in str(refused(load_parallel, tmp_path / "keyed.csv", "id"))
    (tmp_path / "indonesian.csv").write_text("id,en\nSatu,One\n")
    satu = {"id": ["1"], "text": ["Satu"], "english": ["One"]}
    assert load_parallel(tmp_path / "indonesian.csv", "id").rows[:] == satu


@pytest.mark.parametrize(
    "beside, asked, left_out",
    [
        ("de.txt en.txt en-th.tsv", None, "en-th.tsv (its name tells none of our languages)"),
        ("de.txt en.txt notes.csv.gz", None, "notes.csv.gz (its name tells"),
        ("de.txt fr.txt en.txt", ["de"], "fr.txt (not asked for)"),
        ("tatoeba.de-en.tsv tatoeba.th-en.tsv", None, "tatoeba.th-en.tsv (its name tells"),
        ("tatoeba.de-en.tsv tatoeba.fr-en.tsv", ["de"], "tatoeba.fr-en.tsv (not asked for)"),
        ("tatoeba.deu-eng.deu tatoeba.deu-eng.eng", None, ""),
        ("ntrex.17way.tsv", None, ""),
    ],
)
def test_files_beside_parallel_sentences_are_read_or_named(
    tmp_path, capsys, beside, asked, left_out
):
    from xgdetox.cli.inputs import PARALLEL_FILE, parallel_of, say_left_out

    for name in beside.split():
        (tmp_path / name).touch()
    say_left_out(tmp_path, PARALLEL_FILE, parallel_of(tmp_path, asked), asked)
    said = capsys.readouterr().out
    assert left_out in said and bool(said) == bool(left_out) and said.count("\n") <= 1
    assert find_parallel_files(tmp_path, ["sv"]) in ([], [tmp_path / "ntrex.17way.tsv"])


def test_rows_that_do_not_match_are_refused_and_empty_ones_reported(tmp_path):
    (tmp_path / "en.txt").write_text("One\nTwo\nThree\n")
    (tmp_path / "de.txt").write_text("Eins\n\n")
    assert refused(load_parallel, tmp_path, "de").line == 3
    (tmp_path / "de.txt").write_text("Eins\n\nDrei\n")
    loaded = load_parallel(tmp_path, "de")
    assert loaded.rows["id"][:] == ["0", "2"] and loaded.report.dropped == {
        "empty in one language": 1
    }


def entry(text, index, place=None) -> dict:
    "A row of RTP-LX's scoring files; `place` is the file of RealToxicityPrompts that it was cut from."
    metadata = {"Filename": place, "Begin": "0", "End": "9"}
    own = {"Prompt": text, "Index": index}
    return {
        "Prompt": text,
        "OriginalEntry": own | ({"OriginalMetadata": metadata} if place else {}),
    }


@pytest.fixture
def rtp_lx(tmp_path):
    "RTP-LX in English, German and Indonesian: scoring files in s/, prompts in p/."
    german = [("C", "c"), ("K", None), ("A", "a"), ("A2", "a")]
    scoring = {
        "gpt4_results_EN": [entry("NA", i, place) for i, place in enumerate("abc")],
        "acs_results_EN": [entry("NA", i) for i in range(3)],
        "acs_results_DE": [entry(x, str(i), place) for i, (x, place) in enumerate(german)],
        "acs_results_ID": [entry("Tiga", 0, "c")],
    }
    prompts = {"EN": ["prompt a", "prompt b", "prompt c"], "DE": "CKAZ", "ID": ["Tiga"]}
    for name, rows in scoring.items():
        jsonl(tmp_path / f"s/{name}.json", rows)
    for name, texts in prompts.items():
        rows = [{"Prompt": text, "Index": i} for i, text in enumerate(texts)]
        jsonl(tmp_path / f"p/RTP_LX_{name}.json", rows)
    return tmp_path


def test_align_reports_what_is_not_shared(rtp_lx):
    aligned = align_rtp_lx(rtp_lx / "s", rtp_lx / "p", ["en", "de"])
    assert aligned.rows[:] == {
        "place": ["a:0-9", "c:0-9"],
        "de": ["A", "C"],
        "en": ["prompt a", "prompt c"],
    }
    assert aligned.report.dropped == {"not in every language": 1}
    assert aligned.report.notes == {
        "de without an English source": 1,
        "de place named again": 1,
    }


def test_a_folder_that_holds_both_kinds_of_file_as_the_originals_clone_does(rtp_lx):
    german = load_parallel(rtp_lx, "de")
    assert german.rows["text"][:] == ["A", "C"]
    assert german.rows["english"][:] == ["prompt a", "prompt c"]
    assert german.report.dropped == {"not in every language": 1}
    assert load_parallel(rtp_lx, "en").rows["text"][:] == ["prompt a", "prompt b", "prompt c"]


def test_indonesian_is_called_as_keys_are(rtp_lx):
    aligned = align_rtp_lx(rtp_lx / "s", rtp_lx / "p", ["en", "id"])
    assert aligned.rows[:] == {"place": ["c:0-9"], "en": ["prompt c"], "id": ["Tiga"]}
    side_by_side = {"id": ["c:0-9"], "text": ["Tiga"], "english": ["prompt c"]}
    assert load_parallel(rtp_lx, "id").rows[:] == side_by_side


def test_align_needs_english_texts_and_every_language(rtp_lx):
    assert "English" in str(refused(align_rtp_lx, rtp_lx / "s", None, ["en", "de"]))
    assert "Swedish" in str(refused(align_rtp_lx, rtp_lx / "s", rtp_lx / "p", ["sv"]))


# labelled


LABELLED = {
    "kaggle": ("id,comment_text,toxic,severe_toxic\n0,a,0,0\n1,b,1,1\n", [0, 1]),
    "plain": ("text,label\na,0\nb,1.0\n", [0, 1]),
    "hatecheck": ("functionality,test_case,label_gold\nf,a,non-hateful\nf,b,hateful\n", [0, 1]),
    "surge": ("text,is_toxic\na,Not Toxic\nb,Toxic\n", [0, 1]),
    "beep": ("comments,bias,hate\na,none,none\nb,none,offensive\nc,x,hate\n", [0, 1, 1]),
    "mlma": ("tweet,sentiment\na,normal\nb,offensive_normal\n", [0, 1]),
    "told": ("text,homophobia,insult\na,0.0,1.0\nb,0.0,2.0\n", [0, 1]),
    "paradetox": ("toxic,neutral1,neutral2,neutral3\nb,a,,\n", [1, 0]),
    "inspection": ("text,Not Toxic,Hard to Say,Toxic,Very Toxic\na,2,0,0,0\nb,0,0,1,1\n", [0, 1]),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_every_format(tmp_path, name):
    text, labels = LABELLED[name]
    (tmp_path / f"{name}.csv").write_text(text)
    assert load_labelled(tmp_path / f"{name}.csv").rows["label"][:] == labels


def test_columns_that_are_kept_beside_a_label(tmp_path):
    (tmp_path / "hatecheck.csv").write_text(LABELLED["hatecheck"][0])
    loaded = load_labelled(tmp_path / "hatecheck.csv", keep=["functionality"])
    assert loaded.rows["functionality"][:] == ["f", "f"]


def test_what_is_no_label_is_refused_and_not_quoted(tmp_path):
    (tmp_path / "bad.csv").write_text("text,label\na,maybe\n")
    error = refused(load_labelled, tmp_path / "bad.csv")
    assert error.line == 2 and error.field == "label" and "maybe" not in str(error)


# masking


def test_mask_hides_whole_words_in_any_case_and_parts_where_there_are_no_spaces():
    assert mask("Dolt! doltish DOLT", ["dolt"]) == "D***! doltish D***"
    assert mask("你这个笨蛋吗", ["笨蛋"]) == "你这个笨*吗" and mask("dolt", "dolt") == "d***"
    assert mask("a.b axb", ["a.b"]) == "a** axb" and mask("text", []) == "text"


def test_errors_do_not_quote_texts(tmp_path):
    secret = "Xyzzyword goes here"
    for name, body in {
        "a.jsonl": f'{{"{secret}": 1}}\n',
        "b.csv": f"{secret},1\nx,y\n",
        "c.jsonl": f'"{secret}"\n',
    }.items():
        (tmp_path / name).write_text(body)
        for load in (load_pairs, load_labelled, lambda p: load_prompts(p, "en")):
            assert "Xyzzy" not in str(refused(load, tmp_path / name))


def test_a_folder_without_data_is_refused(tmp_path):
    assert refused(row_files, tmp_path).path == tmp_path
