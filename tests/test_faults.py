"""Every kind of broken input ends in exit code 2 with one line and no output, or in 0 with the right result.

`breaking.py` makes the inputs and breaks them; here hypothesis chooses what to break. The long profile is `slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from xgdetox.files import InputError, parse_yaml, read_yaml

import breaking

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    return breaking.make_workplace(tmp_path_factory.mktemp("faults") / "here")


@st.composite
def broken_file(draw, here):
    "A command, one of the files that it reads, a way to break it, and a number that the way draws from."
    command = draw(st.sampled_from(sorted(breaking.COMMANDS)))
    file = draw(st.sampled_from(breaking.files_of(command, here)))
    way = draw(st.sampled_from(breaking.WAYS[file.suffix]))
    return command, str(file.relative_to(here)), way, draw(st.integers(0, 10**6))


def number_cases():
    return sorted(
        (command, flag) for command, one in breaking.COMMANDS.items() for flag in one.numbers
    )


def chosen(check, case, examples: int, start: int):
    "Run `check` on as many cases as asked for, always the same ones for one `start`."
    quiet = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    few = settings(max_examples=examples, phases=[Phase.generate], **quiet)
    few(seed(start)(given(case)(check)))()


def check_files(here, examples: int, start: int = 0):
    def check(case):
        command, file, way, salt = case
        fault, said = breaking.try_file(command, here, file, way, salt)
        assert not fault, f"{command}: {file} {way.__name__} {salt}: {fault}\n{said[-2000:]}"

    chosen(check, broken_file(here), examples, start)


def check_numbers(here, examples: int, start: int = 0):
    def check(case):
        (command, flag), value = case
        fault, said = breaking.try_number(command, here, flag, value)
        assert not fault, f"{command} --{flag}={value}: {fault}\n{said[-2000:]}"

    pair = st.tuples(st.sampled_from(number_cases()), st.sampled_from(breaking.NUMBERS))
    chosen(check, pair, examples, start)


def test_a_broken_file_never_passes_in_silence(workplace):
    check_files(workplace, 25)


def test_a_number_without_sense_is_refused(workplace):
    check_numbers(workplace, 30)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, 7))
def test_many_broken_files(workplace, start):
    check_files(workplace, 100, start)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, 4))
def test_many_numbers(workplace, start):
    check_numbers(workplace, 100, start)


def test_the_unbroken_workplace_works(workplace, tmp_path):
    "What is broken below is whole before: each command ends with 0 and leaves something."
    for command in ("toxicity", "retrieve-tsv", "status", "value-vectors"):
        out = tmp_path / command
        code, _, err = breaking.call(*breaking.words_of(command, workplace, out))
        assert code == 0, (command, err)
        assert command == "status" or breaking.left_behind(out), command


# ---- the one YAML reader

YAML_FAULTS = {
    "a: 1\nb: 2\na: 3\n": (":3: a: stands twice, in lines 1 and 3", None),
    "a: {b: 1, 'b': 2}\n": (":1: a.b: stands twice, in lines 1 and 1", None),
    "a:\n  - x: 1\n    x: 1\n": (":3: a.x: stands twice, in lines 2 and 3", None),
    "a: !!python/object/apply:os.system [ls]\n": (
        "has the tag tag:yaml.org,2002:python/object/apply:os.system",
        None,
    ),
    "a: !mine 3\n": (":1: a: has the tag !mine", None),
    "a: [1, 2\n": ("not YAML", None),
    "a: &x [*x]\n": ("is an alias of what it stands in", None),
    'a: "\\ud800"\n': ("half a character", None),
    "[" * 3000: ("nested too deep", None),
    "a: " + "9" * 5000: ("too many digits", None),
}


@pytest.mark.parametrize("text", YAML_FAULTS, ids=lambda t: t[:20])
def test_yaml_that_is_refused(tmp_path, text):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InputError) as e:
        read_yaml(tmp_path / "f.yaml")
    assert YAML_FAULTS[text][0] in str(e.value) and "\n" not in str(e.value) and e.value.remedy
    with pytest.raises(InputError, match="--set x"):
        parse_yaml(text, field="--set x")


def test_yaml_that_is_read():
    assert parse_yaml("{a: 1e-5, b: 1.5e3, c: .5e1, d: 2024-01-01, e: no, f: null, g: '1e5'}") == {
        "a": 1e-5,
        "b": 1500.0,
        "c": 5.0,
        "d": "2024-01-01",
        "e": False,
        "f": None,
        "g": "1e5",
    }
    assert parse_yaml("a: &x {k: 1}\nb: {<<: *x, j: 2}") == {"a": {"k": 1}, "b": {"k": 1, "j": 2}}
    assert parse_yaml("") is None


def few_aliases_of_many():
    rows = ["x0: &x0 [1,1,1,1,1,1,1,1,1,1]"]
    rows += [f"x{k}: &x{k} [{','.join([f'*x{k - 1}'] * 10)}]" for k in range(1, 9)]
    return "\n".join(rows)


def test_aliases_that_grow_without_end():
    with pytest.raises(InputError, match="more than 1,000,000 values"):
        parse_yaml(few_aliases_of_many())


@pytest.mark.parametrize("kind", ["grid", "recipe", "panel"])
def test_a_key_twice_in_every_file(tmp_path, fails, kind):
    "The last one would win without a word."
    file = tmp_path / "f.yaml"
    texts = {
        "grid": "models: {m: {path: world}}\nprompts: 3\nprompts: 4\n",
        "recipe": "loss: ipo\nbeta: 0.1\nbeta: 0.2\n",
        "panel": "en: lexicon:world\nde: lexicon:world\nen: lexicon:world-control\n",
    }
    file.write_text(texts[kind])
    words = {
        "grid": ["status", file],
        "recipe": ["train", "--model", "world", "--recipe", file, "--output-dir", tmp_path / "o"],
        "panel": [
            "calibrate",
            "--labelled",
            "world",
            "--scorer",
            f"panel:{file}",
            "--output",
            tmp_path / "c.json",
        ],
    }
    line = fails(*words[kind])
    assert f"{file}:3: " in line and "stands twice, in lines " in line
    assert [p.name for p in tmp_path.iterdir()] == ["f.yaml"]
