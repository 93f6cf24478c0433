"CSV files: every text comes back as it was, no spreadsheet runs one, and numbers stay numbers; names that stay in their folder."

import ast
import csv
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgdetox.files import InputError, check_name, read_csv, write_csv
from xgdetox.stats import read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
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
    for path in (ROOT / "xgdetox").glob("*.py"):
        calls = [
            n
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Attribute) and n.attr in ("to_csv", "writer", "DictWriter")
        ]
        assert len(calls) <= (path.name == "data.py"), path.name
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
