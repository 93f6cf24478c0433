"Retrieval: equal to the released arithmetic, right on made-up geometry, patient with bad sentences, and counted once."

import math
import os
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from xgdetox.files import InputError
from xgdetox.languages import LANGUAGES
from xgdetox.retrieval import (
    aligned_cosines,
    embed_sentences,
    load_aligned,
    pick,
    retrieve,
    similarities,
    top1,
)
from xgdetox.relation import (
    fit_runs,
    predict_drops,
    language_facts,
    leave_one_out,
    over_prompts,
    over_seeds,
    pretraining_share,
    relate,
    relate_run,
    run_points,
)
from xgdetox.stats import tidy, write_table
from tiny_models import word_tokenizer

WORDS = [f"w{i}" for i in range(80)]


def tokenizer():
    words = ["<pad>", "<unk>"] + WORDS + [w + "x" for w in WORDS]
    return word_tokenizer(words, pad_token="<pad>")


def model(kind="gpt2", vocab=162):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
            )
        ).eval()
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()


def sentences(n=40, seed=0):
    rng = np.random.default_rng(seed)
    en = [" ".join(rng.choice(WORDS, rng.integers(3, 14))) for _ in range(n)]
    return en, [" ".join(w + "x" for w in s.split()) for s in en]


def released_number(m, tok, text, english, chunk=50):
    """The released scripts' arithmetic, written again.

    Chunks of 50, right padding, masked mean, cosine, mean over pairs, mean over layers."""
    tok.padding_side, sides = "right", []
    for texts in (english, text):
        parts = []
        for i in range(0, len(texts), chunk):
            x = tok(texts[i : i + chunk], return_tensors="pt", padding=True)
            with torch.no_grad():
                hidden = m(
                    input_ids=x["input_ids"],
                    attention_mask=x["attention_mask"],
                    output_hidden_states=True,
                ).hidden_states
            mask = x["attention_mask"].unsqueeze(-1)
            parts.append([(h * mask).sum(1) / mask.sum(1) for h in hidden])
        sides.append([torch.cat(layer) for layer in zip(*parts)])
    return float(
        np.mean(
            [
                torch.nn.functional.cosine_similarity(a, b, dim=1).mean().item()
                for a, b in zip(*sides)
            ]
        )
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_paper_number_equals_the_released_arithmetic(kind):
    en, de = sentences(60)
    m, tok = model(kind), tokenizer()
    t = retrieve(m, {"de": (de, en)}, ["de"], paper=True, tokenizer=tok)
    assert set(t.metric) == {"mean_cosine", "fertility"}
    assert pick(t, "mean_cosine").value.item() == pytest.approx(
        released_number(m, tok, de, en), abs=2e-6
    )


@pytest.mark.skipif(
    not Path(os.environ.get("XGDETOX_DATA", "../shared/data")).exists(),
    reason="the real data is not at hand (XGDETOX_DATA)",
)
def test_paper_mode_reads_the_raw_text_and_cleaning_changes_it():
    folder = (
        Path(os.environ.get("XGDETOX_DATA", "../shared/data")) / "parallel" / "translated_prompts"
    )
    raw, _ = load_aligned(folder, ["fr", "ja"], raw=True)
    clean, _ = load_aligned(folder, ["fr", "ja"])
    entity = lambda d: d.text.str.contains(r"&\w+;|&#\d+;").sum()
    assert (
        len(raw["fr"]) == 200
        and entity(raw["fr"]) == 113
        and entity(raw["ja"]) == 0
        and entity(clean["fr"]) == 0
    )


@pytest.mark.skipif(
    not Path(os.environ.get("XGDETOX_DATA", "../shared/data")).exists(),
    reason="the real data is not at hand (XGDETOX_DATA)",
)
@pytest.mark.parametrize(
    "where",
    [
        "translated_prompts",
        "rtplx_aligned/rtplx.17way.tsv.gz",
        "ntrex/ntrex.17way.tsv.gz",
        "tatoeba",
    ],
)
def test_every_parallel_source_can_be_read(where):
    found, left_out = load_aligned(
        Path(os.environ.get("XGDETOX_DATA", "../shared/data")) / "parallel" / where
    )
    assert len(found) == 16 and all(len(d) > 150 for d in found.values())


def test_search_on_made_up_geometry():
    rng = np.random.default_rng(0)
    e = rng.normal(size=(100, 20))
    x = e + 0.2 * rng.normal(size=e.shape)
    assert top1(similarities(e, x)).mean() > 0.95
    shifted = x + 30 * rng.normal(size=20)  # one direction of its own: raw cosine sees only that
    assert (
        top1(similarities(shifted, e, centre=False)).mean()
        < 0.3
        < 0.95
        < top1(similarities(shifted, e)).mean()
    )
    assert top1(similarities(e, x[rng.permutation(100)])).mean() < 0.1


def test_the_search_is_scikit_learns():
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(3)
    e = rng.normal(size=(80, 12))
    x = e + 1.2 * rng.normal(size=e.shape) + 2
    for centre in (True, False):
        a, b = (v - v.mean(0) if centre else v for v in (e, x))
        found = NearestNeighbors(n_neighbors=1, metric="cosine").fit(b).kneighbors(a)[1][:, 0]
        assert (top1(similarities(e, x, centre=centre)) == (found == np.arange(80))).all()
    assert np.isfinite(similarities(np.full((3, 4), np.nan), np.ones((3, 4)))).all()


def test_csls_dethrones_a_hub():
    rng = np.random.default_rng(1)
    e = rng.normal(size=(60, 8))
    x = e + 0.9 * rng.normal(size=e.shape)
    x[0] = e.mean(0) + 0.05 * rng.normal(size=8)
    wins = lambda **k: (similarities(e, x, centre=False, **k).argmax(1) == 0).mean()
    s = similarities(e, x, centre=False)
    near = lambda m: np.sort(m, 1)[:, -10:].mean(1)
    assert np.allclose(
        similarities(e, x, centre=False, csls=True), 2 * s - near(s)[:, None] - near(s.T)[None]
    ) and wins(csls=True) <= wins(csls=False)


def test_zero_vectors_and_ties_are_no_hits_by_luck():
    z = np.zeros((5, 3))
    assert top1(similarities(z, z)).mean() == 1 / 5
    assert aligned_cosines(np.ones((4, 2, 3)), np.ones((4, 2, 3))).shape == (2, 4)


def test_seventeen_sets_are_encoded_once(monkeypatch):
    import xgdetox.retrieval as M

    en, de = sentences(30)
    seen = []
    plain = M.pooled_states
    monkeypatch.setattr(
        M,
        "pooled_states",
        lambda m, t, texts, **k: (seen.append(len(texts)), plain(m, t, texts, **k))[1],
    )
    retrieve(
        model(),
        {
            c: ([f"{s} w{i}" for s in de], en)
            for i, c in enumerate(c for c in LANGUAGES if c != "en")
        },
        tokenizer=tokenizer(),
    )
    assert seen == [17 * 30]


def test_bad_sentences_are_left_out_and_said():
    en, de = sentences(30)
    t = retrieve(
        model(),
        {"de": (["", " ", *de[2:]], en), "fr": (de[:9], en[:9]), "ko": ([de[0]] * 2 + de[2:], en)},
        tokenizer=tokenizer(),
    )
    at = lambda c: t[(t.language == c) & (t.metric == "top1")].iloc[0]
    assert (at("de").n, at("de").excluded, at("de").reason) == (28, 2, "empty side") and (
        at("ko").n,
        at("ko").reason,
    ) == (29, "repeated sentence")
    assert (
        math.isnan(at("fr").value)
        and at("fr").reason == "fewer than 10 pairs"
        and at("ar").reason == "no sentences"
    )


@pytest.mark.parametrize(
    "parallel, languages, word",
    [
        ({"de": (["a"] * 12, ["b"] * 11)}, ["de"], "12 sentences and 11"),
        ({"de": (WORDS[:12], WORDS[:12])}, ["fr"], "no sentences"),
        ({"de": (WORDS[:5], WORDS[:5])}, ["de"], "no language has 10 pairs"),
        ({"de": ([], [])}, ["xx"], "unknown language"),
    ],
)
def test_what_cannot_be_aligned_is_one_clear_error(parallel, languages, word):
    with pytest.raises(InputError, match=word) as e:
        load_aligned(parallel, languages)
    assert "\n" not in str(e.value)


def test_pairs_that_a_file_lacks_are_counted_and_too_many_are_cut(tmp_path):
    (tmp_path / "en.txt").write_text("\n".join(WORDS[:30]))
    (tmp_path / "de.txt").write_text("\n".join(["", " ", *WORDS[2:30]]))
    found, left = load_aligned(tmp_path, limit=20)
    de = left[left.language == "de"]
    assert len(found["de"]) == 20 and dict(zip(de.reason, de.n)) == {
        "empty side": 2,
        "only the first 20 pairs": 8,
    }
    assert left[left.language == "fr"].reason.iloc[0].startswith("no sentences")
    (tmp_path / "fr.txt").write_text("one line")
    with pytest.raises(InputError, match="has 1 rows, en.txt has 30"):
        load_aligned(tmp_path, ["fr"])


def test_a_folder_without_files_is_one_clear_error(tmp_path):
    with pytest.raises(InputError):
        load_aligned(tmp_path)
    with pytest.raises(InputError):
        load_aligned(tmp_path / "none")


def test_output_has_the_sentences_beside_it(tmp_path):
    en, de = sentences(20)
    out = tmp_path / "r.csv"
    t = retrieve(model(), {"de": (de, en)}, ["de"], tokenizer=tokenizer(), output=out, csls=True)
    each = pd.read_csv(tmp_path / "r.values.csv")
    assert (
        out.exists()
        and len(each) == 20
        and each["top1_centred_both"].mean() == pytest.approx(pick(t).value.item())
    )
    assert set(t.variant.dropna()) == {"raw", "centred", "csls", "centred-csls"} and set(
        t.layer.dropna()
    ) == {0, 1, 2}


def points(n=16, seed=0, slope=1.0, noise=0.1, model="m-0", tuning_seed=0):
    rng = np.random.default_rng(seed)
    codes = [c for c in LANGUAGES if c != "en"][:n]
    x = rng.uniform(0.2, 0.9, n)
    y = slope * x + noise * rng.normal(size=n)
    r = tidy(
        [
            dict(
                model=model,
                tuning="base",
                language=c,
                metric="top1",
                value=v,
                variant="centred",
                direction="both",
                layer=math.nan,
            )
            for c, v in zip(codes, x)
        ]
    )
    d = tidy(
        [
            dict(
                model=model,
                tuning="dpo",
                seed=tuning_seed,
                language=c,
                metric="emt_relative_drop",
                value=v,
                low=v - 0.05,
                high=v + 0.05,
            )
            for c, v in zip(codes, y)
        ]
    )
    return r, d


@pytest.fixture
def related():
    "Made-up points, facts about their languages, and their relation."
    r, d = points()
    x = pick(r).set_index("language").value
    facts = dict(resource=x * 2 + 0.01, script=[1.0, 0.0] * 8, fertility=np.linspace(1, 2, 16))
    facts, english = pd.DataFrame(facts), dict(language="en", metric="emt_relative_drop", value=5)
    return r, d, facts, relate(r, pd.concat([d, tidy([english])]), facts)


def test_relation_has_what_a_reader_needs_to_doubt_it(related):
    *_, t = related
    some = t.set_index(["metric", "given", "predictor"])
    row = lambda metric, given="", predictor="top1": some.loc[(metric, given, predictor)]
    pearson, partial = row("pearson"), row("partial_r", "resource")
    assert pearson.value > 0.8 and pearson.n == 16
    assert row("pearson_prompts").low < pearson.value
    assert math.isnan(partial.value) and "nothing is left" in partial.reason
    assert row("pearson", predictor="resource").value == pytest.approx(pearson.value)
    assert row("loo_skill").value > 0.5 and row("loo_mae").value < row("loo_mae_mean_only").value
    assert "resource + script + fertility" in set(t.given)


def test_what_is_not_known_of_a_language_is_said(related):
    r, d, facts, _ = related
    alone = relate(r, d)
    known = alone[(alone.metric == "partial_r") & (alone.given == "resource")]
    assert len(known) == 1 and math.isnan(known.value.item())
    assert "not known" in known.reason.item()
    both = relate(r, d, facts.assign(contact=np.linspace(0, 1, 16)[::-1] ** 2))
    assert "resource + contact" in set(both.given)


def test_no_spread_and_too_few_are_said_not_raised():
    r, d = points()
    d["value"] = 0.5
    t = relate(r, d)
    assert (
        t[t.metric == "pearson"].value.isna().all()
        and (t[t.metric == "pearson"].reason == "no spread in y").all()
    )
    r, d = points(2)
    t = relate(r, d, pd.DataFrame(dict(resource=[1.0, 2]), index=["ar", "cs"]))
    assert (
        t[t.metric == "pearson"].reason.str.contains("at least 3").all()
        and t[t.metric == "partial_r"].value.isna().all()
    )
    assert len(relate(r, d[d.language == "zz"])) > 0


def test_prompt_interval_from_prompts_and_from_widths_agree():
    rng = np.random.default_rng(0)
    codes = list("abcdefgh")
    b = {c: rng.uniform(0.2, 1, 80) for c in codes}
    a = {c: b[c] * rng.uniform(0, 2 * f, 80) for c, f in zip(codes, np.linspace(0.1, 0.8, 8))}
    from xgdetox.stats import relative_drop

    d = pd.DataFrame([dict(language=c) | relative_drop(b[c], a[c]) for c in codes])
    x = 1 - np.linspace(0.1, 0.8, 8) + 0.1 * rng.normal(size=8)
    one, two = over_prompts(x, d, {c: (b[c], a[c]) for c in codes}), over_prompts(x, d)
    assert one == pytest.approx(two, abs=0.03)


def test_leave_one_out_does_not_look():
    x, y = np.arange(6.0), np.array([0, 1, 2, 3, 4, 50.0])
    assert leave_one_out(x, y)["predictions"][5] == pytest.approx(5)
    assert math.isnan(leave_one_out([1, 2, 3], [1, 2, 3])["mae"])


def test_shares_are_published_ones_and_missing_where_there_are_none():
    bloom, mgpt = (
        pretraining_share("bigscience/bloom-7b1")[0]["resource"],
        pretraining_share("ai-forever/mGPT")[0]["resource"],
    )
    assert set(bloom) == {"ar", "en", "es", "fr", "hi", "id", "pt", "zh"} and bloom[
        "en"
    ] == pytest.approx(0.301, abs=0.002)
    assert (
        not {"cs", "nl", "zh"} & set(mgpt)
        and mgpt["en"] > mgpt["ru"] > mgpt["es"]
        and pretraining_share("llama3-8b")[0] == {}
    )
    llama, source = pretraining_share("meta-llama/Llama-2-7b-hf")
    assert (
        "Table 10" in source
        and len(llama["resource"]) == 15
        and pretraining_share("llama2-7b")[0] == llama
    )
    assert not {"ar", "hi"} & set(llama["resource"]) and llama["resource"]["de"] == pytest.approx(
        0.0017
    )
    r, _ = points()
    facts = language_facts(r, None, {"resource": bloom})
    assert facts.resource.isna().sum() == 16 - 7 and set(facts.script) == {0.0, 1.0}


def run_folder(path, runs=3, slope=1.0):
    rs, ds = zip(*(points(seed=i, model=f"world-{i}", slope=slope) for i in range(runs)))
    write_table(pd.concat(rs), path / "tables" / "retrieval.csv")
    write_table(pd.concat(ds), path / "tables" / "drops.csv")
    return path


def test_a_run_is_related_by_seed_and_over_seeds(tmp_path):
    t = relate_run(run_folder(tmp_path), n_resamples=100)
    assert (
        set(t.model) == {"world-0", "world-1", "world-2", "world"}
        and t[t.model == "world"].seed.isna().all()
    )
    assert (t[t.metric == "pearson"].n == 16).all() and (
        t.source == "weights of the world's corpus"
    ).all()
    means = over_seeds(t)
    top = means[(means.metric == "pearson") & (means.predictor == "top1")].iloc[0]
    one = np.arctanh(t[(t.metric == "pearson") & (t.predictor == "top1") & t.seed.notna()].value)
    interval = stats.t.interval(0.95, 2, one.mean(), stats.sem(one))
    assert (top.value, top.low, top.high, top.models) == pytest.approx(
        (np.tanh(one.mean()), *np.tanh(interval), 3)
    )
    assert over_seeds(t[t.model != "world-2"]).low.isna().all()


@pytest.fixture
def layers():
    "Retrieval over all layers, and in two, of languages with made-up drops."
    r, _ = points(seed=9)
    return pd.concat([r, *(r.assign(layer=l, value=r.value - 0.1 * l) for l in (0, 1))])


def test_without_a_basis_there_is_no_number(tmp_path, layers):
    none = predict_drops("m", retrieval=layers)
    assert none.value.isna().all() and none.low.isna().all() and (none.best_layer == 0).all()
    assert none.reason.str.contains("at least 3").all()
    falling = predict_drops("m", retrieval=layers, runs=[run_folder(tmp_path / "down", slope=-1.0)])
    assert falling.value.isna().all() and falling.reason.str.contains("does not go with").all()


def test_a_basis_gives_numbers_whose_intervals_hold(tmp_path, layers):
    told = predict_drops("m", retrieval=layers, runs=[run_folder(tmp_path / "up")])
    assert told.value.notna().all() and (told.low < told.value).all()
    assert told.basis.iloc[0] == "3 models: world-0, world-1, world-2"
    truth = points(seed=9)[1].set_index("language").value[told.language].to_numpy()
    assert ((told.low <= truth) & (truth <= told.high.where(told.high < 1, 9))).mean() > 0.7


def test_a_model_is_never_predicted_from_its_own_tuning(tmp_path, layers):
    "And the seeds of one model are one model."
    up = run_folder(tmp_path / "up")
    assert len(run_points(tmp_path / "up")) == 3 and fit_runs([])["reason"]
    own = predict_drops("world-1", retrieval=layers.assign(model="world-1"), runs=[up])
    assert own.value.isna().all() and own.reason.str.contains("2 comparable models").all()
    one = run_points(tmp_path / "up")[0]
    assert "1 comparable models" in fit_runs([one.assign(seed=s) for s in range(5)])["reason"]
