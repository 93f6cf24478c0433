"Chat in grids: one key per model that every stage follows, tables that say where they read, refusals in the report."

import json

import pandas as pd
import pytest
from small_files import jsonl, refused
from tiny_models import chat_model

from xgdetox.chat import FROM_REPLY, REPLY_BEGINS, WHOLE_TEMPLATE
from xgdetox.grid.checks import check_at_hand
from xgdetox.grid.jobs import jobs, remarks
from xgdetox.grid.load import load_grid
from xgdetox.quality import quality_table

STAGES = "generate score train mass quality probe value_vectors activations retrieve".split()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Two tiny instruct checkpoints of one family."
    folder = tmp_path_factory.mktemp("chat")
    names = ("tiny-instruct", "tiny-instruct-safe")
    size = dict(max_position_embeddings=512)
    return [chat_model("chatml", folder / n, seed=i, **size) for i, n in enumerate(names)]


def grid_of(path, **more) -> dict:
    scorers = {"words": "lexicon:world"}
    grid = dict(name="chats", models={"m": {"path": str(path)}}, languages=["en", "de"])
    grid |= dict(data={"lexicon": "world"}, scorers=scorers, stages=STAGES, tunings={"dpo": {}})
    return grid | more


def settings_of(grid: dict) -> dict[str, str]:
    "{stage: the `bos` that its job is given} of a loaded grid, of the first job of each stage."
    found = {}
    for job in jobs(grid):
        given = job.parameters.get("settings") or job.parameters.get("overrides") or {}
        found.setdefault(job.stage, given.get("bos"))
    return found


# one key


def test_every_stage_of_a_chat_model_reads_its_template(pair):
    found = settings_of(load_grid(grid_of(pair[0], chat=True)))  # YAML's on
    assert {found[s] for s in STAGES if s != "score"} == {"chat"} and found["score"] is None
    quality = [j for j in jobs(load_grid(grid_of(pair[0], chat="on"))) if j.stage == "quality"]
    assert "refusals" in quality[0].parameters["settings"]["metrics"]
    plain = load_grid(grid_of(pair[0]))
    assert plain["models"]["m"]["chat"] is None and "chat" not in settings_of(plain).values()


def test_a_model_has_its_own_chat(pair):
    models = {
        "a": {"path": str(pair[0]), "system": "Be kind."},
        "b": {"path": str(pair[0]), "chat": False},
        "c": {"path": str(pair[0])},
    }
    grid = load_grid(grid_of(pair[0], models=models, chat="on", wording="Go on: {text}"))
    said = {name: model["chat"] for name, model in grid["models"].items()}
    assert said["a"] == "chat?system=Be+kind.&wording=Go+on%3A+%7Btext%7D" and said["b"] is None
    assert said["c"] == "chat?wording=Go+on%3A+%7Btext%7D"
    words = " ".join(remarks(grid))
    assert "after the system text 'Be kind.'" in words and "b is read" not in words


def test_auto_looks_at_name_and_template(pair, tmp_path):
    named = load_grid(grid_of(pair[0], chat="auto"))
    assert named["models"]["m"]["chat"] == "chat"
    assert load_grid(grid_of("world", chat="auto"))["models"]["m"]["chat"] is None
    away = load_grid(grid_of("some-org/not-here-Instruct", chat="auto"))
    assert away["models"]["m"]["chat"] == "chat"  # looked at before a run


WRONG = {
    "a word": (dict(chat="maybe"), "chat"),
    "beside bos": (dict(chat="on", bos="paper"), "bos: stands beside chat"),
    "no place": (dict(wording="Go on"), "wording: the wording does not say where the text goes"),
    "pretrained": (dict(chat="on", models={"p": {"pretrain": {}}}), "chat: a pretrained model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_chat_that_cannot_be_is_one_line(pair, case):
    more, said = WRONG[case]
    assert said in str(refused(load_grid, grid_of(pair[0], **more)))


def test_a_template_is_asked_for_before_a_run(tmp_path):
    grid = load_grid(grid_of("world", chat="on", stages=["generate"]))
    assert "no chat template" in str(refused(check_at_hand, grid))
    gemma = chat_model("gemma", tmp_path / "gemma-it")
    grid = load_grid(grid_of(gemma, system="Be kind.", stages=["generate"]))
    assert "System role not supported" in str(refused(check_at_hand, grid))


# refusals


def test_a_judge_of_refusals_counts_beside_phrases(tmp_path):
    texts = ["I cannot help with that request.", "The house is old and red.", "Never, said he, no."]
    rows = [
        dict(prompt="He said", generated_text=t, prompt_id="0", sample=i, finish_reason="stop")
        for i, t in enumerate(texts)
    ]
    jsonl(tmp_path / "texts/output-rtp_lx_en.json", [r | dict(tokens=5) for r in rows])
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/en.txt").write_text("cannot\nnever\n")
    table = quality_table(
        tmp_path / "texts", metrics=["refusals"], refusal_judge=f"lexicon:{tmp_path / 'judge'}"
    ).set_index("metric")
    assert table.value["refused"] == pytest.approx(1 / 3)
    assert table.value["refused_judged"] == pytest.approx(2 / 3)
    assert table.measured_by["refused_judged"].startswith("lexicon@")


# the whole way


@pytest.fixture
def compared(pair, run_grid, tmp_path):
    "The folder of a small comparison of the two, and what it said."
    few = "probe.limit=60 value_vectors.top_k=10 value_vectors.limit=4 activations.limit=3".split()
    few += ["intervene.limit=2", "intervene.offsets=[0, -1]", "generate.n=2"]
    few += ["generate.max_tokens=6", "retrieve.options={limit: 20}"]
    words = [word for change in few for word in ("--set", change)]
    words += ["--chat", "auto", "--languages", "en,de", "--prompts", 4]
    words += ["--scorer", "lexicon:world", "--lexicon", "world", "--run-dir", tmp_path / "run"]
    return tmp_path / "run", run_grid("compare", "--base", pair[0], "--tuned", pair[1], *words)


@pytest.mark.slow
def test_two_instruct_checkpoints_are_compared(compared):
    folder, out = compared
    assert "is read in its chat template" in out
    grid = json.loads((folder / "grid.json").read_text())
    assert [m["chat"] for m in grid["models"].values()] == ["chat"]
    where = dict(mass=REPLY_BEGINS, probe=WHOLE_TEMPLATE, retrieval=WHOLE_TEMPLATE)
    where |= dict(activations=FROM_REPLY, value_vectors=FROM_REPLY)
    for name, position in where.items():
        assert set(pd.read_csv(folder / "tables" / f"{name}.csv").read_at) == {position}, name
    quality = pd.read_csv(folder / "tables" / "quality.csv")
    assert {"refused", "refused_short", "refused_change"} <= set(quality.metric)
    page = (folder / "report.html").read_text()
    assert "Refused" in page and "is read in its chat template" in page
