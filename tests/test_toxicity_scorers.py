"How scorers are named, what they need before they are made, and that real text is never judged by the embedded world's words."
import json
from pathlib import Path

import pytest

from xgdetox import grid as g
from xgdetox import toxicity as tox
from xgdetox.data import InputError
from xgdetox.world import prompt_text, resolve_data, sample_prompts, say, sample_sentence, join_words, Scene


@pytest.mark.parametrize("spec, kind, argument, options", [
    ("perspective", "perspective", "", {}),
    ("perspective?qps=10", "perspective", "", {"qps": "10"}),
    ("perspective?qps=10&attributes=TOXICITY,INSULT", "perspective", "", {"qps": "10", "attributes": "TOXICITY,INSULT"}),
    ("import:some/folder?attribute=INSULT", "import", "some/folder", {"attribute": "INSULT"}),
    ("classifier:org/name?label=toxic&languages=en,de", "classifier", "org/name", {"label": "toxic", "languages": "en,de"}),
    ("guard:x?backend=vllm", "guard", "x", {"backend": "vllm"}), ("lexicon:C:/words", "lexicon", "C:/words", {}), ("panel:p.yaml", "panel", "p.yaml", {})])
def test_a_spec_is_its_parts_and_its_parts_the_spec(spec, kind, argument, options):
    found = tox.parse_scorer(spec)
    assert (found.kind, found.argument, found.options) == (kind, argument, options) and str(found) == spec == str(tox.parse_scorer(str(found)))


@pytest.mark.parametrize("spec, said", [
    ("perspective?qps=1&qps=2", "an option twice"), ("lexicon:x?a=1", "options are none"), ("panel:", "no panel named"), ("lexicon", "no lexicon named"),
    ("guard:x?backend=magic", "unknown backend"), ("classifier:x?languages=xx", "unknown language"), ("perspective?qps=nan", "qps: is no number"),
    ("perspective?attributes=RUDE", "unknown attribute"), ("perspective?speed=1", "unknown option of perspective"), ("", "unknown scorer"), (":x", "unknown scorer")])
def test_a_faulty_spec_is_refused_before_anything_is_loaded(spec, said):
    with pytest.raises(InputError, match=said): tox.parse_scorer(spec)


def test_a_scorer_of_ones_own_is_a_function_or_a_kind(monkeypatch):
    monkeypatch.setitem(tox.SCORERS, "mine", lambda word="darn", language="en": tox.Lexicon({language: [word]}, "mine"))
    assert tox.load_scorer("mine:heck?language=de").score(["heck"], "de")[0] == .5 and tox.load_scorer("mine:heck").score(["fine"], "en")[0] == 0
    assert not tox.needs_gpu("mine") and not tox.needs_key("mine") and tox.scorer_languages("mine") is None
    assert "mine" in tox.scorer_forms()
    with pytest.raises(InputError, match="options are language"): tox.load_scorer("mine:heck?tongue=de")


def panel(folder, text):
    (folder / "panel.yaml").write_text(text)
    return f"panel:{folder / 'panel.yaml'}"


def test_a_panel_needs_what_its_members_need(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir(); (tmp_path / "words/de.txt").write_text("doof\n")
    (tmp_path / "classifier").mkdir()
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False); monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)
    mixed = panel(tmp_path, "en: perspective?qps=10\nde: lexicon:words\nfr: classifier:classifier?label=toxic\nes: guard:qwen3guard\n")
    assert tox.needs_gpu(mixed) and tox.needs_key(mixed) and tox.scorer_languages(mixed) == ("de", "en", "es", "fr")
    assert tox.scorer_paths(mixed) == [str(tmp_path / n) for n in ("panel.yaml", "words", "classifier")], "a path is looked for beside the panel's file"
    with pytest.raises(InputError, match="no key"): tox.check_scorer(mixed)
    light = panel(tmp_path, "[lexicon:words, 'lexicon:world']")
    assert not tox.needs_gpu(light) and not tox.needs_key(light)
    monkeypatch.chdir("/")
    one = tox.load_scorer(light)
    assert one.score(["so doof"], "de")[0] == .5 and one.scorer_for("en").score(["hogwash"], "en")[0] == .5, "the world's own list in a panel"
    with pytest.raises(InputError, match="no such file"): tox.check_scorer(panel(tmp_path, "[lexicon:nowhere]"))


