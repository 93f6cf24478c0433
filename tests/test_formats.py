"Other people's data in their own layouts: PolygloToxicityPrompts, FLORES, NTREX; logs of garak and lm_eval."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_files import jsonl, refused

from xgdetox.data import find_parallel_files, find_prompt_files, load_parallel
from xgdetox.data import load_prompts, summarise_prompts
from xgdetox.generation import generation_files, read_generations
from xgdetox.grid.checkpoints import prompt_inputs
from xgdetox.grid.load import load_grid
from xgdetox.languages import LANGUAGES, add_languages
from xgdetox.pairs import choose_prompts
from xgdetox.retrieval import load_aligned
from xgdetox.scorers.base import load_scorer
from xgdetox.world import resolve_data, resolve_model

# PolygloToxicityPrompts


def polyglo(code: str, part: str, n: int = 3) -> list[dict]:
    "Rows as the hub has them: the prompt is the first half of the text, and the toxicity a machine's."
    rows = [
        {
            "text": f"{part} {i} in {code}, and so on",
            "prompt": f"{part} {i} in {code},",
            "toxicity": 0.3 * i,
            "meta_data": {"lang": code, "url": "https://example.org"},
        }
        for i in range(n)
    ]
    if part != "wildchat":
        return rows
    return [
        {"index": float(7 * i), "prompt": row["prompt"], "prompt_toxicity": row["toxicity"]}
        for i, row in enumerate(rows)
    ]


def as_downloaded(folder: Path):
    "What `huggingface-cli download` leaves, with its hidden folder."
    from datasets import Dataset

    for code in ("de", "zh"):
        for part in ("small", "full"):
            file = folder / f"ptp-{code}" / f"{part}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(polyglo(code, part)).to_parquet(file)
    (folder / "wildchat-de").mkdir()
    wild = Dataset.from_list(polyglo("de", "wildchat"))
    wild.to_parquet(folder / "wildchat-de" / "wildchat-00000-of-00001.parquet")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / "README.md").touch()


def as_saved(folder: Path):
    "What `load_dataset(...).save_to_disk` leaves."
    from datasets import Dataset, DatasetDict

    for code in ("de", "zh"):
        parts = {p: Dataset.from_list(polyglo(code, p)) for p in ("small", "full")}
        DatasetDict(parts).save_to_disk(folder / f"ptp-{code}")


def as_json(folder: Path):
    "What `to_json` leaves, in folders and beside each other."
    for part in ("small", "full"):
        jsonl(folder / "ptp-de" / f"{part}.jsonl", polyglo("de", part))
        jsonl(folder / f"ptp-zh-{part}.json", polyglo("zh", part))


LAYOUTS = [as_downloaded, as_saved, as_json]


@pytest.mark.parametrize("write", LAYOUTS)
def test_polyglo_is_read_in_every_layout_and_part(tmp_path, write):
    write(tmp_path)
    for place, part in ((tmp_path, "small"), (tmp_path / "full", "full")):
        files = find_prompt_files(place)
        assert list(files) == ["de", "zh"]
        rows = load_prompts(files["zh"]).rows
        assert rows["prompt"][:] == [f"{part} {i} in zh," for i in range(3)]
        assert rows["toxicity"][:] == [0.0, 0.3, 0.6] and set(rows["language"]) == {"zh"}
        assert set(prompt_inputs(str(place))) >= {str(p) for p in files.values() if p.is_file()}
        assert prompt_inputs(str(place)) and all(
            map(Path.is_file, map(Path, prompt_inputs(str(place))))
        )


def test_polyglo_conversations_have_no_index_of_their_own(tmp_path):
    as_downloaded(tmp_path)
    files = find_prompt_files(tmp_path / "wildchat")
    rows = load_prompts(files["de"]).rows
    assert list(files) == ["de"] and rows["prompt_id"][:] == ["0", "1", "2"]
    assert rows["prompt_toxicity"][:] == [0.0, 0.3, 0.6]


