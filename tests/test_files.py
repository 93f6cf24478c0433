"Files: errors of one line, whole writing, names that stay in their folder; every text of a CSV file comes back."

import ast
import csv
import gzip
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files import refused

from xgdetox.files import (
    InputError,
    check_name,
    read_csv,
    read_json,
    read_jsonl,
    read_rows,
    write_atomic,
    write_csv,
    write_json,
)
from xgdetox.stats import read_table, write_table

ROOT = Path(__file__).resolve().parents[1]


# errors and writing


def test_error_survives_pickling_and_is_one_line():
    error = pickle.loads(pickle.dumps(InputError("two\nlines", "f", 3, "x", "do this")))
    assert str(error) == "f:3: x: two lines; do this" and error.line == 3


def test_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "t.json"
    write_json(target, {"old": 1})
    code = f"""
import os, signal
from xgdetox.files import write_atomic
with write_atomic({str(target)!r}) as f:
    f.write("half")
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert json.loads(target.read_text()) == {"old": 1}


def test_written_files_have_ordinary_permissions(tmp_path):
    with write_atomic(tmp_path / "a" / "b.bin", "wb") as f:
        f.write(b"1")
    os.umask(mask_ := os.umask(0o022))
    assert (tmp_path / "a" / "b.bin").stat().st_mode & 0o777 == 0o666 & ~mask_


def test_rows_of_anything_that_is_not_there_are_refused(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.txt", "a.parquet"):
        assert "no such file" in str(refused(lambda: list(read_rows(tmp_path / name))))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "Parquet" in str(refused(lambda: list(read_rows(tmp_path / "a.parquet"))))
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    assert "gzip" in str(refused(lambda: list(read_rows(tmp_path / "a.jsonl"))))


# JSON with a key that stands twice

TWICE = {
    '{"a": 1, "a": 2}': (1, "a"),
    '{"a": {"b": 1, "b": 1}}': (1, "b"),
    # the first a is that of another object, and a text may hold braces and quotes
    '{"x": {"a": "}\\"a\\":"},\n "a": [{"a": 1}],\n "b": "a",\n "a": 3}': (4, "a"),
    '[{"a": 1}, {"a": 2,\n"a" : 3}]': (2, "a"),
    '{"\\u0061": 1,\n"a": 2}': (2, "a"),
    '{"a\\nb": 1, "a\\nb": 2}': (1, "a\nb"),
}


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_stands_twice_is_refused_where_it_stands(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    error = refused(read_json, tmp_path / "a.json")
    assert (error.line, error.field) == TWICE[text] and "stands twice" in error.problem
    one_line = '{"a": 1}\n' + text.replace("\n", " ") + "\n"
    if not text.startswith("["):
        (tmp_path / "a.jsonl").write_text(one_line)
        error = refused(lambda path: list(read_jsonl(path)), tmp_path / "a.jsonl")
        assert (error.line, error.field) == (2, TWICE[text][1])


def test_the_same_key_in_several_objects_is_read(tmp_path):
    text = '{"a": {"a": 1, "b": {"a": 2}}, "b": [{"a": 3}, {"a": 4}]}'
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == json.loads(text)


# CSV

ODD = [
    "\r",
    "\n",
    "\r\n",
    "\t",
    "=1+1",
    "+1",
    "-0.5",
    "@SUM(A1)",
    "'=1",
    "''-",
    "'",
    '"',
    '""',
    ",",
    "a,b",
    "\x00",
    "\x0b",
    "\u2028",
    "\x85",
    " =1",
    "ordinary",
    "None",
    "NaN",
    "1",
]
FORMULA = "=+-@\t\r"  # what OWASP names as the beginnings of a formula


def test_every_odd_token_comes_back_and_no_cell_begins_a_formula(tmp_path):
    table = pd.DataFrame(
        dict(token=ODD, logit=[-i / 2 for i in range(len(ODD))], n=range(len(ODD)))
    )
    path = write_csv(tmp_path / "t.csv", table)
    assert (
        read_csv(path)["token"].tolist() == ODD
        and read_csv(path).logit.tolist() == table.logit.tolist()
    )
    with open(path, newline="", encoding="utf-8") as f:
        rows = list(csv.reader(f))  # another reader, of the standard library
    assert [len(r) for r in rows] == [3] * (len(ODD) + 1)
    assert not [r[0] for r in rows[1:] if r[0] and r[0][0] in FORMULA]
    assert [r[1] for r in rows[1:]] == [
        str(-i / 2) for i in range(len(ODD))
    ]  # numbers are not touched


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8)
)
def test_any_text_comes_back(tmp_path_factory, texts):
    path = write_csv(
        tmp_path_factory.mktemp("t") / "t.csv", dict(text=texts, other=["x"] * len(texts))
    )
    assert read_csv(path, dtype=dict(text=str)).text.tolist() == texts


def test_a_tidy_table_with_formulas_comes_back(tmp_path):
    rows = [
        dict(
            model="=cmd|' /C calc'!A0",
            language="de",
            metric="emt",
            value=-0.5,
            low=-1.0,
            high=float("nan"),
            n=3,
            reason="-",
        ),
        dict(model="", value=float("nan")),
    ]
    found = read_table(write_table(pd.DataFrame(rows), tmp_path / "t.csv"))
    assert (
        found.model.tolist() == ["=cmd|' /C calc'!A0", ""]
        and found.reason.fillna("").tolist() == ["-", ""]
        and found.value[0] == -0.5
    )
    assert (
        (tmp_path / "t.csv")
        .read_text()
        .splitlines()[1]
        .startswith("'=cmd|' /C calc'!A0,,,de,emt,-0.5,-1.0,,3")
    )


def test_one_column_with_an_empty_cell_keeps_its_rows(tmp_path):
    assert (
        len(read_csv(write_csv(tmp_path / "a.csv", dict(a=["x", "", "y"])), skip_blank_lines=False))
        == 3
    )
    assert len(read_csv(write_csv(tmp_path / "b.csv", dict(b=[1.0, float("nan")])))) == 2


def test_nothing_else_of_the_package_writes_csv():
    "One writer: a `to_csv` or a csv.writer anywhere else would write a carriage return that is read as a new row."
    for path in (ROOT / "xgdetox").rglob("*.py"):
        calls = [
            n
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Attribute) and n.attr in ("to_csv", "writer", "DictWriter")
        ]
        assert len(calls) <= (path.name == "files.py"), path.name
    for page in sorted((ROOT / "nbs").rglob("*.ipynb")):
        assert not re.search(r"csv\.(Dict)?[wW]riter\(", page.read_text(encoding="utf-8")), (
            page.name
        )


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "..",
        ".",
        "",
        "a b",
        "a/b",
        "a\\b",
        "a$(touch x)",
        "a;b",
        "a'b",
        'a"b',
        "a\nb",
        "x\n",
        "-rf",
        "a*",
        "~",
        "x" * 101,
    ],
)
def test_names_that_leave_the_folder_or_break_a_command_are_refused(name):
    with pytest.raises(InputError, match="^name: ") as refused:
        check_name(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mgpt", "mGPT-1.3b_seed0", "a.b", "...", "größe", "0"])
def test_plain_names_are_taken(name):
    assert check_name(name) == name