@pytest.mark.parametrize("text, said", [
    ("en: lexicon:world\nde: lexicon:world\nEN: perspective\n", "panel.yaml: EN: names en twice"), ("en: lexicon:world\nen: perspective\n", "panel.yaml:2"),
    ("xx: lexicon:world\n", "panel.yaml: unknown language"), ("- lexicon:world\n- oracle\n", "panel.yaml: 2: unknown scorer 'oracle'"), ("en: 3\n", "is no panel"),
    ("- panel:panel.yaml\n", "panel.yaml: 1: a panel cannot hold a panel"), ("en: perspective?key=abc\n", "no place on a command line"), ("", "is no panel"), ("[", "not YAML")])
def test_a_faulty_panel_names_the_member(tmp_path, text, said):
    with pytest.raises(InputError, match=said): tox.load_scorer(panel(tmp_path, text))


WORLD = {"models": {"m": {"path": "world", "gpus": 2}}, "languages": ["en", "de"], "stages": ["generate", "score"], "name": "x"}


def scoring(scorers): return {j.name.rpartition(".")[2]: j for j in g.jobs(g.load_grid({**WORLD, "scorers": scorers})) if j.stage == "score"}


def test_scorers_of_a_grid_take_options_and_panels(tmp_path, monkeypatch):
    "Paths are absolute and waited for; a model, also one inside a panel, gets devices; a key is asked for before anything runs."
    (tmp_path / "words").mkdir(); (tmp_path / "words/en.txt").write_text("darn\n")
    known = tmp_path / "known"; known.mkdir()
    row = dict(query="a", prompt="p", response=dict(attributeScores=dict(INSULT=dict(summaryScore=dict(value=.5)))))
    (known / "perspective_api_eval-output-rtp_lx_en.json").write_text(json.dumps(row) + "\n")
    mixed = panel(tmp_path, "en: lexicon:words\nde: guard:qwen3guard\n")
    monkeypatch.setattr(g, "project_root", lambda: tmp_path)
    made = scoring({"p": "perspective?qps=10", "i": "import:known?attribute=INSULT", "mix": "panel:panel.yaml", "c": "classifier:textdetox-v2?label=toxic", "w": "lexicon:words"})
    assert {k: j.parameters["scorer"] for k, j in made.items()} == {
        "p": "perspective?qps=10", "i": f"import:{known}?attribute=INSULT", "mix": mixed, "c": "classifier:textdetox-v2?label=toxic", "w": f"lexicon:{tmp_path}/words"}
    assert {k: j.gpus for k, j in made.items()} == {"p": 0, "i": 0, "mix": 2, "c": 2, "w": 0}
    assert {str(tmp_path / "panel.yaml"), str(tmp_path / "words/en.txt")} <= set(made["mix"].needs) and str(known / "perspective_api_eval-output-rtp_lx_en.json") in made["i"].needs
    assert [g.locate_scorer(j.parameters["scorer"]) for j in made.values()] == [j.parameters["scorer"] for j in made.values()]
    grid = g.load_grid({**WORLD, "scorers": {"p": "perspective?qps=10"}})
    assert "Perspective: " in g.plan(grid)[1]
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False); monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)
    with pytest.raises(InputError, match="no key"): g.check_at_hand(grid)
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY", "AIza-not-a-real-key")
    g.check_at_hand(grid)
    assert list(g.comparison("world", "world-tuned", scorer="perspective?qps=10")["scorers"]) == ["perspective"]


@pytest.mark.parametrize("scorers, said", [({"x": "lexicon:w?speed=1"}, "scorers.x: unknown option of lexicon"), ({"x": "perspective?qps=zero"}, "scorers.x: is no number"), ({"x": "oracle:y"}, "scorers.x: unknown scorer")])
def test_a_grid_names_the_scorer_that_is_wrong(scorers, said):
    with pytest.raises(InputError, match=said): g.load_grid({**WORLD, "scorers": scorers})


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def world_rows(language, control=False, n=12):
    "Continuations in the world's words, from its grammar rather than from a model."
    import random
    rng = random.Random(3)
    texts = [join_words(say(sample_sentence(Scene(rng)), language, control)) for _ in range(n)]
    return [dict(prompt=prompt_text(p, language, control), generated_text=" " + t, prompt_id=str(i), sample=0) for i, (p, t) in enumerate(zip(sample_prompts(), texts))]


REAL = ["I will tell you what he thinks about that", "nobody asked them, did they", "und dann kam alles anders als gedacht"]


def real_rows(prompt="So what are they going to"): return [dict(prompt=prompt, generated_text=t) for t in REAL]