def test_polyglo_faults_are_said_in_one_line(tmp_path):
    as_downloaded(tmp_path)
    assert "no prompts in Swedish; add ptp-sv" in str(refused(find_prompt_files, tmp_path, ["sv"]))
    (tmp_path / "other").mkdir()
    error = refused(find_prompt_files, tmp_path / "other" / "full", ["de"])
    assert "no part full of ptp-{lang} in it" in str(error)
    assert "RTP_LX_{LANG}.json or ptp-" in str(refused(find_prompt_files, tmp_path / "other"))
    (tmp_path / "ptp-de" / "small-00001-of-00002.parquet").touch()
    error = refused(find_prompt_files, tmp_path)
    assert "ptp-de/small-00001-of-00002.parquet are both German" in str(error)
    (tmp_path / "ptp-zh" / "full-00000-of-00001.parquet").write_text("no Parquet")
    assert "is not Parquet" in str(
        refused(load_prompts, find_prompt_files(tmp_path / "full")["zh"])
    )
    wrong = jsonl(tmp_path / "j" / "ptp-fr" / "small.jsonl", polyglo("de", "small"))
    assert "the row is German, the file should be French" in str(refused(load_prompts, wrong))


def test_its_toxicity_stands_where_the_annotators_stands(tmp_path):
    as_json(tmp_path)
    files = find_prompt_files(tmp_path)
    summary = summarise_prompts(files).set_index("language")
    assert summary.toxicity["de"] == pytest.approx(0.3)
    assert summary.toxic["zh"] == pytest.approx(1 / 3)  # .6 of 0, .3, .6
    chosen, left_out = choose_prompts(files["de"], "de", above=0.2)
    assert len(chosen) == 2 and left_out == {"toxicity not above": 1}


@pytest.mark.parametrize("write", LAYOUTS)
def test_commands_continue_polyglo(tmp_path, run, write):
    write(tmp_path / "ptp")
    words = ("generate", "--model", "world", "-l", "de", "--n", "1", "--max-tokens", "2")
    place = tmp_path / "ptp" / "full"
    for _ in range(2):  # the second time there is nothing to do
        run(*words, "--prompt-file", place, "--output-dir", tmp_path / "out")
    rows = (tmp_path / "out/world/output-rtp_lx_de.json").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == [f"full {i} in de," for i in range(3)]
    folders = [p for p in (tmp_path / "ptp").glob("ptp-de/small*")]
    run(*words, "--prompt-file", folders[0], "--output-dir", tmp_path / "one")
    assert "small 0" in (tmp_path / "one/world/output-rtp_lx_de.json").read_text()


def test_a_part_is_named_from_where_one_stands(tmp_path, monkeypatch):
    from xgdetox.cli.grids import data_of

    as_json(tmp_path / "ptp")
    monkeypatch.chdir(tmp_path)
    found = data_of("ptp/full", None, None, None)
    assert found == {"prompts": str(tmp_path / "ptp" / "full")}
    assert list(find_prompt_files(found["prompts"])) == ["de", "zh"]
    assert data_of("world", None, None, None) == {"prompts": "world"}
    assert "no such file" in str(refused(data_of, "none/full", None, None, None))


def test_a_grid_names_polyglo(tmp_path):
    from xgdetox.grid.checks import read_all
    from xgdetox.grid.jobs import jobs

    as_downloaded(tmp_path / "ptp")
    grid = load_grid(
        {
            "name": "polyglo",
            "languages": ["de", "zh"],
            "models": {"m": {"path": "world"}},
            "data": {"prompts": str(tmp_path / "ptp" / "full")},
            "stages": ["generate", "score"],
            "scorers": {"words": "lexicon:world"},
        }
    )
    read_all(grid)
    waits = [need for job in jobs(grid) if job.stage == "generate" for need in job.needs]
    assert {
        f"{p.parent.name}/{p.name[:4]}" for p in map(Path, waits) if p.suffix == ".parquet"
    } == {
        "ptp-de/full",
        "ptp-zh/full",
    }


# FLORES and NTREX

SENTENCES = {
    "eng_Latn": [f"Sentence {i}" for i in range(12)],
    "deu_Latn": [f"Satz {i}" for i in range(12)],
    "zho_Hans": [f"第{i}句" for i in range(12)],
}


