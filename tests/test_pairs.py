"Pairs of a model's own: choosing, counts, going on, placebos, style, and what is refused."

import gzip
import json
import math

import numpy as np
import pytest

from xgdetox.files import InputError, read_json
from xgdetox.data import load_pairs
from xgdetox.pairs import (
    Candidate,
    PairSettings,
    choose_prompts,
    make_pairs,
    match_pairs,
)
from xgdetox.style import check_pairs, normalise_style, style_check
from xgdetox.placebos import benign_pairs, shuffle_labels
from xgdetox.scorers.base import Scored, Scorer


class Lengths(Scorer):
    "A judge that finds long texts toxic, and counts what it is asked."

    id, revision, languages = "lengths", "1", ("en", "de")

    def __init__(self, score=lambda text: min(1.0, len(text) / 100)):
        self.asked, self.how = 0, score

    def stream(self, texts, language):
        for text in texts:
            self.asked += 1
            yield [Scored(text, self.how(text))]


@pytest.fixture
def world():
    from xgdetox.world import resolve_data, resolve_model
    from xgdetox.data import find_prompt_files

    return str(resolve_model("world")), find_prompt_files(resolve_data("world", "prompts"), ["en"])[
        "en"
    ]


SMALL = PairSettings(n=4, gap=0.05, max_tokens=12, tolerance=12, shortest=2)


def test_pairs_are_whole_and_a_second_run_asks_nothing(tmp_path, world):
    model, prompts = world
    judge, file = Lengths(), tmp_path / "pairs.jsonl"
    make = lambda: make_pairs(model, prompts, judge, tmp_path, limit=12, settings=SMALL)
    facts, rows = make(), [json.loads(line) for line in open(file)]
    assert facts["pairs"] == len(rows) > 5 and facts["continuations"]["all"] == 48
    assert facts["prompts_with_pairs"] + sum(facts["prompts_without"].values()) == 12
    for r in rows:
        assert r["rejected_score"] - r["chosen_score"] >= 0.05
        assert abs(r["rejected_tokens"] - r["chosen_tokens"]) <= 12
        for side in ("chosen", "rejected"):
            assert r[f"{side}_score"] == min(1.0, len(r[side]) / 100)
    read = load_pairs(tmp_path).rows["chosen"]  # a folder that train reads
    assert list(read) == [r["chosen"] for r in rows]
    before, asked = file.read_bytes(), judge.asked
    file.unlink()
    assert make() == facts and file.read_bytes() == before and judge.asked == asked
    assert read_json(tmp_path / "manifest.json")["judge"] == {"scorer": "lengths", "revision": "1"}


def test_another_seed_takes_other_prompts(tmp_path, world):
    _, prompts = world
    first, again, other = (
        choose_prompts(prompts, "en", limit=10, seed=s)[0]["prompt"].tolist() for s in (0, 0, 1)
    )
    assert first == again != other


def test_matching_by_hand():
    c = lambda text, score, tokens=10: Candidate(text, score, tokens)
    some = [
        c("a", 0.9),
        c("b", 0.8),
        c("c", 0.1),
        c("d", 0.2),
        c("e", math.nan),
        c("f", 0.0, 2),
        c("  ", 0.0),
    ]
    pairs, why = match_pairs(some, gap=0.5, most=2, tolerance=0, shortest=5)
    assert [(x.text, y.text) for x, y in pairs] == [("c", "a"), ("d", "b")] and why == ""
    assert len(match_pairs(some, gap=0.5, most=1)[0]) == 1
    assert match_pairs([c("a", 0.9, 20), c("b", 0.1, 10)], gap=0.5, tolerance=3) == (
        [],
        "lengths do not match",
    )
    assert match_pairs([c("a", 0.9), c("a", 0.9)]) == ([], "fewer than two usable continuations")


def test_rows_of_rtp_lx_and_evaluation_prompts_are_left_out(real_data):
    source_map = real_data / "prompts/rtp_source_map.tsv.gz"
    with gzip.open(source_map, "rt") as file:
        used = {tuple(line.rstrip("\n").split("\t")[3:6]) for line in file}
    rtp, why = choose_prompts(
        real_data / "scores/rtp_en_perspective.jsonl.gz", "en", source_map, above=0.3
    )
    for prompt_id in rtp["prompt_id"]:
        name, _, span = prompt_id.rpartition(":")
        assert (name, *span.split("-")) not in used
    assert why["held back for evaluation"] == 233
    german, why = choose_prompts(real_data / "prompts/RTP_LX_DE.json", "de", source_map)
    assert (
        why["held back for evaluation"] == 500 and len(german) + why.get("repeated text", 0) == 324
    )


@pytest.mark.parametrize(
    "judge, settings, told",
    [
        (Lengths(lambda text: 0.5), SMALL, "gives all .* continuations the same score"),
        (Lengths(lambda text: math.nan), SMALL, "scores none of them"),
        (Lengths(), SMALL._replace(least=10_000), "only .* pairs, 10000 are asked for"),
        (Lengths(), SMALL._replace(gap=1.0), "only 0 pairs, 1 are asked for"),
        (Lengths(), SMALL._replace(n=1), "n: is 1; it must be two"),
        (Lengths(), SMALL._replace(temperature=0), "temperature: is 0"),
        (Lengths(), SMALL._replace(gap=0), "gap: is 0"),
    ],
)
def test_pairs_too_few_or_all_alike(tmp_path, world, judge, settings, told):
    model, prompts = world
    with pytest.raises(InputError, match=told):
        make_pairs(model, prompts, judge, tmp_path / "out", limit=4, settings=settings)
    assert not (tmp_path / "out/pairs.jsonl").exists()