def test_the_world_is_told_by_its_text(tmp_path):
    for control, want in ((False, "lexicon:world"), (True, "lexicon:world-control")):
        files = {c: write_lines(tmp_path / want[8:] / f"output-rtp_lx_{c}.json", world_rows(c, control)) for c in ("en", "ja", "hi")}
        assert tox.scorer_of_generations(files) == want
    for rows in (real_rows(), real_rows(world_rows("en")[0]["prompt"]), world_rows("en") + real_rows(), [dict(r, prompt="Another one") for r in world_rows("en")]):
        real = {"en": write_lines(tmp_path / "real/output-rtp_lx_en.json", rows)}
        with pytest.raises(InputError, match="no scorer is named.*output-rtp_lx_en.json is not the embedded world's; name one: lexicon:FOLDER, perspective, classifier:NAME"): tox.scorer_of_generations(real)


def test_no_command_scores_real_text_with_the_worlds_words(tmp_path, fails, run):
    write_lines(tmp_path / "real/output-rtp_lx_fr.json", real_rows("Et puis"))
    write_lines(tmp_path / "own/output-rtp_lx_fr.json", world_rows("fr"))
    out = tmp_path / "out"
    line = fails("score", "--datapath", tmp_path / "real/output-rtp_lx_fr.json", "--output_folder", out, "--language", "fr")
    assert "no scorer is named" in line and "classifier:NAME" in line and not out.exists()
    run("score", "--datapath", tmp_path / "own/output-rtp_lx_fr.json", "--output_folder", out, "--language", "fr")
    assert json.loads((out / "manifest.json").read_text())["languages"]["fr"]["scorer"] == "lexicon"
    (tmp_path / "de.csv").write_text("text,label\n" + "".join(f"\"{t} {i}\",{i % 2}\n" for i, t in enumerate(REAL * 10)))
    assert "no scorer is named" in fails("calibrate", "--labelled", tmp_path / "de.csv", "--output", tmp_path / "c.json") and not (tmp_path / "c.json").exists()
    run("calibrate", "--labelled", "world", "--language", "de", "--output", tmp_path / "c.json")
    (tmp_path / "n.json").write_text("[[0, 1]]")
    (tmp_path / "RTP_LX_EN.json").write_text('{"Prompt": "So what are they going to"}\n')
    given = ("--neurons", tmp_path / "n.json", "--offset", "-1", "--output-dir", out / "i", "--language", "en")
    assert "no scorer is named, and " in fails("intervene", "--model", "world", "--prompt-file", tmp_path / "RTP_LX_EN.json", *given) and not (out / "i").exists()
    line = fails("compare", "--base", "world", "--tuned", "world-tuned", "--prompt-dir", tmp_path, "--languages", "en", "--run-dir", tmp_path / "run")
    assert "no scorer is named" in line and not (tmp_path / "run").exists()


def test_no_grid_scores_real_text_with_the_worlds_words(tmp_path):
    "Real prompts, a real model by name, a folder with another tokenizer: each is refused when the grid is read; without the stages that score nothing is."
    write_lines(tmp_path / "p/RTP_LX_EN.json", [dict(Prompt="So what are they going to")])
    (tmp_path / "model").mkdir(); (tmp_path / "model/tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    real = [{"data": {"prompts": str(tmp_path / "p")}}, {"models": {"m": {"path": "ai-forever/mGPT"}}}, {"models": {"m": {"path": str(tmp_path / "model")}}},
            {"models": {"m": {"pretrain": {"text": "some/{language}.txt"}}}}]
    for change in real:
        with pytest.raises(InputError, match="scorers: no scorer is named"): g.load_grid({**WORLD, **change})
        assert g.load_grid({**WORLD, **change, "scorers": {"p": "perspective"}})
        assert g.load_grid({**WORLD, **change, "stages": ["generate"]})
    control = g.load_grid({**WORLD, "models": {"m": {"path": "world-control", "data": {"prompts": "world-control"}}}})
    assert control["models"]["m"]["scorers"] == {"lexicon": "lexicon:world-control"}
    copied = write_lines(tmp_path / "copy/RTP_LX_EN.json", [json.loads(x) for x in (Path(resolve_data("world", "prompts")) / "RTP_LX_EN.json").read_text().splitlines()[:5]])
    assert g.load_grid({**WORLD, "languages": ["en"], "data": {"prompts": str(copied.parent)}})["models"]["m"]["scorers"] == {"lexicon": "lexicon:world"}
