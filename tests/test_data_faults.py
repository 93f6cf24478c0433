"""Files as people have them: with byte order marks, Windows line ends, zipped, cut off, mis-encoded, doubled.

Each loader loads what is right or says what is wrong."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xgdetox.files import InputError, read_json
from xgdetox.rows import Loaded
from xgdetox.data import (
    align_rtp_lx,
    find_prompt_files,
    load_labelled,
    load_lexicon,
    load_pairs,
    load_parallel,
    load_prompts,
)
from xgdetox.languages import normalise_language
from xgdetox.datasets import paper_numbers

letters = st.text(
    st.characters(
        codec="utf-8",
        exclude_characters="\0\ufeff\r\n\t",
        exclude_categories=("Cs", "Cc", "Zl", "Zp"),
    ),
    min_size=1,
    max_size=30,
).filter(lambda t: t.strip() == t and not t.startswith(('"', "[", "{")))
many = st.lists(letters, min_size=1, max_size=6, unique=True)
quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def lines(rows) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def table(header, rows) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def DIALOGUE(rows):
    return [p.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:") for p in rows["prompt"]]


# loader -> (file name, its content for some texts, the call, the texts of what it returns)
FORMATS = {
    "dpo_toxic pairs": (
        "split_0.jsonl",
        lambda ts: lines(
            {
                "prompt_text": t,
                "unpert_gen_text": " so",
                "pert_gen_text": " not",
                "gold_input_ids": [1],
            }
            for t in ts
        ),
        load_pairs,
        "prompt",
    ),
    "prompt, chosen, rejected": (
        "hf.jsonl",
        lambda ts: lines({"prompt": t, "chosen": " so", "rejected": " not"} for t in ts),
        load_pairs,
        "prompt",
    ),
    "dialogues": (
        "hh.jsonl",
        lambda ts: lines(
            {
                "chosen": f"\n\nHuman: {t}\n\nAssistant: so",
                "rejected": f"\n\nHuman: {t}\n\nAssistant: not",
            }
            for t in ts
        ),
        load_pairs,
        DIALOGUE,
    ),
    "RTP-LX completions": (
        "acs_results_benign_DE.json",
        lambda ts: lines(
            {"BenignCompletion": "so", "OriginalEntry": {"Prompt": t, "Completion": "not"}}
            for t in ts
        ),
        load_pairs,
        "prompt",
    ),
    "table of pairs": (
        "hf.csv",
        lambda ts: table(["prompt", "chosen", "rejected"], [[t, " so", " not"] for t in ts]),
        load_pairs,
        "prompt",
    ),
    "RTP-LX": (
        "RTP_LX_DE.json",
        lambda ts: lines(
            {"Prompt": t, "Index": i, "Annotations": {"Toxicity": 1.5}} for i, t in enumerate(ts)
        ),
        load_prompts,
        "prompt",
    ),
    "RealToxicityPrompts": (
        "rtp.jsonl",
        lambda ts: lines(
            {"filename": f"{i}.txt", "begin": 0, "end": 1, "prompt": {"text": t, "toxicity": 0.5}}
            for i, t in enumerate(ts)
        ),
        load_prompts,
        "prompt",
    ),
    "PolygloToxicityPrompts": (
        "ptp.jsonl",
        lambda ts: lines({"text": t, "meta_data": {"lang": "de"}, "toxicity": 0.5} for t in ts),
        load_prompts,
        "prompt",
    ),
    "list of prompts": (
        "challenge.json",
        lambda ts: json.dumps(ts, ensure_ascii=False, indent=1),
        lambda p: load_prompts(p, "en"),
        "prompt",
    ),
    "plain text": (
        "mine.txt",
        lambda ts: "".join(t + "\n" for t in ts),
        lambda p: load_prompts(p, "fr"),
        "prompt",
    ),
    "Jigsaw": (
        "train.csv",
        lambda ts: table(
            ["id", "comment_text", "toxic", "obscene"], [[i, t, i % 2, 0] for i, t in enumerate(ts)]
        ),
        load_labelled,
        "text",
    ),
    "text, label": (
        "plain.csv",
        lambda ts: table(["text", "label"], [[t, i % 2] for i, t in enumerate(ts)]),
        load_labelled,
        "text",
    ),
    "HateCheck": (
        "hatecheck.csv",
        lambda ts: table(
            ["functionality", "test_case", "label_gold"], [["f", t, "hateful"] for t in ts]
        ),
        load_labelled,
        "text",
    ),
    "BEEP!": (
        "beep.csv",
        lambda ts: table(["comments", "bias", "hate"], [[t, "none", "offensive"] for t in ts]),
        load_labelled,
        "text",
    ),
    "MLMA": (
        "mlma.csv",
        lambda ts: table(["tweet", "sentiment"], [[t, "normal"] for t in ts]),
        load_labelled,
        "text",
    ),
    "ToLD-Br": (
        "told.csv",
        lambda ts: table(["text", "homophobia", "insult"], [[t, "0.0", "2.0"] for t in ts]),
        load_labelled,
        "text",
    ),
    "Surge": (
        "surge.csv",
        lambda ts: table(["text", "is_toxic"], [[t, "Toxic"] for t in ts]),
        load_labelled,
        "text",
    ),
    "inspection-ai": (
        "ja.csv",
        lambda ts: table(
            ["text", "Not Toxic", "Hard to Say", "Toxic", "Very Toxic"],
            [[t, 0, 0, 1, 1] for t in ts],
        ),
        load_labelled,
        "text",
    ),
    "wide table": (
        "ntrex.tsv",
        lambda ts: "".join(
            "\t".join(r) + "\n"
            for r in [["line", "de", "en"], *([str(i), t, "One"] for i, t in enumerate(ts))]
        ),
        lambda p: load_parallel(p, "de", raw=True),
        "text",
    ),
    "upstream's 200": (
        "dpo_toxicity_pairwise_de_200.jsonl",
        lambda ts: lines({"Prompt": t} for t in ts),
        lambda p: load_parallel(p.parent, "de", raw=True),
        "text",
    ),
    "Tatoeba": (
        "tatoeba.deu-eng.deu",
        lambda ts: "".join(t + "\n" for t in ts),
        lambda p: load_parallel(p.parent, "de", raw=True),
        "text",
    ),
    "Tatoeba table": (
        "tatoeba.de-en.tsv",
        lambda ts: "".join(
            "\t".join(r) + "\n"
            for r in [["line", "de", "en"], *([str(i), t, "One"] for i, t in enumerate(ts))]
        ),
        lambda p: load_parallel(p.parent, "de", raw=True),
        "text",
    ),
    "a file a language": (
        "de.txt",
        lambda ts: "".join(t + "\n" for t in ts),
        lambda p: load_parallel(p.parent, "de", raw=True),
        "text",
    ),
    "NTREX": (
        "newstest2019-ref.deu.txt",
        lambda ts: "".join(t + "\n" for t in ts),
        lambda p: load_parallel(p.parent, "de", raw=True),
        "text",
    ),
    "word list": (
        "de.txt",
        lambda ts: "".join(t + "\n" for t in ts),
        lambda p: load_lexicon(p.parent, "de"),
        None,
    ),
}
ENGLISH = {
    "upstream's 200": (
        "dpo_toxicity_pairwise_en_200.jsonl",
        lambda n: lines({"Prompt": "One"} for _ in range(n)),
    ),
    "NTREX": ("newstest2019-src.eng.txt", lambda n: "One\n" * n),
    "Tatoeba": ("tatoeba.deu-eng.eng", lambda n: "One\n" * n),
    "a file a language": ("en.txt", lambda n: "One\n" * n),
}
BY_LINE = (
    "NTREX",
    "Tatoeba",
    "a file a language",
    "plain text",
    "word list",
    "wide table",
    "Tatoeba table",
)  # nothing in them says that a line is whole
# upstream's file names are fixed, so gzip there is told by content alone


def put(folder: str, kind: str, texts: list[str], content: bytes) -> Path:
    if kind in ENGLISH:
        (Path(folder) / ENGLISH[kind][0]).write_text(ENGLISH[kind][1](len(texts)))
    path = Path(folder) / FORMATS[kind][0]
    path.write_bytes(content)
    return path


def texts_of(kind: str, found) -> list[str]:
    field = FORMATS[kind][3]
    return (
        found
        if field is None
        else field(found.rows)
        if callable(field)
        else list(found.rows[field])
    )


@pytest.mark.parametrize("kind", FORMATS)
@quick
@given(texts=many, bom=st.booleans(), crlf=st.booleans(), zipped=st.booleans(), blank=st.booleans())
def test_harmless_differences_change_nothing(kind, texts, bom, crlf, zipped, blank):
    content = FORMATS[kind][1](texts)
    if blank and kind not in BY_LINE:
        content += "\n"
    content = (content.replace("\n", "\r\n") if crlf else content).encode(
        "utf-8-sig" if bom else "utf-8"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = FORMATS[kind][2](
            put(folder, kind, texts, gzip.compress(content) if zipped else content)
        )
        assert texts_of(kind, found) == texts
        if isinstance(found, Loaded):
            assert found.report.kept == len(texts) and not found.report.dropped


HALF = '"\\ud83d"'
# a line that is put between others
INSERTED = {
    "a list in a line": b"[1]\n",
    "null": b"null\n",
    "an empty object": b"{}\n",
    "half a character": f'{{"Prompt": {HALF}, "prompt": {HALF}, "text": {HALF}, "prompt_text": {HALF}}}\n'.encode(),
    "deep nesting": b"[" * 20_000 + b"\n",
    "a long number": b'{"text": ' + b"9" * 5_000 + b"}\n",
    "an open quote": b'"open,1\n',
    # more cells than any table here has columns
    "a key that stands twice": b'{"text": "a", "text": "b", "1": 1, "2": 2, "3": 3, "4": 4, "5": 5}\n',
}
# content, place in it -> the harmed content
OF_BYTES = {
    "cut off": lambda content, at: content[:at],
    "a byte lost": lambda content, at: content[:at] + content[at + 1 :],
    "a byte that is not UTF-8": lambda content, at: content[:at] + b"\xff" + content[at:],
    "a NUL": lambda content, at: content[:at] + b"\0" + content[at:],
    "Latin-1": lambda content, at: content.decode().encode("latin-1", "replace") + b"\xe9\n",
    "UTF-16": lambda content, at: content.decode().encode("utf-16"),
    "nothing in it": lambda content, at: b"",
    "old Mac line ends": lambda content, at: content.replace(b"\n", b"\r"),
    "gzip cut off": lambda content, at: gzip.compress(content)[: max(3, at % 40)],
    "gzip damaged": lambda content, at: damaged(bytearray(gzip.compress(content)), at),
}
# lines, number of one -> the harmed lines
OF_LINES = {
    "a line doubled": lambda rows, row: rows[: row + 1] + rows[row:],
    "a line lost": lambda rows, row: rows[:row] + rows[row + 1 :],
    "a blank line": lambda rows, row: rows[:row] + [b"\n"] + rows[row:],
}
HARMS = [*OF_BYTES, *OF_LINES, *INSERTED]


def damaged(zipped: bytearray, at: int) -> bytes:
    "A gzip file with one byte after its header inverted."
    place = at % (len(zipped) - 10) + 10
    zipped[place] ^= 0xFF
    return bytes(zipped)


def harm(content: bytes, how: str, at: int) -> bytes:
    "The content of a file, harmed in one way at one place."
    at %= len(content) + 1
    if how in OF_BYTES:
        return OF_BYTES[how](content, at)
    rows = content.splitlines(keepends=True)
    row = at % len(rows)
    if how in OF_LINES:
        return b"".join(OF_LINES[how](rows, row))
    return b"".join(rows[:row] + [INSERTED[how]] + rows[row:])


def judge(call, path: Path, rows: int):
    "What a loader makes of a harmed file: what can be accounted for, or the one error, with file, place and remedy."
    try:
        found = call(path)
    except InputError as error:
        assert error.remedy and "\n" not in str(error) and str(path.parent) in str(error.path)
        assert error.line is None or error.line >= 1
        assert error.line is not None or error.path != path or "no such" in error.problem
        return error
    if isinstance(found, Loaded):
        assert len(found.rows) == found.report.kept <= rows
        for column in set(found.rows.column_names) & {
            "prompt",
            "chosen",
            "rejected",
            "text",
            "english",
        }:
            assert all(t.strip() for t in found.rows[column])
    return found


@pytest.mark.parametrize("kind", FORMATS)
@settings(quick, max_examples=80)
@given(texts=many, how=st.sampled_from(HARMS), at=st.integers(0, 10_000))
def test_harmed_files_load_what_is_right_or_say_what_is_wrong(kind, texts, how, at):
    with tempfile.TemporaryDirectory() as folder:
        found = judge(
            FORMATS[kind][2],
            put(folder, kind, texts, harm(FORMATS[kind][1](texts).encode(), how, at)),
            len(texts) + 2,
        )
        if not isinstance(found, InputError):
            sound(kind, texts, how, texts_of(kind, found))


def sound(kind: str, texts: list[str], how: str, loaded: list[str]):
    "What is loaded was in the file: no text changed, none invented, none lost but those of a lost line."
    if (
        how in ("a byte lost", "old Mac line ends", "Latin-1")
        or kind in BY_LINE
        and how == "cut off"
    ):
        return  # another text, which nothing tells from a right one
    if kind in BY_LINE and how in INSERTED:
        loaded = [t for t in loaded if t in texts]  # any line is a text there
    assert set(loaded) <= set(texts), (how, loaded)
    if how in ("a line doubled", "a blank line"):
        assert list(dict.fromkeys(loaded)) == texts
    if how in ("cut off", "a line lost"):
        assert [t for t in texts if t in loaded] == loaded


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("how", ["a byte that is not UTF-8", "a NUL", "UTF-16", "gzip cut off"])
def test_some_harms_are_always_refused(kind, how, tmp_path):
    texts = ["eins", "zwei"]
    assert isinstance(
        judge(
            FORMATS[kind][2],
            put(str(tmp_path), kind, texts, harm(FORMATS[kind][1](texts).encode(), how, 7)),
            2,
        ),
        InputError,
    )


def test_the_line_that_is_named_is_the_line_that_is_wrong(tmp_path):
    path = tmp_path / "RTP_LX_DE.json"
    for row in range(5):
        good = [json.dumps({"Prompt": "Na,", "Index": i}) for i in range(5)]
        for bad, field in (
            ("{", None),
            ('{"Prompt": 3}', "Prompt"),
            ('{"Prompt": ""}', "Prompt"),
            ('{"Index": 9}', "Prompt"),
            ('{"Prompt": "Na,", "Annotations": 3}', "Annotations"),
        ):
            path.write_text("\n".join(good[:row] + [bad] + good[row + 1 :]) + "\n")
            with pytest.raises(InputError) as caught:
                load_prompts(path)
            assert (caught.value.line, caught.value.field, caught.value.path) == (
                row + 1,
                field,
                path,
            )


def write_rtp_lx(folder: str, texts: list[str]) -> list[Path]:
    "The files of a small RTP-LX in which German says what English says; the last is not harmed."
    place = lambda i: {"OriginalMetadata": {"Filename": f"{i}.txt", "Begin": "0", "End": "9"}}
    prompts = [{"Prompt": text, "Index": i} for i, text in enumerate(texts)]
    files = {
        "gpt4_results_EN.json": [
            {"OriginalEntry": p | {"Prompt": "NA"} | place(p["Index"])} for p in prompts
        ],
        "acs_results_DE.json": [{"OriginalEntry": p | place(p["Index"])} for p in prompts],
        "RTP_LX_EN.json": prompts,
        "RTP_LX_DE.json": prompts,
    }
    for name, rows in files.items():
        (Path(folder) / name).write_text(lines(rows), "utf-8")
    return [Path(folder) / name for name in files]


@quick
@given(
    texts=st.lists(letters, min_size=2, max_size=5, unique=True),
    how=st.sampled_from(HARMS),
    at=st.integers(0, 10_000),
    which=st.integers(0, 2),
)
def test_alignment_of_harmed_files(texts, how, at, which):
    with tempfile.TemporaryDirectory() as folder:
        file = write_rtp_lx(folder, texts)[which]
        whole = align_rtp_lx(folder, folder, ["en", "de"])
        assert whole.rows["de"][:] == whole.rows["en"][:] == texts
        file.write_bytes(harm(file.read_bytes(), how, at))
        try:
            assert align_rtp_lx(folder, folder, ["en", "de"]).report.kept <= len(texts)
        except InputError as error:
            assert error.remedy and folder in str(error.path)


@quick
@given(st.text(max_size=20))
def test_any_name_of_a_language_is_known_or_refused(name):
    try:
        assert normalise_language(name)
    except InputError as error:
        assert error.remedy


@quick
@given(st.binary(max_size=60))
def test_any_bytes_as_any_file(content):
    with tempfile.TemporaryDirectory() as folder:
        for name, call in (
            ("a.jsonl", load_pairs),
            ("RTP_LX_EN.json", load_prompts),
            ("a.csv", load_labelled),
            ("a.tsv", lambda p: load_parallel(p, "de")),
            ("a.json", read_json),
            ("en.txt", lambda p: load_lexicon(p.parent, "en")),
            ("b.txt", lambda p: load_prompts(p, "en")),
            ("a.parquet", load_pairs),
        ):
            (path := Path(folder) / name).write_bytes(content)
            try:
                call(path)
            except InputError as error:
                assert error.remedy and "\n" not in str(error)


def test_folders_and_missing_things():
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for call in (
            lambda: load_pairs(here),
            lambda: load_pairs(here / "none"),
            lambda: load_prompts(here),
            lambda: load_prompts(here / "none.json", "en"),
            lambda: load_parallel(here, "de"),
            lambda: load_parallel(here / "none", "de"),
            lambda: load_labelled(here),
            lambda: load_labelled(here / "none.csv"),
            lambda: load_lexicon(here / "none", "de"),
            lambda: find_prompt_files(here),
            lambda: find_prompt_files(here / "none"),
            lambda: align_rtp_lx(here),
            lambda: paper_numbers("none"),
        ):
            with pytest.raises(InputError) as caught:
                call()
            assert caught.value.remedy
