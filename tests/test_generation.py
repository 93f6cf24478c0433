"Continuations: sampling is right, rows are independent of company, files survive whatever ends a run."

import hashlib, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_models import FAMILIES, model, prompt_files
from xgdetox.engines import choose_backend, explicit_dtype, vllm_refuses
from xgdetox.generation import generate, generation_files, journal, read_generations, unfinished
from xgdetox.sampling import (
    continue_batch,
    continue_prompts,
    cut,
    draw,
    forward_at,
    likeliest_nucleus,
    nucleus_floor,
    prepare_prompts,
    row_seed,
    sample,
    to_text,
    uniforms,
)
from xgdetox.files import InputError
from xgdetox.tokens import encode


def digests(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("output-*.json"))
    }


def test_uniforms_are_splitmix64():
    def reference(seed, step):
        mask = 2**64 - 1
        z = (seed + 0x9E3779B97F4A7C15 * step) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return ((z ^ z >> 31) >> 11) / 2**53

    seeds = [0, 1, 12345, 2**62 + 24]
    assert [[reference(s, t) for t in (1, 2, 3)] for s in seeds] == uniforms(seeds, 3).tolist()
    many = uniforms([row_seed(0, "en", str(i), s) for i in range(400) for s in range(25)], 20)
    assert (
        abs(many.mean() - 0.5) < 0.002
        and abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.03
        and 0 <= many.min()
        and many.max() < 1
    )


def test_row_seeds_differ_and_stay():
    seeds = {
        row_seed(s, l, str(i), k)
        for s in (0, 1)
        for l in ("en", "de")
        for i in range(50)
        for k in range(25)
    }
    assert (
        len(seeds) == 5000
        and max(seeds) < 2**63
        and row_seed(0, "en", "7", 3) == row_seed(0, "en", "7") + 3
    )


def test_nucleus_is_that_of_transformers():
    from transformers import TopPLogitsWarper

    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    for top_p in (0.3, 0.8, 0.95, 1.0):
        theirs = torch.isfinite(
            TopPLogitsWarper(top_p)(None, logits.clone()) if top_p < 1 else logits
        )
        p = torch.softmax(logits, -1)
        ours = p >= nucleus_floor(p, top_p) if top_p < 1 else p > 0
        assert torch.equal(ours, theirs)


def test_draw_has_the_right_frequencies():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
    u = torch.from_numpy(uniforms(range(40_000), 1)[:, 0]).float()
    drawn = draw(logits.expand(len(u), -1), u, temperature=0.9, top_p=0.8)
    p = torch.softmax(logits[0] / 0.9, -1)
    p[2:] = 0
    p /= p.sum()
    assert torch.allclose(torch.bincount(drawn, minlength=5) / len(u), p, atol=0.01)
    edge = torch.tensor([0.0, 1 - 2**-24])
    assert draw(logits.expand(2, -1), edge, 0.9, 0.8).tolist() == [0, 1] and draw(
        logits, None, 0.0
    ).tolist() == [0]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_that_of_generate(family):
    lm, words = model(family)
    inputs = encode(words, ["the old man sees a red house and the river runs", "la casa", "x"])
    ours = sample(lm, inputs, n=1, max_tokens=12, temperature=0, stop=[], pad=2)
    for i, (ids, mask) in enumerate(
        zip(inputs["input_ids"], inputs["attention_mask"])
    ):  # one by one, without padding
        alone = ids[mask.bool()][None]
        theirs = lm.generate(
            alone,
            attention_mask=torch.ones_like(alone),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=2,
        )
        assert torch.equal(ours[i], theirs[0, alone.shape[1] :]), family
    three = sample(lm, inputs, n=3, max_tokens=12, temperature=0, stop=[], pad=2)
    assert torch.equal(three, ours.repeat_interleave(3, 0))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_rows_do_not_depend_on_their_company(family):
    lm, words = model(family)
    prompts, _ = prepare_prompts(
        words,
        range(9),
        [" ".join("the old man sees a red house".split()[: 1 + i % 7]) for i in range(9)],
    )

    def rows(some, **how):
        return {
            (r["prompt_id"], r["sample"]): r
            for b in continue_prompts(lm, words, some, language="en", n=4, max_tokens=10, **how)
            for r in b
        }

    together = rows(prompts)
    assert len(together) == 36 and together == rows(prompts[::-1], batch_rows=4) == rows(
        prompts[::2]
    ) | rows(prompts[1::2])
    assert len({r["generated_text"] for r in together.values()}) > 20


