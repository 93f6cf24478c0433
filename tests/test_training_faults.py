"Trainings that diverge and settings that none can have: one line, exit code 2, nothing that looks finished."

import math

import pytest
import torch
from safetensors.torch import load_file

from xgdetox.files import InputError, read_json
from xgdetox.recipes import load_recipe, recipe_names
from xgdetox.trainer import train
from test_training import tiny  # noqa: F401, the fixture

QUICK = dict(
    recipe="world",
    max_steps=6,
    eval_pairs=4,
    kl_texts=0,
    batch_size=4,
    learning_rate=1e-3,
    lora_r=4,
    logging_steps=1,
)


def weights(folder, name="model.safetensors"):
    return load_file(folder / name)


def at_step(monkeypatch, step: int, value: float, where: str):
    "Make the loss, or its gradient, `value` once a run has made `step` steps."
    import trl

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = plain(self, model, inputs, *args, **kwargs)
        if self.state.global_step < step or not model.training:
            return loss
        if where == "gradient":
            return loss + torch.where(loss > 0, loss * 0, 0) + Spoiled.apply(loss, value)
        return loss * value

    plain = trl.DPOTrainer.compute_loss
    monkeypatch.setattr(trl.DPOTrainer, "compute_loss", compute_loss)


class Spoiled(torch.autograd.Function):
    "Zero, with a gradient that is `value`."

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x * 0

    @staticmethod
    def backward(ctx, g):
        return g * ctx.value, None


def nothing_passes_for_finished(out):
    assert (
        not (out / "final_checkpoint").exists()
        and not (out / "manifest.json").exists()
        and not (out / "adapter").exists()
    )
    assert "not a finished model" in read_json(out / "diverged/diverged.json")["what"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_keeps_the_weights_of_the_step_before(
    tiny, tmp_path, monkeypatch, value
):
    with monkeypatch.context() as m:
        at_step(m, 2, value, "gradient")
        with pytest.raises(
            InputError,
            match=r"the gradient is \w+ after step 2: the run diverged.*weights of step 2.*diverged",
        ):
            train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **QUICK | dict(eval_steps=2))
    nothing_passes_for_finished(tmp_path / "a")
    kept, base = weights(tmp_path / "a/diverged"), weights(tiny / "gpt2")
    assert all(torch.isfinite(v).all() for v in kept.values()) and any(
        not torch.equal(kept[k], base[k]) for k in base
    )
    checkpoint = weights(
        tmp_path / "a/checkpoint-2"
    )  # written by the evaluation after the same step
    assert all(torch.equal(kept[k], checkpoint[k]) for k in checkpoint)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_loss_that_is_no_number_goes_back_to_the_last_evaluation(
    tiny, tmp_path, monkeypatch, value
):
    from transformers import AutoModelForCausalLM

    with monkeypatch.context() as m:
        at_step(m, 3, value, "loss")
        with pytest.raises(InputError, match=r"the loss is -?\w+ after step 3.*weights of step 2"):
            train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **QUICK | dict(eval_steps=2))
    nothing_passes_for_finished(tmp_path / "a")
    kept, checkpoint = weights(tmp_path / "a/diverged"), weights(tmp_path / "a/checkpoint-2")
    assert all(torch.equal(kept[k], checkpoint[k]) for k in checkpoint)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a/diverged") and not list(
        (tmp_path / "a/diverged").glob("optimizer*")
    )
    final = train(
        tiny / "gpt2", tiny / "pairs", tmp_path / "a", **QUICK | dict(eval_steps=2)
    )  # the fault has gone: the run goes on and ends well
    assert final.name == "final_checkpoint" and not (tmp_path / "a/diverged").exists()


def test_a_loss_that_is_no_number_before_any_evaluation_keeps_what_it_began_with(
    tiny, tmp_path, monkeypatch
):
    at_step(monkeypatch, 0, math.nan, "loss")
    with pytest.raises(InputError, match="weights of step 0"):
        train(tiny / "gpt2", tiny / "pairs", tmp_path / "a", **QUICK)
    nothing_passes_for_finished(tmp_path / "a")
    kept, base = weights(tmp_path / "a/diverged"), weights(tiny / "gpt2")
    assert all(torch.equal(kept[k], base[k]) for k in base)