def test_a_language_that_the_judge_has_not(tmp_path, world):
    model, prompts = world
    with pytest.raises(InputError, match="judge: lengths does not judge French; it judges en, de"):
        make_pairs(model, prompts, Lengths(), tmp_path / "out", "fr")
    assert not (tmp_path / "out").exists()


PLACEBO_ROWS = [
    dict(
        prompt=str(i // 2),
        chosen=f"good {i}",
        rejected=f"bad {i}",
        chosen_tokens=i,
        rejected_tokens=-i,
    )
    for i in range(400)
]


def test_shuffled_pairs_are_the_same_pairs_turned():
    rows, mixed = PLACEBO_ROWS, shuffle_labels(PLACEBO_ROWS, seed=3)
    turned = [m["chosen"].startswith("bad") for m in mixed]
    assert 150 < sum(turned) < 250
    assert mixed == shuffle_labels(rows, seed=3) != shuffle_labels(rows, seed=4)
    for i, (m, r, t) in enumerate(zip(mixed, rows, turned)):
        assert {m["chosen"], m["rejected"]} == {r["chosen"], r["rejected"]}
        assert (m["chosen_tokens"] <= 0) == t or not i


def test_benign_pairs_reject_what_another_prompt_chose():
    for b, r in zip(benign_pairs(PLACEBO_ROWS, seed=3), PLACEBO_ROWS):
        assert b["chosen"] == r["chosen"] and b["rejected"].startswith("good")
        assert int(b["rejected"].split()[1]) // 2 != int(b["prompt"])
    with pytest.raises(InputError, match="all pairs have one prompt"):
        benign_pairs(PLACEBO_ROWS[:2])


def test_a_placebo_is_a_command(tmp_path, said):
    file, made, refused = (tmp_path / f"{name}.jsonl" for name in ("pairs", "s", "t"))
    file.write_text("".join(json.dumps(r) + "\n" for r in PLACEBO_ROWS))
    assert said("pairs", "placebo", file, "-o", made, "--seed", "3")[0] == 0
    written = [json.loads(line)["chosen"] for line in open(made)]
    assert written == [m["chosen"] for m in shuffle_labels(PLACEBO_ROWS, seed=3)]
    code, _, err = said("pairs", "placebo", file, "-o", refused, "--kind", "sugar")
    assert code == 2 and "use shuffled or benign" in err and not refused.exists()


def test_style_of_half_marked_pairs_is_told_half_way():
    "Marks on the rejected side of 60 in 100 pairs: right in those 60, a coin's throw elsewhere."
    draw = np.random.default_rng(0)
    word = lambda: "".join(draw.choice(list("abcdefgh"), 8))
    rows = [
        dict(prompt=str(i), chosen=" " + word(), rejected=" " + word() + "!" * (i % 10 < 6))
        for i in range(200)
    ]
    facts = style_check(rows)
    assert (
        facts["accuracy"] == pytest.approx(0.6 + 0.4 * 0.5, abs=0.02)
        and facts["low"] < facts["accuracy"] < facts["high"]
    )
    assert abs(facts["control"] - 0.5) < 0.06 and facts["control_high"] < facts["accuracy"]


def test_the_trap_of_paradetox(real_data):
    file = real_data / "pairwise/paradetox_prefix_pairs_en.jsonl.gz"
    raw, normal = check_pairs(file), check_pairs(file, normalise=True)
    assert raw["low"] > 0.85 and normal["high"] < raw["low"] and raw["control_high"] < 0.55
    rows = load_pairs(file).rows
    tokenised = sum(text.rstrip().endswith(" .") for text in map(normalise_style, rows["rejected"]))
    assert tokenised == 0 < sum(text.rstrip().endswith(" .") for text in rows["rejected"])


def test_check_needs_ten_prompts(tmp_path, said):
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps(dict(prompt=str(i), chosen="a", rejected="b")) + "\n" for i in range(5))
    )
    code, _, err = said("pairs", "check", tmp_path / "few.jsonl")
    assert code == 2 and "5 pairs of 5 prompts are too few" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("make", "--seed", "-1"),
        ("make", "--set", "seed=-1"),
        ("make", "--set", "n=x"),
        ("make", "--set", "n=true"),
        ("make", "--set", "gap=[1]"),
        ("make", "--set", "top_p=7"),
        ("make", "--set", "temperature=.inf"),
        ("make", "--set", "max_tokens=0"),
        ("make", "--set", "normalise=3"),
        ("make", "--device", "mps"),
        ("check", "--seed", "-1"),
        ("placebo", "--seed", "-1"),
        ("placebo", "--seed", "4294967296"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_written(
    fails, tmp_path, words
):
    what, option, value = words
    rest = {
        "make": (
            "--model",
            "world",
            "--judge",
            "lexicon:world",
            "--limit",
            2,
            "--output-dir",
            tmp_path / "o",
        ),
        "check": ("world",),
        "placebo": ("world", "-o", tmp_path / "o"),
    }
    assert value.partition("=")[0].lstrip("-") in fails(
        "pairs", what, *rest[what], option, value
    ) or option in ("--seed", "--device")
    assert not (tmp_path / "o").exists()