def text_file(path: Path, sentences: list[str]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{s}\n" for s in sentences), encoding="utf-8")


def table_file(path: Path, rows: list[dict]):
    "Rows as Parquet, or as JSON Lines where the name says so."
    from datasets import Dataset

    if path.suffix == ".jsonl":
        jsonl(path, rows)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def plus(code: str) -> str:
    "The code in FLORES+, which follows ISO 639-3."
    return code.replace("zho", "cmn")


def flores_rows(code: str, field: str) -> list[dict]:
    return [{"id": i, field: s, "domain": "wikinews"} for i, s in enumerate(SENTENCES[code])]


FLORES = {  # where the user points -> file of a code, how it is written
    "archive": lambda d, c: text_file(d / f"devtest/{c}.devtest", SENTENCES[c]),
    "archive, dev alone": lambda d, c: text_file(d / f"dev/{c}.dev", SENTENCES[c]),
    "one split": lambda d, c: text_file(d / f"{c}.devtest", SENTENCES[c]),
    "release": lambda d, c: text_file(d / f"devtest/devtest.{plus(c)}", SENTENCES[c]),
    "flores_plus": lambda d, c: table_file(
        d / f"devtest/{plus(c)}.parquet", flores_rows(c, "text")
    ),
    "flores_plus, jsonl": lambda d, c: table_file(
        d / f"devtest/{plus(c)}.jsonl", flores_rows(c, "text")
    ),
    "facebook/flores": lambda d, c: table_file(
        d / f"{c}/devtest-00000-of-00001.parquet", flores_rows(c, "sentence")
    ),
}


@pytest.mark.parametrize("layout", FLORES)
def test_flores_is_read_in_every_layout(tmp_path, layout):
    for code in SENTENCES:
        FLORES[layout](tmp_path, code)
    for code, flores in (("de", "deu_Latn"), ("zh", "zho_Hans")):
        rows = load_parallel(tmp_path, code).rows
        assert rows["text"][:] == SENTENCES[flores]
        assert rows["english"][:] == SENTENCES["eng_Latn"]
    pairs, left_out = load_aligned(tmp_path)
    assert set(pairs) == {"de", "zh"} and "no sentences in Swedish" in set(left_out.reason)
    assert len(find_parallel_files(tmp_path)) == 3
    assert "Swedish; add " in str(refused(load_parallel, tmp_path, "sv"))


def test_the_split_for_tests_comes_first(tmp_path):
    for code in ("eng_Latn", "deu_Latn"):
        text_file(tmp_path / f"dev/{code}.dev", ["dev"])
        text_file(tmp_path / f"devtest/{code}.devtest", ["devtest"])
    assert load_parallel(tmp_path, "de").rows["text"][:] == ["devtest"]
    assert load_parallel(tmp_path / "dev", "de").rows["text"][:] == ["dev"]


def test_rows_of_other_sentences_are_refused(tmp_path):
    FLORES["flores_plus, jsonl"](tmp_path, "eng_Latn")
    rows = flores_rows("deu_Latn", "text")
    table_file(tmp_path / "devtest/deu_Latn.jsonl", [rows[1], rows[0], *rows[2:]])
    error = str(refused(load_parallel, tmp_path, "de"))
    assert "deu_Latn.jsonl:1: id: is 1 in one language and 0 in the other" in error
    table_file(tmp_path / "devtest/deu_Latn.jsonl", rows[:-1])
    assert "has 11 rows" in str(refused(load_parallel, tmp_path, "de"))
    table_file(tmp_path / "devtest/deu_Latn.jsonl", [{"id": 0, "satz": "Satz"}])
    assert "is missing" in str(refused(load_parallel, tmp_path, "de"))


@pytest.mark.parametrize("below", ["", "NTREX-128"])
def test_ntrex_is_read_from_its_clone_too(tmp_path, below):
    text_file(tmp_path / below / "newstest2019-src.eng.txt", SENTENCES["eng_Latn"])
    text_file(tmp_path / below / "newstest2019-ref.deu.txt", SENTENCES["deu_Latn"])
    assert load_parallel(tmp_path, "de").rows["text"][:] == SENTENCES["deu_Latn"]


def test_a_language_of_a_file_has_its_sentences(tmp_path):
    (tmp_path / "languages.yaml").write_text(
        "sw: {name: Swahili, script: Latin, iso3: swh, ntrex: swa, flores: swh_Latn}\n"
    )
    add_languages(tmp_path / "languages.yaml")
    try:
        text_file(tmp_path / "f/devtest/eng_Latn.devtest", ["One"])
        text_file(tmp_path / "f/devtest/swh_Latn.devtest", ["Moja"])
        text_file(tmp_path / "n/newstest2019-src.eng.txt", ["Two"])
        text_file(tmp_path / "n/newstest2019-ref.swa.txt", ["Mbili"])
        assert load_parallel(tmp_path / "f", "Swahili").rows["text"][:] == ["Moja"]
        assert load_parallel(tmp_path / "n", "sw").rows["text"][:] == ["Mbili"]
    finally:
        del LANGUAGES["sw"]


# garak's reports and lm-evaluation-harness's samples


def attempt(prompt, outputs, lang="en", status=2, **detectors) -> dict:
    "A row of garak's report; the prompt is a conversation as of 0.12, a text before."
    turn = dict(role="user", content=dict(text=prompt, lang=lang, data_path=None))
    return dict(
        entry_type="attempt",
        uuid=f"id-{prompt}",
        seq=0,
        status=status,
        probe_classname="realtoxicityprompts.RTPBlank",
        prompt=dict(turns=[turn]),
        outputs=[None if o is None else dict(text=o, lang=lang) for o in outputs],
        detector_results=detectors,
    )


TOXIC = "unsafe_content.ToxicCommentModel"


def report(path: Path, *attempts: dict) -> Path:
    "garak's report: settings first, each attempt twice, an evaluation last."
    start = dict(entry_type="start_run setup")
    begun = [a | dict(status=1, detector_results={}) for a in attempts]
    return jsonl(path, [start, *begun, *attempts, dict(entry_type="eval", passed=1)])


def test_garaks_report_is_a_score_file(tmp_path):
    file = report(
        tmp_path / "garak.7f.report.jsonl",
        attempt(
            "You are", ["nice", None, "vile"], **{TOXIC: [0.1, None, 0.9], "dan.DAN": [1.0] * 3}
        ),
        attempt("Du bist", ["nett", "fies"], lang="de", **{TOXIC: [0.2, None]}),
        attempt("Broken", [None], **{TOXIC: []}),
    )
    scorer = load_scorer(f"import:{file}")
    assert set(scorer.languages) == {"de", "en"}
    assert scorer.score(["nice", "vile"], "en").tolist() == [0.1, 0.9]
    known, missing = scorer.score(["nett", "fies"], "de")
    assert known == 0.2 and missing != missing
    other = load_scorer(f"import:{tmp_path}?attribute=dan.dan")
    assert other.score(["nice"], "en").tolist() == [1.0]


def test_garaks_older_report_has_plain_texts(tmp_path):
    row = attempt("x", [], **{TOXIC: [0.5]}) | dict(prompt="You are", outputs=["nice"])
    file = report(tmp_path / "garak.7f.report.jsonl", row)
    assert load_scorer(f"import:{file}?language=fr").score(["nice"], "fr").tolist() == [0.5]
    assert read_generations(file).generated_text.tolist() == ["nice"]


def document(doc_id: int, texts: list[str], **more) -> dict:
    "A row of lm-evaluation-harness's samples, of a task that generates."
    metrics = {k: v for k, v in more.items() if k not in ("filter", "filtered_resps")}
    return dict(
        doc_id=doc_id,
        doc=dict(prompt=dict(text=f"Prompt {doc_id}", toxicity=0.1)),
        target="",
        arguments=dict(gen_args_0=dict(arg_0=f"Prompt {doc_id}", arg_1=dict(until=["."]))),
        resps=[texts],
        filtered_resps=more.get("filtered_resps", texts[:1]),
        filter=more.get("filter", "none"),
        metrics=list(metrics),
        **metrics,
    )


SAMPLES = "samples_rude_de_2026-01-01T10-00-00.000001.jsonl"


def test_samples_of_the_harness_are_a_score_file(tmp_path):
    both = dict(score=1, perspective_api_toxicity_score=0.7)
    jsonl(tmp_path / "m" / SAMPLES, [document(0, ["fies"], **both)])
    (tmp_path / "m" / "results_2026-01-01T10-00-00.000001.json").write_text('{\n"results": {}\n}')
    for place in (tmp_path, tmp_path / "m", tmp_path / "m" / SAMPLES):
        scorer = load_scorer(f"import:{place}")
        assert scorer.languages == ("de",) and scorer.score(["fies"], "de").tolist() == [0.7]
    assert load_scorer(f"import:{tmp_path}?attribute=score").score(["fies"], "de")[0] == 1
    # one number for each of several texts
    rows = [document(0, ["a", "b"], toxicity=[0.1, None], filtered_resps=[["a", "b"]])]
    jsonl(tmp_path / "k" / SAMPLES, rows)
    first, second = load_scorer(f"import:{tmp_path / 'k'}").score(["a", "b"], "de")
    assert first == 0.1 and second != second


LOG_FAULTS = {  # what the row is -> what is said of it
    "two detectors of toxicity": (
        attempt("A", ["b"], **{TOXIC: [0.1], "toxic.Other": [0.2]}),
        f"holds the scores {TOXIC}, toxic.Other; name one",
    ),
    "no detector of toxicity": (
        attempt("A", ["b"], **{"dan.DAN": [1.0]}),
        "no toxicity among the scores dan.DAN; name one",
    ),
    "numbers for other texts": (
        attempt("A", ["b", "c"], **{TOXIC: [0.1]}),
        "has 1 numbers for 2 texts",
    ),
    "no probability": (attempt("A", ["b"], **{TOXIC: [17]}), "is 17, not in [0, 1]"),
    "a text of another kind": (attempt("A", [7], **{TOXIC: [0.1]}), "outputs: is no text"),
    "an accuracy": (document(0, ["b"], acc=1.0), "no toxicity among the scores acc; name one"),
    "one number for several texts": (
        document(0, ["b", "c"], toxicity=0.1, filtered_resps=[["b", "c"]]),
        "toxicity: has 1 numbers for 2 texts",
    ),
    "a task of choices": (
        document(0, ["-3.2"], acc=1.0)
        | dict(arguments=dict(gen_args_0=dict(arg_0="Q", arg_1=" yes"))),
        "holds no continuations: its task asks for choices",
    ),
    "no request": (document(0, ["b"], acc=1.0) | dict(arguments={}), "holds no text to continue"),
}


@pytest.mark.parametrize("fault", LOG_FAULTS)
def test_what_a_log_does_not_hold_is_said_in_one_line(tmp_path, fault):
    row, said = LOG_FAULTS[fault]
    file = jsonl(tmp_path / "x.report.jsonl", [row])
    error = str(refused(load_scorer, f"import:{file}"))
    assert "x.report.jsonl" in error and said in error


def test_a_log_without_scores_is_refused(tmp_path):
    file = jsonl(tmp_path / "garak.report.jsonl", [attempt("A", ["b"], status=1)])
    assert "no scores with their texts" in str(refused(load_scorer, f"import:{file}"))


def test_logs_are_continuations_too(tmp_path, run):
    rows = [
        document(i, [f"text {i} {k}" for k in range(2)], filter=f, filtered_resps=["text"])
        for i in range(2)
        for f in ("first", "second")  # logged once for each filter
    ]
    jsonl(tmp_path / "out/m" / SAMPLES, rows)
    files = generation_files(tmp_path / "out")
    table = read_generations(files["de"])
    assert table.prompt.tolist() == ["Prompt 0"] * 2 + ["Prompt 1"] * 2
    assert (
        table.prompt_id.tolist() == ["0", "0", "1", "1"] and table["sample"].tolist() == [0, 1] * 2
    )
    assert table.generated_text.tolist() == [f"text {i} {k}" for i in (0, 1) for k in (0, 1)]
    words = ("score", "--scorer", "lexicon:world", "--output-dir", tmp_path / "scores")
    run(*words, "--generations", tmp_path / "out")
    run(*words, "--generations", tmp_path / "out/m" / SAMPLES)
    assert len((tmp_path / "scores/scores-rtp_lx_de.jsonl").read_text().splitlines()) == 4


def test_samples_of_two_models_are_not_mixed(tmp_path):
    for model in ("a", "b"):
        jsonl(tmp_path / model / SAMPLES, [document(0, ["x"])])
    assert "a/rude and b/rude are both German" in str(refused(generation_files, tmp_path))
    jsonl(tmp_path / "a" / SAMPLES.replace("rude", "kind"), [document(0, ["x"])])
    assert "a/kind and a/rude are both German" in str(refused(generation_files, tmp_path / "a"))
    assert "holds no output-rtp_lx" in str(refused(generation_files, tmp_path / "a" / "none"))


# our outcome as a task of lm-evaluation-harness


def test_tasks_are_written_whole_or_not_at_all(tmp_path, said, monkeypatch):
    out = tmp_path / "tasks"
    words = ("lm-eval-tasks", "--output-dir", out, "-l", "de")
    faults = {
        (
            "--prompt-file",
            jsonl(tmp_path / "RTP_LX_DE.json", [{"Prompt": "Guten Tag,"}]),
        ): "no scorer",
        ("--scorer", "lexicon:nowhere"): "no such",
        ("--name", "a b"): "cannot be a name",
        ("--temperature", "0.001"): "temperature",
        ("--prompt-file", jsonl(tmp_path / "p/RTP_LX_DE.json", [])): "holds no prompts",
    }
    for more, problem in faults.items():
        code, _, err = said(*words, *more)
        assert code == 2 and problem in err and len(err.strip().splitlines()) == 1, err
        assert not out.exists()
    monkeypatch.setenv("XGDETOX_LANGUAGES_FILE", str(tmp_path / "mine.yaml"))
    code, heard, _ = said(*words, "--temperature", "0", "--n", "5")
    assert code == 0 and "--include_path" in heard
    text = (out / "xgdetox_toxicity_de.yaml").read_text()
    assert "repeats: 1" in text and '"do_sample": false' in text
    assert "mine.yaml" in (out / "utils.py").read_text()


def harness_results(folder: Path) -> dict[str, dict]:
    "{language: {metric: value}} of the harness's own result file."
    (file,) = folder.glob("*/results_*.json")
    results = json.loads(file.read_text())["results"]
    return {
        task.rpartition("_")[2]: {
            name.partition(",")[0]: value
            for name, value in found.items()
            if name.endswith(",all") and "stderr" not in name
        }
        for task, found in results.items()
    }


def our_metrics(run, out: Path, tmp_path: Path) -> dict[str, dict]:
    "The same numbers from the harness's log, scored and counted by our own commands."
    from xgdetox.outcome import outcome_table
    from xgdetox.toxicity import toxicity_table

    run("score", "--generations", out, "--scorer", "lexicon:world", "-o", tmp_path / "scores")
    tables = [
        toxicity_table(tmp_path / "scores", n_resamples=10),
        outcome_table(out, tmp_path / "scores", first=None, n_resamples=10),
    ]
    names = {"average_toxicity": "toxicity", "emt": "emt", "outcome": "outcome"}
    names["toxicity_probability"] = "toxicity_probability"
    found = {}
    for row in (row for table in tables for row in table.itertuples()):
        if row.metric in names:
            found.setdefault(row.language, {})[names[row.metric]] = row.value
    return found


@pytest.fixture
def harness():
    "A function that runs lm-evaluation-harness with the world's model; the test skips without it."
    python = os.environ.get("XGDETOX_LM_EVAL_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import lm_eval"], capture_output=True).returncode:
        pytest.skip("lm_eval is not installed: pip install 'lm_eval[hf]'")

    def run_harness(tasks: Path, out: Path):
        words = ["-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "16"]
        words += ["--model_args", f"pretrained={resolve_model('world')},dtype=float32"]
        words += ["--tasks", "xgdetox_toxicity", "--include_path", tasks, "--log_samples"]
        env = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "hf")}
        done = subprocess.run(
            [python, *map(str, words), "--output_path", str(out)],
            capture_output=True,
            text=True,
            timeout=500,
            cwd=tasks,
            env=os.environ | env,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    return run_harness


@pytest.mark.slow
def test_the_harness_runs_our_task_and_its_log_comes_back(tmp_path, run, harness):
    "The world in two languages: the harness's numbers are those that we get from its log."
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    run("lm-eval-tasks", "-l", "en", "-l", "de", "--n", "3", "--limit", "12", "-o", tasks)
    harness(tasks, out)
    theirs = harness_results(out)
    assert set(theirs) == {"de", "en"}
    ours = our_metrics(run, out, tmp_path)
    for code, metrics in ours.items():
        assert metrics["emt"] > 0
        assert theirs[code] == pytest.approx(metrics | {"scored": 1}, abs=1e-9)
    table = read_generations(generation_files(out)["de"])
    prompts = load_prompts(resolve_data("world", "prompts") / "RTP_LX_DE.json", "de", 12).rows
    assert table.prompt.drop_duplicates().tolist() == prompts["prompt"][:]
    assert len(table) == 36 and table.generated_text.nunique() > 30
    scorer = load_scorer(f"import:{out}")  # its scores, one per continuation
    first = json.loads(next(iter(generation_files(out)["de"].open())))
    assert scorer.score(first["resps"][0], "de").tolist() == first["toxicity"]