def test_a_diverged_adapter_is_kept_as_one(tiny, tmp_path, monkeypatch):
    at_step(monkeypatch, 2, math.nan, "gradient")
    with pytest.raises(InputError, match="weights of step 2"):
        train(tiny / "llama", tiny / "pairs", tmp_path / "a", **QUICK | dict(method="lora"))
    nothing_passes_for_finished(tmp_path / "a")
    kept = weights(tmp_path / "a/diverged", "adapter_model.safetensors")
    assert all(torch.isfinite(v).all() for v in kept.values()) and any(
        v.abs().max() > 0 for k, v in kept.items() if "lora_B" in k
    )


@pytest.mark.parametrize("loss", ["kto", "simpo", "orpo"])
def test_every_family_of_losses_stops(tiny, tmp_path, loss):
    with pytest.raises(InputError, match="diverged"):
        train(
            tiny / "gpt2",
            tiny / "pairs",
            tmp_path / "a",
            **QUICK | dict(loss=loss, learning_rate=1e11),
        )
    nothing_passes_for_finished(tmp_path / "a")


def test_a_learning_rate_beyond_reason_is_one_line(tiny, tmp_path, fails):
    said = fails(
        "train",
        "--model",
        tiny / "gpt2",
        "--data-dir",
        tiny / "pairs",
        "--output-dir",
        tmp_path / "a",
        "--recipe",
        "world",
        "--learning-rate",
        "1e11",
        "--max-steps",
        4,
    )
    assert "diverged" in said and "lower learning_rate, which is 1e+11" in said
    nothing_passes_for_finished(tmp_path / "a")


def test_a_last_step_that_breaks_the_weights_is_no_finished_run(tiny, tmp_path):
    with pytest.raises(InputError, match="diverged"):
        train(
            tiny / "gpt2",
            tiny / "pairs",
            tmp_path / "a",
            **QUICK | dict(max_steps=1, learning_rate=1e11),
        )
    nothing_passes_for_finished(tmp_path / "a")


@pytest.mark.parametrize(
    "words",
    [
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--lora-r", "0"],
        ["--lora-r", "-4"],
        ["--lora-r", "2.5"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "-1e-5"],
        ["--learning-rate", "0"],
        ["--learning-rate", "1e300"],
        ["--learning-rate", "inf"],
        ["--beta", "nan"],
        ["--beta", "-1"],
        ["--beta", "0"],
        ["--max-steps", "0"],
        ["--max-steps", "nan"],
        ["--max-steps", "1000000000"],
        ["--epochs", "nan"],
        ["--epochs", "-1"],
        ["--epochs", "1e12"],
        ["--batch-size", "0"],
        ["--gradient-accumulation", "999999999999"],
        ["--weight-decay", "-1"],
        ["--warmup-steps", "-3"],
        ["--max-grad-norm", "-1"],
        ["--lora-dropout", "1.5"],
        ["--lora-alpha", "0"],
        ["--logging-steps", "0"],
        ["--eval-steps", "0"],
        ["--patience-steps", "-1"],
        ["--max-length", "0"],
        ["--max-prompt-length", "0"],
        ["--train-fraction", "2"],
        ["--eval-fraction", "1.5"],
        ["--limit", "0"],
        ["--kl-texts", "-1"],
        ["--bos", "x"],
        ["--set", "lora_r=0"],
        ["--set", "beta=.nan"],
    ],
)
def test_a_number_that_a_setting_cannot_have_is_one_line(fails, tmp_path, monkeypatch, words):

    monkeypatch.setattr(
        "xgdetox.trainer.load_model", lambda *a, **k: pytest.fail("a model was loaded")
    )
    said = fails(
        "train", "--model", "world", "--data-dir", "world", "--output-dir", tmp_path / "o", *words
    )
    assert (
        words[-2].strip("-").replace("-", "_") in said.replace("-", "_")
        or words[-1].partition("=")[0] in said
    )
    assert not list(tmp_path.iterdir())


def test_the_originals_weight_decay_is_none():
    "It declares .05 and builds its training arguments without it; their default is 0."
    from transformers import TrainingArguments

    assert TrainingArguments.__dataclass_fields__["weight_decay"].default == 0
    assert {name: load_recipe(name)["weight_decay"] for name in recipe_names()} == dict.fromkeys(
        recipe_names(), 0.0
    )