def test_stop_token_ends_a_row():
    lm, words = model("gpt2")
    free = sample(
        lm,
        encode(words, ["the old man", "x"]),
        n=2,
        max_tokens=10,
        seeds=[1, 2, 3, 4],
        stop=[],
        pad=2,
    )
    stop = [int(free[0, 3])]
    ended = sample(
        lm,
        encode(words, ["the old man", "x"]),
        n=2,
        max_tokens=10,
        seeds=[1, 2, 3, 4],
        stop=stop,
        pad=2,
    )
    for before, after in zip(free.tolist(), ended.tolist()):
        kept, reason = cut(after, stop)
        assert kept == before[: len(kept)] and (reason == "stop") == (stop[0] in before)
        assert all(t == 2 for t in after[len(kept) + 1 :])


def test_text_keeps_its_leading_space_and_drops_half_characters():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"▁old": 0, "▁house": 1, "s": 2, "<unk>": 3}
    t = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    t.decoder = decoders.Metaspace()
    assert to_text(PreTrainedTokenizerFast(tokenizer_object=t), [0], [[1, 2], [2]]) == [
        " houses",
        "s",
    ]
    _, words = model("gpt2")
    ids = words("古い")["input_ids"]
    whole = words.decode(ids)
    assert to_text(words, words("x")["input_ids"], [ids])[0] == whole
    cut_off = to_text(
        words,
        words("x")["input_ids"],
        [words("a")["input_ids"] + words.convert_tokens_to_ids(["å"])],
    )[0]
    assert cut_off == "a"


@pytest.fixture
def job(tmp_path):
    model("gpt2", tmp_path / "m")
    return str(tmp_path / "m"), prompt_files(tmp_path), tmp_path / "out"


QUICK = dict(n=5, max_tokens=6, batch_rows=20)


def test_files_have_upstreams_lines_and_ours(job):
    lm, files, out = job
    paths = generate(lm, {"en": files["en"], "ZH-Hans": files["de"]}, out, **QUICK)
    assert paths["zh"].name == "output-rtp_lx_zh-hans.json" and paths["en"].parent.name == "m"
    lines = [json.loads(x) for x in paths["en"].read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 60 and list(lines[0]) == [
        "prompt",
        "generated_text",
        "prompt_id",
        "sample",
        "finish_reason",
        "tokens",
    ]
    assert [(x["prompt_id"], x["sample"]) for x in lines] == [
        (str(3 * i), s) for i in range(12) for s in range(5)
    ]
    assert generation_files(out / "m") == {"en": paths["en"], "zh": paths["zh"]} and not list(
        out.rglob("*.journal")
    )
    assert len(read_generations(paths["zh"])) == 60


def test_a_finished_run_does_nothing(job, monkeypatch):
    lm, files, out = job
    generate(lm, files, out, **QUICK)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    monkeypatch.setattr(
        "xgdetox.engines.load_model", lambda *a, **k: pytest.fail("the model was loaded")
    )
    generate(lm, files, out, **QUICK)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_an_interrupted_run_is_completed(job, tmp_path, monkeypatch):
    lm, files, out = job
    generate(lm, files, tmp_path / "whole", **QUICK)
    real, left = continue_batch, [2]

    def stops(*a, **k):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*a, **k)

    for batches in (2, 0, 1, 1, 3):
        left[0] = batches
        monkeypatch.setattr("xgdetox.sampling.continue_batch", stops)
        try:
            generate(lm, files, out, **QUICK)
        except KeyboardInterrupt:
            pass
        for torn in out.rglob("*.journal"):  # and a torn last line
            with open(torn, "ab") as f:
                f.write(b'[{"prompt": "th')
    monkeypatch.setattr("xgdetox.sampling.continue_batch", real)
    generate(lm, files, out, **QUICK)
    assert digests(out) == digests(tmp_path / "whole") and len(digests(out)) == 2


