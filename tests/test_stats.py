"Statistics: intervals that cover, exact tests, correlations that agree with scipy, dull input that does no harm."

import itertools
import math
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from xgdetox.files import InputError
from xgdetox.stats import (
    TIDY_COLUMNS,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_share,
    chance,
    combine_seeds,
    compare_groups,
    correlation,
    correlation_p,
    fisher_interval,
    holm,
    paired_difference,
    partial_correlation,
    permutation_test,
    proportion_interval,
    read_table,
    relative_drop,
    tidy,
    why_no_interval,
    write_table,
)

numbers = st.floats(-1e3, 1e3, allow_nan=False) | st.just(math.nan)


def test_tidy_has_the_columns_in_order_and_keeps_extras():
    t = tidy([dict(layer=1, value=0.5), dict(language="zh", value=None)])
    assert (
        list(t.columns) == TIDY_COLUMNS + ["layer"]
        and t.language.tolist() == ["", "zh"]
        and t.value.isna().tolist() == [False, True]
    )
    assert list(tidy([]).columns) == TIDY_COLUMNS and len(tidy([])) == 0


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_comes_back_as_written(tmp_path, suffix):
    t = tidy(
        [
            dict(model="NA", language="no", metric="nan", value=math.nan, seed=0, scorer=""),
            dict(model='b, "c"\nd', value=1 / 3, n=3),
        ]
    )
    back = read_table(write_table(t, tmp_path / "deep" / f"t.{suffix}"))
    pd.testing.assert_frame_equal(back, t)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [f"t.{suffix}"]