def test_a_kill_between_file_and_manifest_is_completed(job, tmp_path, monkeypatch):
    lm, files, out = job
    generate(lm, files, tmp_path / "whole", **QUICK)
    monkeypatch.setattr(
        "xgdetox.generation.enter_file", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        generate(lm, files, out, **QUICK)
    monkeypatch.undo()
    generate(lm, files, out, **QUICK)
    assert digests(out) == digests(tmp_path / "whole")


def test_other_settings_are_refused(job):
    lm, files, out = job
    generate(lm, {"en": files["en"]}, out, **QUICK)
    with pytest.raises(
        InputError,
        match=r"output-rtp_lx_en.json: was made with other settings: seed 0 -> 1; move it",
    ):
        generate(lm, {"en": files["en"]}, out, seed=1, **QUICK)
    model("gpt2", lm, seed=1)  # other weights under the same name
    with pytest.raises(InputError, match="other settings: model"):
        generate(lm, {"en": files["en"]}, out, **QUICK)
    (out / "m" / "output-rtp_lx_de.json").write_text("{}\n")
    with pytest.raises(InputError, match="not from this command"):
        generate(lm, {"de": files["de"]}, out, **QUICK)


def test_two_processes_do_not_write_one_file(job):
    lm, files, out = job
    target = out / "m" / "output-rtp_lx_en.json"
    with journal(unfinished(target), {}):
        with pytest.raises(InputError, match="another process"):
            generate(lm, {"en": files["en"]}, out, **QUICK)


SPECIAL_PROMPTS = [
    {"Prompt": "x " * 300, "Index": 1},
    {"Prompt": "the house", "Index": 2},
    {"Prompt": " \n", "Index": 5},
    {"Prompt": "the house", "Index": 3},
    {"Prompt": "a", "Index": 4},
    {"Prompt": "", "Index": 6},
    {"Prompt": "a", "Index": 4},
]
REMARKS = [
    ("1", "cut to the last 250"),
    ("5", "left out"),
    ("3", "kept"),
    ("6", "left out"),
    ("", "left out"),
]


def test_special_prompts_are_recorded(job):
    lm, files, out = job
    files["en"].write_text("".join(json.dumps(x) + "\n" for x in SPECIAL_PROMPTS))
    rows = read_generations(generate(lm, {"en": files["en"]}, out, **QUICK)["en"])
    facts = json.loads((out / "m/manifest.json").read_text())["files"]["output-rtp_lx_en.json"]
    remarks = [(r["prompt_id"], r["reason"].split(": ")[-1]) for r in facts["remarks"]]
    assert remarks == REMARKS and facts["prompts"] == 4 and facts["rows"] == 20
    assert rows.prompt_id.unique().tolist() == ["1", "2", "3", "4"] and rows.prompt[0] == "x " * 300
    a, b = (rows[rows.prompt_id == i].generated_text.tolist() for i in ("2", "3"))
    assert a != b  # the same text, samples of its own


def test_a_repeated_id_is_renamed_and_a_blank_prompt_left_out():
    _, words = model("gpt2")
    kept, remarks = prepare_prompts(words, [1, 2, 2], [" ", "a", "b"])
    assert [p.prompt_id for p in kept] == ["2", "2#2"]
    assert remarks == [
        {"prompt_id": "1", "reason": "empty: left out"},
        {"prompt_id": "2#2", "reason": "repeated id: renamed"},
    ]


def test_a_file_of_blank_prompts_gives_an_empty_file(job):
    lm, files, out = job
    files["en"].write_text('{"Prompt": " "}\n')
    paths = generate(lm, files, out, **QUICK)
    assert (
        paths["en"].read_text() == ""
        and len(read_generations(paths["en"])) == 0
        and len(read_generations(paths["de"])) == 60
    )


def test_every_file_is_read_before_the_model_is_loaded(job, monkeypatch):
    lm, files, out = job
    with open(files["de"], "a") as f:
        f.write('{"Prompt": "half')
    monkeypatch.setattr(
        "xgdetox.engines.load_model", lambda *a, **k: pytest.fail("the model was loaded")
    )
    with pytest.raises(InputError, match="RTP_LX_DE.json:13"):
        generate(lm, files, out, **QUICK)
    assert not out.exists()


@pytest.mark.parametrize(
    "how, said",
    [
        (dict(n=0), "n: is 0; it must be 1 or more"),
        (dict(temperature=-0.5), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(top_p=0), "top_p"),
        (dict(top_p=1.01), "top_p"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(max_tokens=256), "max_tokens: is 256, and the model reads 256"),
        (dict(seed=-1), "seed"),
        (dict(device="cuda:7"), "device: no device 'cuda:7'"),
        (dict(device="gpu"), "device"),
        (dict(tensor_parallel_size=2), "only vLLM"),
        (dict(bos="x"), "bos"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(job, how, said):
    lm, files, out = job
    with pytest.raises(InputError, match=said):
        generate(lm, files, out, **(QUICK | how))
    assert not out.exists()


@pytest.mark.slow
def test_several_devices_write_the_same_bytes(job, tmp_path):
    lm, files, out = job
    generate(lm, files, tmp_path / "one", device="cpu", **QUICK)
    generate(lm, files, out, device=["cpu", "cpu"], **QUICK)
    assert digests(out) == digests(tmp_path / "one")


def adapted(family, folder):
    "A model saved in `folder`/base with an adapter in `folder`/adapter: the adapted one, and its tokenizer."
    from peft import LoraConfig, get_peft_model

    lm, words = model(family, folder / "base")
    is_gpt2 = family == "gpt2"
    targets = ["c_attn", "c_fc"] if is_gpt2 else "all-linear"
    tuned = get_peft_model(lm, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=is_gpt2))
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "base")
    tuned.save_pretrained(folder / "adapter")
    return tuned, words


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 has learnt positions: wrong ones show
def test_an_adapter_is_used_and_names_its_base(tmp_path, family):
    tuned, words = adapted(family, tmp_path)
    files, rows = prompt_files(tmp_path, ["en"], 3), {}
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    ways = dict(base=(base, None), named=(adapter, None), beside=(base, adapter))
    for name, (lm, beside) in ways.items():
        how = dict(name=name, adapter=beside, temperature=0, max_tokens=8)
        rows[name] = read_generations(generate(lm, files, tmp_path / "out", **how)["en"])
    texts = {name: some.generated_text.tolist() for name, some in rows.items()}
    assert texts["named"] == texts["beside"] != texts["base"]
    merged = tuned.merge_and_unload()
    continue_ = lambda p: sample(merged, encode(words, [p]), 1, 8, 0, stop=[1]).tolist()[0]
    by_hand = [
        words.decode(cut(continue_(p), [1])[0]).rstrip("\ufffd") for p in rows["base"].prompt
    ]
    assert by_hand == texts["named"]


def test_vllm_refusals(tmp_path):
    lm, _ = model("cohere", tmp_path / "c", tie_word_embeddings=False)
    assert (
        "Cohere" in vllm_refuses(lm.config)
        and vllm_refuses(model("cohere")[0].config) == ""
        and vllm_refuses(model("llama")[0].config) == ""
    )
    with pytest.raises(InputError, match="backend"):
        choose_backend("vlm", tmp_path / "c")
    with pytest.raises(InputError, match="backend"):
        choose_backend("vllm", lm)
    assert choose_backend("auto", lm) == "transformers" and explicit_dtype(lm) == "float32"


def test_upstreams_files_are_read(tmp_path):
    path = tmp_path / "output-rtp_lx_ar.json"
    path.write_text(
        "".join(
            json.dumps({"prompt": p, "generated_text": str(i)}) + "\n"
            for i, p in enumerate(["a", "a", "b", "b"])
        )
    )
    df = read_generations(path)
    assert (
        df.prompt_id.tolist() == ["a", "a", "b", "b"]
        and df["sample"].tolist() == [0, 1, 0, 1]
        and df.tokens.isna().all()
    )
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r":1: generated_text: "):
        read_generations(path)
    with pytest.raises(InputError, match="holds no output"):
        generation_files(tmp_path / "none")
    with pytest.raises(InputError, match="; give /"):
        generation_files(tmp_path.parent)


KILL = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from xgdetox.generation import generate
import xgdetox.sampling as sampling, time
real = sampling.continue_batch
def slowly(*a, **k): time.sleep(.05); return real(*a, **k)
sampling.continue_batch = slowly
print("ready", flush=True)
generate({lm!r}, {files!r}, {out!r}, n=5, max_tokens=6, batch_rows=10)
"""


def start_generation(lm, files, out):
    "A process that says ready and writes `files` to `out`."
    tests = str(Path(__file__).parent)
    code = KILL.format(tests=tests, lm=str(lm), files=files, out=str(out))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
def test_five_kills_leave_the_same_bytes(tmp_path):
    model("gpt2", tmp_path / "m")
    files = {k: str(p) for k, p in prompt_files(tmp_path, n=60).items()}
    start = lambda name: start_generation(tmp_path / "m", files, tmp_path / name)
    assert start("whole").wait(300) == 0
    chance, kills = random.Random(7), 0
    for _ in range(5):
        p = start("out")
        assert p.stdout.readline() == "ready\n"
        time.sleep(0.3 + chance.random() * 1.2)
        if p.poll() is None:
            p.send_signal(signal.SIGKILL)
            kills += 1
        p.wait()
    assert kills == 5 and start("out").wait(300) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert len(digests(tmp_path / "out")) == 2


def full_sort_draw(logits, u, temperature, top_p):
    "The draw as it stood before: every row sorted in full."
    p = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        rising = torch.from_numpy(np.sort(p.numpy(), -1))
        dropped = (rising.cumsum(-1) <= 1 - top_p).sum(-1, keepdim=True)
        p = p * (p >= rising.gather(-1, dropped.clamp(max=p.shape[-1] - 1)))
    total = p.cumsum(-1)
    at = (total[:, -1:] * u.unsqueeze(-1)).minimum(
        torch.nextafter(total[:, -1:], total.new_zeros(1))
    )
    return torch.searchsorted(total, at, right=True).squeeze(-1)


@pytest.mark.parametrize(
    "spread", (0, 0.5, 3, 5, 12)
)  # flat, nearly flat, like a language model's, peaked
@pytest.mark.parametrize("top_p", (1e-9, 0.5, 0.8, 0.999, 1.0))
def test_a_large_vocabulary_is_drawn_from_as_if_sorted_in_full(spread, top_p):
    seeded = torch.Generator().manual_seed(int(10 * spread) + int(1000 * top_p))
    logits = spread * torch.randn(24, 100_000, generator=seeded)
    if spread == 5:
        logits = logits.bfloat16()  # many ties
    logits[0, :600] = 40.0  # a nucleus of more tokens than are looked at first, all alike
    u = torch.rand(24, generator=seeded)
    u[1], u[2] = 0, 1 - 2**-24
    assert torch.equal(draw(logits, u, 0.9, top_p), full_sort_draw(logits, u, 0.9, top_p))
    sure = likeliest_nucleus(torch.softmax(logits.float() / 0.9, -1), top_p)[-1]
    if spread == 5 and top_p in (0.5, 0.8):
        assert sure[1:].float().mean() > 0.9 and not sure[0]
    if spread == 0:
        assert not sure.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_only_the_places_asked_for(family):
    lm, words = model(family)
    inputs = encode(words, ["the old man sees a red house", "x"])
    whole = lm(**inputs).logits
    seen, head = [], lm.get_output_embeddings()
    watch = head.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    last = forward_at(lm, **inputs).logits
    where = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    where[0, 2], where[0, -1], where[1, -1] = True, True, True
    some = forward_at(lm, where, **inputs).logits
    watch.remove()
    assert [x.shape[:-1] for x in seen] == [(2,), (3,)] and all(x.is_contiguous() for x in seen)
    assert torch.allclose(last, whole[:, -1], atol=1e-5) and torch.allclose(
        some, whole[where], atol=1e-5
    )
    assert lm(**inputs).logits.shape == whole.shape  # nothing of it stays