@pytest.mark.parametrize(
    "text, word",
    [
        ("a,b\n1,2\n", "column missing"),
        ("", "not a tidy table"),
        (
            ",".join(TIDY_COLUMNS) + "\n1,2,3,4,5,6,7,8,9,10\n1,2,3,4,5,6,7,8,9,10,11\n",
            "not a tidy",
        ),
        (",".join(TIDY_COLUMNS) + "\na,b,0,de,emt,much,,,3,\n", "much"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path, text, word):
    p = tmp_path / "t.csv"
    p.write_text(text)
    with pytest.raises(InputError) as e:
        read_table(p)
    assert word in str(e.value) and str(p) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(InputError, match="no such table"):
        read_table(tmp_path / "none.csv")


def test_bootstrap_covers_about_95_of_100():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        _, low, high = bootstrap_mean(rng.exponential(size=60), n_resamples=400, seed=i)
        hits += low <= 1 <= high
    assert 0.88 < hits / 200 <= 1


def test_bootstrap_is_repeatable_and_leaves_the_global_generator_alone():
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    x = np.arange(20.0)
    assert bootstrap_mean(x, seed=1) == bootstrap_mean(x, seed=1) != bootstrap_mean(x, seed=2)
    assert (np.random.get_state()[1] == state).all()


@given(arrays(float, st.integers(0, 12), elements=numbers))
@settings(max_examples=60, deadline=None)
def test_nothing_crashes_on_dull_or_missing_values(x):
    value, low, high = bootstrap_mean(x, n_resamples=50)
    there = x[~np.isnan(x)]
    assert math.isnan(value) == (len(there) == 0) and math.isnan(low) == bool(why_no_interval(x))
    d = paired_difference(x, x[::-1], n_resamples=50)
    r = relative_drop(np.abs(x), np.abs(x[::-1]), n_resamples=50)
    c = correlation(x, x[::-1], n_resamples=50)
    assert (
        d["n"] == r["n"] == c["n"]
        and (not math.isnan(c["r"]) or c["reason"])
        and (not math.isnan(r["value"]) or r["reason"])
    )
    partial_correlation(x, x[::-1], np.arange(len(x)), n_resamples=20)


def test_other_statistics_and_the_reason():
    assert bootstrap_mean([1, 2, 9], np.median)[0] == 2
    assert (
        "2" in why_no_interval([1])
        and "equal" in why_no_interval([1, 1, math.nan])
        and why_no_interval([1, 2]) == ""
    )


def test_sign_flip_test_is_exact_and_right_under_the_null():
    assert paired_difference([0] * 8, [1, 2, 3, 4, 5, 6, 7, 8])["p"] == pytest.approx(2 / 2**8)
    rng = np.random.default_rng(1)
    ps = [
        paired_difference(rng.normal(size=30), rng.normal(size=30), n_resamples=300, seed=i)["p"]
        for i in range(100)
    ]
    assert 0.0 < np.mean(np.array(ps) < 0.1) < 0.25
    with pytest.raises(ValueError, match="length"):
        paired_difference([1, 2], [1])


def test_sign_flip_test_is_the_count_over_all_patterns():
    d = np.random.default_rng(6).normal(0.3, 1, 9)
    signs = np.array(list(itertools.product([-1, 1], repeat=9)))
    means = (signs * d).mean(1)
    expected = min(
        1, 2 * min((means <= d.mean() + 1e-12).mean(), (means >= d.mean() - 1e-12).mean())
    )
    assert paired_difference(np.zeros(9), d)["p"] == pytest.approx(expected)


def test_intervals_agree_with_a_bootstrap_written_by_hand():
    rng = np.random.default_rng(7)
    b = rng.uniform(0.2, 1, 60)
    a = b * rng.uniform(0, 1, 60)
    i = np.random.default_rng(8).integers(0, 60, (6000, 60))
    expected = np.quantile(1 - a[i].mean(1) / b[i].mean(1), [0.025, 0.975])
    d = relative_drop(b, a, n_resamples=6000)
    assert (d["low"], d["high"]) == pytest.approx(tuple(expected), abs=0.01)


def test_relative_drop_is_the_ratio_of_means_and_pairs_prompts():
    rng = np.random.default_rng(2)
    b = rng.uniform(0.2, 1, 200)
    a = 0.5 * b + rng.normal(0, 0.01, 200)
    d = relative_drop(b, a)
    assert (
        d["value"] == pytest.approx(1 - a.mean() / b.mean()) and d["high"] - d["low"] < 0.02
    )  # pairing removes the prompts' spread
    assert math.isnan(relative_drop([0, 0], [0, 1])["value"]) and relative_drop([1, 2], [0.5, 1])[
        "reason"
    ].endswith("same ratio")
    assert relative_drop([1, math.nan, 3], [1, 0, 1])["n"] == 2


def test_holm_agrees_with_the_definition():
    p = np.array([0.001, 0.02, 0.03, 0.5])
    expected = [0.004, 0.06, 0.06, 0.5]
    assert holm(p) == pytest.approx(expected) and holm(p[::-1]) == pytest.approx(expected[::-1])
    assert (
        holm([]).shape == (0,) and np.isnan(holm([math.nan])).all() and holm([0.9, 0.9]).max() <= 1
    )


def test_correlations_agree_with_scipy():
    rng = np.random.default_rng(3)
    x = rng.normal(size=16)
    y = x + rng.normal(size=16)
    c = correlation(x, y)
    pearson, spearman = scipy_stats.pearsonr(x, y), scipy_stats.spearmanr(x, y)
    assert (c["r"], c["p"]) == pytest.approx((pearson.statistic, pearson.pvalue)) and c[
        "spearman"
    ] == pytest.approx(spearman.statistic)
    ci = pearson.confidence_interval(0.95)
    assert (
        fisher_interval(c["r"], 16) == pytest.approx((ci.low, ci.high))
        and c["low"] < c["r"] < c["high"]
    )
    assert correlation([1, 2, 3, 4], [2, 4, 6, 8])["r"] == 1


def test_the_papers_p_values():
    assert [round(correlation_p(r, 16), 4) for r in (0.732, 0.59, 0.66, 0.78)] == [
        0.0013,
        0.0161,
        0.0054,
        0.0004,
    ]


def test_partial_correlation_is_the_textbook_formula():
    rng = np.random.default_rng(4)
    z = rng.normal(size=40)
    x, y = z + rng.normal(size=40), z + rng.normal(size=40)
    r = np.corrcoef([x, y, z])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    p = partial_correlation(x, y, z)
    assert p["r"] == pytest.approx(expected) and p["given"] == 1
    z95 = scipy_stats.norm.ppf(0.975) / math.sqrt(40 - 1 - 3)
    low, high = math.tanh(math.atanh(expected) - z95), math.tanh(math.atanh(expected) + z95)
    assert (p["fisher_low"], p["fisher_high"]) == pytest.approx((low, high))
    a = np.column_stack([np.ones(40), z, x])
    beta, rest, *_ = np.linalg.lstsq(a, y, rcond=None)  # the same p as that of x in a regression
    t = beta[2] / math.sqrt(rest[0] / 37 * np.linalg.inv(a.T @ a)[2, 2])
    assert p["p"] == pytest.approx(2 * scipy_stats.t.sf(abs(t), 37))


def test_partial_correlation_of_dull_covariates():
    rng = np.random.default_rng(4)
    z = rng.normal(size=40)
    x, y = z + rng.normal(size=40), z + rng.normal(size=40)
    # a copy and a constant add nothing
    assert partial_correlation(x, y, np.column_stack([z, z, np.ones(40)]))["given"] == 1
    assert "too few" in partial_correlation([1, 2, 3], [3, 1, 2], [1, 5, 2])["reason"]
    assert "nothing is left" in partial_correlation(z, y, z)["reason"]


def test_permutation_p():
    null = np.arange(100.0)
    assert permutation_test(-1, null)["p"] == pytest.approx(1 / 101) and permutation_test(
        200, null, "greater"
    )["p"] == pytest.approx(1 / 101)
    assert (
        permutation_test(49.5, null, "two-sided")["p"] == 1
        and math.isnan(permutation_test(math.nan, null)["p"])
        and math.isnan(permutation_test(1, [])["p"])
    )


def test_bootstrap_means_is_bootstrap_mean():
    x = np.random.default_rng(5).uniform(size=(3, 50))
    value, low, high = bootstrap_means(x, 3000)
    for row, *mine in zip(x, value, low, high):
        assert mine == pytest.approx(bootstrap_mean(row, n_resamples=3000), abs=0.012)


def seeds_of(values, width=0.1):
    "Tidy rows of one language, a seed per value, each with an interval of the same width."
    return tidy(
        [
            dict(language="de", seed=i, value=v, low=v - width, high=v + width, n=5)
            for i, v in enumerate(values)
        ]
    )


def test_seeds_are_combined_with_both_kinds_of_noise():
    combined = lambda values: combine_seeds(seeds_of(values), ["language"]).iloc[0]
    one, two, three = map(combined, ([0.5], [0.4, 0.6], [0.4, 0.5, 0.6]))
    assert (one.low, one.high) == pytest.approx((0.4, 0.6))
    assert (two.low, two.high) == pytest.approx((0.3, 0.7))
    seeds = scipy_stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert three.high - three.value == pytest.approx(math.hypot(0.1, seeds))
    # three tunings of three pretrained models
    tunings = [
        seeds_of([0.4 - d, 0.5 - d, 0.6 - d]).assign(model=["a", "b", "c"])
        for d in (-0.02, 0, 0.02)
    ]
    nested = combine_seeds(pd.concat(tunings), ["language"]).iloc[0]
    assert (nested.low, nested.high, nested.seeds) == pytest.approx((three.low, three.high, 9))
    assert nested.spread == pytest.approx(0.1)
    one_model = combine_seeds(seeds_of([0.4, 0.5, 0.6]).assign(model="a"), ["language"]).iloc[0]
    assert (one_model.low, one_model.high) == pytest.approx((three.low, three.high))
    empty = combined([math.nan])
    assert math.isnan(empty.value) and empty.seeds == 0


def test_a_share_has_an_interval_even_of_none_and_of_all():
    "Clopper-Pearson's ends from quantiles of beta distributions, as textbooks have them."
    for k, n in ((0, 40), (40, 40), (1, 40), (17, 64)):
        low = 0 if k == 0 else scipy_stats.beta.ppf(0.025, k, n - k + 1)
        high = 1 if k == n else scipy_stats.beta.ppf(0.975, k + 1, n - k)
        assert proportion_interval(k, n) == pytest.approx((low, high))
    assert bootstrap_share([1, 1, math.nan, 1])[1] == pytest.approx(0.025 ** (1 / 3)) and all(
        map(math.isnan, bootstrap_share([]))
    )
    assert all(map(math.isnan, bootstrap_share([0.5, 0.5])[1:])), "halves are no counts"
    assert all(map(math.isnan, proportion_interval(0, 0)))


def test_where_all_is_gone_the_drop_is_not_certain():
    d = relative_drop([1, 0, 1, 1], [0, 0, 0, 0])
    assert (
        d["value"] == d["high"] == 1
        and d["low"] == pytest.approx(1 - (1 - 0.025**0.25) / 0.75)
        and "nothing is left" in d["reason"]
    )
    assert math.isnan(relative_drop([0.2, 0.4], [0, 0])["low"]), (
        "of scores that are no counts nothing is known"
    )


def test_groups_of_models_are_compared_by_welch_and_by_counting():
    a, b = [0.71, 0.59, 0.19, 0.81, 0.59, 0.73], [0.14, 0.2, 0.11, 0.19, 0.19, 0.16]
    d, values = compare_groups(a, b), np.array(a + b)
    va, vb = np.var(a, ddof=1) / 6, np.var(b, ddof=1) / 6
    df, error = (va + vb) ** 2 / (va**2 / 5 + vb**2 / 5), math.sqrt(va + vb)
    half = scipy_stats.t.ppf(0.975, df) * error
    assert (d["value"], d["low"], d["high"]) == pytest.approx(
        (np.mean(a) - np.mean(b), np.mean(a) - np.mean(b) - half, np.mean(a) - np.mean(b) + half)
    )
    assert d["p"] == pytest.approx(2 * scipy_stats.t.sf(d["value"] / error, df))
    sums = np.array([values[list(i)].sum() for i in itertools.combinations(range(12), 6)])
    share = min((sums >= sum(a) - 1e-12).mean(), (sums <= sum(a) + 1e-12).mean())
    assert d["p_exact"] == pytest.approx(2 * share) and d["dealings"] == len(sums) == 924
    assert (
        compare_groups([1, 1], [1, 1])["reason"]
        and compare_groups([1], a)["reason"]
        and compare_groups([math.nan, 1, 2], [0, 0])["n_a"] == 2
    )


def test_a_p_is_printed_from_a_thousand_sets_on():
    assert paired_difference(np.zeros(40), np.arange(1.0, 41), n_resamples=50)["p"] <= 2 / 1000, (
        "50 draws of the interval do not make a p of 50 shuffles"
    )
    assert (
        chance(1 / 201, 200) == "as extreme: 0 of 200 sets"
        and chance(1 / 1001, 1000) == "p 0.001"
        and chance(0.5, math.nan) == "-"
    )
