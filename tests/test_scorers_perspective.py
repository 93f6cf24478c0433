"The Perspective client against a faulty local service: nothing lost or asked twice, the quota kept, the key nowhere."

import collections
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import numpy as np
import pandas as pd
import pytest

from perspective_fake import KEY, UNSCORABLE, Service, true_score
from xgdetox.files import InputError
from xgdetox.scorers.perspective import Perspective
from xgdetox.scorers.base import digest, load_scorer
from xgdetox.ledger import look_up, open_ledger, scores_through, source_number
from xgdetox.scoring import score_generations

FAULTS = {
    "429": 0.06,
    "500": 0.06,
    "reset": 0.04,
    "slow": 0.02,
    "bad json": 0.03,
    "half": 0.02,
    "odd score": 0.02,
}


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def client(service, monkeypatch, **options):
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_URL", service.url)
    # a busy machine must neither time out nor use up the tries of a healthy text
    return Perspective(**{**dict(qps=200, first=0.02, timeout=3, workers=16, tries=25), **options})


def texts(n):
    return [f"text number {i}" for i in range(n)]


def outcomes(service, kind):
    return collections.Counter(e["text"] for e in service.log if e["outcome"] == kind)


ODD = [f"{prefix} text {i}" for i, prefix in enumerate(UNSCORABLE)]


@pytest.fixture
def faulty_run(tmp_path, key, monkeypatch):
    "A faulty service, the scorer, the ledger and the scores of 150 texts and of those that have none."
    asked = texts(150) + ODD + texts(20)  # twenty of them twice
    with Service(FAULTS, delay=0.005, slow=6, seed=1) as service:
        scorer, ledger = client(service, monkeypatch), open_ledger(tmp_path / "l.sqlite")
        found = scores_through(ledger, scorer, "en", list(dict.fromkeys(asked)))
        yield service, scorer, ledger, found


def test_every_scorable_text_is_scored_exactly_once(faulty_run):
    service, scorer, ledger, found = faulty_run
    scored = {t: s.score for t, s in found.items() if t not in ODD}
    assert scored == {t: true_score(t) for t in texts(150)}
    assert [found[t].reason for t in ODD] == list(UNSCORABLE.values())
    assert all(math.isnan(found[t].score) for t in ODD)
    once = outcomes(service, "scored")
    assert set(once.values()) == {1} and len(once) == 150
    for word, text in zip(UNSCORABLE.values(), ODD):
        assert outcomes(service, word)[text] == 1, "a lasting refusal is not asked again"
    happened = {e["outcome"] for e in service.log} & set(FAULTS)
    assert happened == set(FAULTS), "every kind of fault happened"
    assert {"429", "500", "connection", "timeout", "bad answer"} == set(scorer.faults)


def test_what_was_scored_is_kept_and_not_asked_again(faulty_run):
    service, scorer, ledger, _ = faulty_run
    asked = texts(150) + ODD
    came = [e for e in service.log if e["outcome"] == "came"]
    assert not any(e["stored"] for e in came) and all(e["attributes"] == ["TOXICITY"] for e in came)
    source = source_number(ledger, "perspective", "v1alpha1", "TOXICITY", "en")
    assert len(look_up(ledger, source, asked)) == 154
    assert ledger.execute("SELECT count(*) FROM claims").fetchone()[0] == 0
    scores_through(ledger, scorer, "en", asked)
    assert len([e for e in service.log if e["outcome"] == "came"]) == len(came)


def used(times, qps):
    "The share of the quota used, and the most requests in any second."
    times = np.sort(times)
    return (len(times) - 1) / (times[-1] - times[0]) / qps, max(
        np.searchsorted(times, t + 1, "left") - i for i, t in enumerate(times)
    )


def within_quota(times, qps, processes=1, late=0.1):
    """Between any two requests no more of them left than slots of the quota.

    This bound of a token bucket holds on a machine however busy; each process may hold one that is late."""
    t = np.sort(times)
    sent = np.arange(len(t)) - np.arange(len(t))[:, None]
    slots = qps * (t - t[:, None] + late) + 1 + processes + 1e-6
    return (sent <= slots)[np.triu_indices(len(t))].all()


def test_the_bound_of_the_quota_can_fail():
    assert (
        within_quota(np.arange(100) / 60, 60)
        and not within_quota(np.arange(100) / 66, 60)
        and not within_quota(np.r_[np.arange(50) / 60, np.full(20, 2.0)], 60)
    )


@pytest.fixture
def left(monkeypatch):
    "The moments at which requests leave."
    from concurrent.futures import ThreadPoolExecutor

    moments, submit = [], ThreadPoolExecutor.submit

    def noted(*args, **named):
        moments.append(time.time())
        return submit(*args, **named)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", noted)
    return moments


@pytest.mark.parametrize(
    "faults", [{}, {"429": 0.05, "500": 0.05, "reset": 0.05}], ids=["well", "faulty"]
)
def test_the_quota_is_kept_and_used(tmp_path, key, monkeypatch, left, faults):
    """The limit holds in every attempt, counted where requests leave.

    At least 95% of it are used, counted where they arrive, in one of eight attempts: a machine that stands still for
    half a second cannot use its slots, and what waited meanwhile arrives together."""
    seen = []
    for attempt in range(8):
        left.clear()
        with Service(faults, delay=0.1, seed=2 + attempt) as service:
            scorer = client(service, monkeypatch, qps=60, workers=None)
            scores_through(open_ledger(tmp_path / f"{attempt}.sqlite"), scorer, "en", texts(240))
            came = [e for e in service.log if e["outcome"] == "came"]
        assert len(left) == len(came) and within_quota(left, 60)
        first = {}
        for e in came:
            first.setdefault(e["text"], e["at"])
        last = max(first.values())  # after the last new text only late repeats follow
        share, most = used([e["at"] for e in came if e["at"] <= last], 60)
        seen.append((share, most))
        if 0.95 <= share <= 1.02 and most <= 60 * 1.1 + 1:
            return
    raise AssertionError(seen)


SHARER = """
import sys, json, time
from concurrent.futures import ThreadPoolExecutor as Pool
from xgdetox.ledger import open_ledger, scores_through
from xgdetox.scorers.perspective import Perspective
left, submit = [], Pool.submit
Pool.submit = lambda *a, **k: (left.append(time.time()), submit(*a, **k))[1]
ledger, scorer = open_ledger(sys.argv[1]), Perspective(qps=40, first=.02)
found = scores_through(ledger, scorer, 'en', [f'text number {i}' for i in range(160)])
print(json.dumps([len(found), left]))
"""


def test_two_processes_share_one_quota_and_the_work(tmp_path, key, monkeypatch):
    command = [sys.executable, "-c", SHARER, str(tmp_path / "l.sqlite")]
    with Service(delay=0.05) as service:
        env = {**os.environ, "XGDETOX_PERSPECTIVE_URL": service.url}
        start = lambda: subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        runs = [start() for _ in range(2)]
        said = [json.loads(p.communicate(timeout=240)[0]) for p in runs]
    assert [n for n, _ in said] == [160, 160]
    came = outcomes(service, "came")
    assert len(came) == 160 and set(came.values()) == {1}, (
        "no text is asked for twice, whoever asks"
    )
    left = [t for _, times in said for t in times]
    assert len(left) == 160 and within_quota(left, 40, processes=2)


def test_blanks_are_not_sent_and_the_file_is_whole(tmp_path, key, monkeypatch):
    rows = [dict(prompt="p", generated_text=t) for t in ("fine", " ", "[long] one", "fine")]
    (tmp_path / "output-rtp_lx_zh-hans.json").write_text(
        "".join(json.dumps(r) + "\n" for r in rows)
    )
    with Service() as service:
        out = score_generations(
            {"zh": tmp_path / "output-rtp_lx_zh-hans.json"},
            client(service, monkeypatch),
            tmp_path / "s",
        )
        assert sorted(e["text"] for e in service.log if e["outcome"] == "came") == [
            "[long] one",
            "fine",
        ]
        assert {e["language"] for e in service.log if e["outcome"] == "came"} == {"zh"}
    got = [json.loads(line) for line in out["zh"].read_text().splitlines()]
    assert [r["reason"] for r in got] == ["", "blank", "COMMENT_TOO_LONG", ""] and got[0][
        "score"
    ] == got[3]["score"] == true_score("fine")


def test_what_was_given_up_is_asked_again_next_time(tmp_path, key, monkeypatch):
    (tmp_path / "output-rtp_lx_en.json").write_text(
        "".join(json.dumps(dict(prompt="p", generated_text=t)) + "\n" for t in texts(6))
    )
    files = {"en": tmp_path / "output-rtp_lx_en.json"}
    with Service({"500": 1.0}) as service:
        out = score_generations(files, client(service, monkeypatch, tries=2), tmp_path / "s")
        assert {json.loads(line)["reason"] for line in out["en"].read_text().splitlines()} == {
            "service unavailable"
        }
        service.faults = {}
        score_generations(files, client(service, monkeypatch, tries=2), tmp_path / "s")
    assert [json.loads(line)["score"] for line in out["en"].read_text().splitlines()] == [
        true_score(t) for t in texts(6)
    ]
    assert (
        json.loads((tmp_path / "s/manifest.json").read_text())["languages"]["en"]["missing"] == {}
    )


def test_an_outage_ends_the_run_and_keeps_what_was_had(tmp_path, key, monkeypatch):
    with Service() as service:
        scorer, ledger = (
            client(service, monkeypatch, first=0.001),
            open_ledger(tmp_path / "l.sqlite"),
        )
        scores_through(ledger, scorer, "en", texts(30))
        service.faults = {"reset": 1.0}
        with pytest.raises(InputError, match="does not answer"):
            scores_through(ledger, scorer, "en", texts(400))
    assert show(ledger) == 30 and ledger.execute("SELECT count(*) FROM claims").fetchone()[0] == 0


def show(ledger):
    return ledger.execute("SELECT count(score) FROM scores").fetchone()[0]


def test_after_its_end_the_message_says_what_to_use(key, monkeypatch, tmp_path):
    monkeypatch.setattr("xgdetox.scorers.perspective.PERSPECTIVE_END", (2020, 1, 1))
    with Service(ended=True) as service:
        with pytest.raises(
            InputError, match=r"ended on 31 December 2026.*classifier:NAME.*import:FOLDER"
        ):
            client(service, monkeypatch).score(["a"], "en")
    with pytest.raises(InputError, match=r"ended on 31 December 2026"):
        client(service, monkeypatch).score(texts(40), "en")  # nobody listens any more


def test_the_key_is_in_no_error_log_or_file(tmp_path, key, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with Service({"500": 0.3, "reset": 0.2}, seed=3) as service:
        scorer = client(service, monkeypatch)
        scores_through(open_ledger(tmp_path / "l.sqlite"), scorer, "en", texts(40))
        monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY", KEY + "-wrong")
        with pytest.raises(InputError) as refused:
            client(service, monkeypatch).score(["a"], "en")
    assert "refuses every request (400 API_KEY_INVALID)" in str(refused.value)
    everything = (
        caplog.text
        + str(refused.value)
        + "".join(capfd.readouterr())
        + "".join(p.read_bytes().decode("latin-1") for p in tmp_path.rglob("*") if p.is_file())
    )
    assert KEY not in everything
    import traceback

    assert KEY not in "".join(traceback.format_exception(refused.value))


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY", raising=False)
    monkeypatch.delenv("XGDETOX_PERSPECTIVE_KEY_FILE", raising=False)


def test_the_key_comes_from_the_environment_only(tmp_path, no_key, monkeypatch):
    with pytest.raises(InputError, match="no key"):
        load_scorer("perspective")
    for spec in ("perspective:" + KEY, "perspective?key=" + KEY):
        with pytest.raises(InputError, match="no place on a command line") as e:
            load_scorer(spec)
        assert KEY not in str(e.value)
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY_FILE", str(tmp_path / "key"))
    assert load_scorer("perspective?qps=7&attributes=toxicity,insult").quota.qps == 7
    assert load_scorer("perspective?attributes=").attributes == ("TOXICITY",)
    monkeypatch.setenv("XGDETOX_PERSPECTIVE_URL", "nonsense")
    with pytest.raises(InputError, match="XGDETOX_PERSPECTIVE_URL: is not a web address"):
        load_scorer("perspective")


@pytest.mark.parametrize(
    "query", [KEY, f"qps={KEY}", "qps=0", "tries=nan", "timeout=-1", "speed=7"]
)
def test_a_key_in_the_wrong_place_is_not_repeated(key, query):
    with pytest.raises(InputError, match="unknown option" if query == "speed=7" else None) as e:
        load_scorer(f"perspective?{query}")
    assert KEY not in str(e.value)


def test_attributes_that_are_not_offered_never_cost_the_score(tmp_path, key, monkeypatch):
    """A word that is no attribute is refused before anything is asked.

    A language without one of several ends the run, and nothing is recorded as lasting."""
    with pytest.raises(InputError, match="unknown attribute"):
        load_scorer("perspective?attributes=TOXICITY,TYPO")
    with Service() as service:
        ledger, scorer = (
            open_ledger(tmp_path / "l.sqlite"),
            client(service, monkeypatch, attributes=("TOXICITY", "INSULT")),
        )
        with pytest.raises(InputError, match="ask for TOXICITY alone"):
            scores_through(ledger, scorer, "cs", ["[tongue] one"])
        assert not ledger.execute("SELECT count(*) FROM scores").fetchone()[0]


def test_other_attributes_come_with_the_same_answer(tmp_path, key, monkeypatch):
    with Service() as service:
        ledger, scorer = (
            open_ledger(tmp_path / "l.sqlite"),
            client(service, monkeypatch, attributes=("TOXICITY", "INSULT")),
        )
        scores_through(ledger, scorer, "en", texts(5))
        monkeypatch.setattr(scorer, "attribute", "INSULT")
        scores_through(ledger, scorer, "en", texts(5))
        assert len([e for e in service.log if e["outcome"] == "came"]) == 5


def test_an_attribute_asked_for_later_is_fetched_once(tmp_path, key, monkeypatch):
    with Service() as service:
        ledger, came = (
            open_ledger(tmp_path / "l.sqlite"),
            lambda: len([e for e in service.log if e["outcome"] == "came"]),
        )
        first = {
            t: s.score
            for t, s in scores_through(ledger, client(service, monkeypatch), "en", texts(5)).items()
        }
        both = client(service, monkeypatch, attributes=("TOXICITY", "INSULT"))
        assert (
            came() == 5
            and {t: s.score for t, s in scores_through(ledger, both, "en", texts(5)).items()}
            == first
            and came() == 10
        )
        assert {
            t: s.score for t, s in scores_through(ledger, both, "en", texts(5)).items()
        } == first and came() == 10
        assert dict(
            ledger.execute(
                "SELECT attribute, count(score) FROM scores JOIN sources ON source = id GROUP BY attribute"
            )
        ) == {"TOXICITY": 5, "INSULT": 5}


@pytest.fixture
def two_runs(tmp_path, key, monkeypatch):
    "Score files of 20 texts: with one attribute, and then with two."
    rows = [dict(prompt=f"p{i // 5}", generated_text=f"text number {i}") for i in range(20)]
    file, ledger = tmp_path / "output-rtp_lx_en.json", tmp_path / "l.sqlite"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = []
    with Service() as service:
        for name, attributes in (("one", ("TOXICITY",)), ("two", ("TOXICITY", "INSULT"))):
            scorer = client(service, monkeypatch, attributes=attributes)
            scored = score_generations({"en": file}, scorer, tmp_path / name, ledger=ledger)
            found.append([json.loads(x) for x in scored["en"].read_text().splitlines()])
    return found


def test_several_attributes_stand_in_the_score_file(tmp_path, two_runs):
    alone, lines = two_runs
    for x in lines:
        assert set(x["attributes"]) == {"TOXICITY", "INSULT"}
        assert x["attributes"]["TOXICITY"] == x["score"]
    kept = open_ledger(tmp_path / "l.sqlite").execute(
        "SELECT hex(text), score FROM scores JOIN sources ON source = id WHERE attribute = 'INSULT'"
    )
    kept, hashes = dict(kept), [digest(t).hex().upper() for t in texts(20)]
    assert [x["attributes"]["INSULT"] for x in lines] == [kept[h] for h in hashes]
    plain = lambda rows: [(x["score"], x["reason"]) for x in rows]
    assert plain(lines) == plain(alone)


def test_another_attribute_has_a_table_of_its_own(tmp_path, two_runs, run, fails):
    words = ["--attribute", "INSULT", "--output", tmp_path / "t.csv"]
    run("toxicity", "--scores", tmp_path / "two", *words)
    t = pd.read_csv(tmp_path / "t.csv").set_index("metric")
    mean = np.mean([x["attributes"]["INSULT"] for x in two_runs[1]])
    assert set(t.attribute) == {"INSULT"} and t.value["average_toxicity"] == pytest.approx(mean)
    assert "has no INSULT" in fails("toxicity", "--scores", tmp_path / "one", *words)


WORKER = """
import os
import sys
from xgdetox.ledger import open_ledger, scores_through
from xgdetox.scorers.perspective import Perspective
texts = [f"text number {i}" for i in range(int(sys.argv[2]))]
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            ledger = open_ledger(sys.argv[1])
            scorer = Perspective(qps=150, first=.02, timeout=10, workers=8)
            scores_through(ledger, scorer, "en", texts)
            os._exit(0)
        except BaseException as e:
            print(e, file=sys.stderr)
            os._exit(3)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    "A process that forks a worker for each line that it is sent."

    def __init__(self, service, ledger, n):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(ledger), str(n)],
            env={**os.environ, "XGDETOX_PERSPECTIVE_URL": service.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.process.stdout.readline() == "ready\n"

    def fork(self):
        "The process id of a new worker."
        self.process.stdin.write("go\n")
        return int(self.process.stdout.readline())

    def code(self):
        "The exit code of the worker, once it has ended."
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)


def scored_again(log, ends):
    "Run by run (they end at `ends`), how often a text was scored that an earlier run had been given already."
    seen, start, again = set(), 0, []
    for end in ends:
        now = [e["text"] for e in log[start:end] if e["outcome"] == "scored"]
        again.append(sum(t in seen for t in now))
        seen |= set(now)
        start = end
    return again


@pytest.mark.slow
def test_twenty_kills_lose_no_score(tmp_path, key):
    "kill -9 at 20 random moments: everything is scored, and each kill repeats at most what was in flight."
    n, workers, chance, ledger = 1500, 8, random.Random(4), tmp_path / "l.sqlite"
    with Service({"429": 0.03, "500": 0.03, "reset": 0.02}, delay=0.01, seed=4) as service:
        nursery, kills, code, ends = Nursery(service, ledger, n), 0, None, []
        while code != 0:
            before, pid = len(service.log), nursery.fork()
            if kills < 20:
                while len(service.log) == before:
                    time.sleep(0.002)  # it asks: the moment is counted from its first request
                time.sleep(chance.uniform(0, 0.6))
                os.kill(pid, signal.SIGKILL)
                kills += 1
            code = nursery.code()
            assert code in (0, -9), code
            ends.append(len(service.log))
        nursery.close()
    scored = set(outcomes(service, "scored"))
    assert kills == 20 and scored == set(texts(n)) and show(open_ledger(ledger)) == n
    again = scored_again(service.log, ends)
    assert max(again) <= workers, again
    print("repeated after each kill:", again)


@pytest.mark.parametrize(
    "fault, kind, said",
    [
        ("proxy", "400", "is hidden by something that answers 400 with a page of its own"),
        ("429", "429", "answers 429, too many requests"),
        ("500", "500", "answers 500, a fault of its own"),
        ("bad json", "bad answer", "answers with what is not its JSON"),
        ("deep", "bad answer", "answers with what is not its JSON"),
        ("huge", "too large", "answers with more than 1 MiB"),
        ("reset", "connection", "does not answer"),
    ],
)
def test_what_passes_is_never_recorded_as_lasting(tmp_path, key, monkeypatch, fault, kind, said):
    """Sixty texts through something that is not the service: nothing is stored;
    the message says what it did, and later all of them are scored."""
    with Service({fault: 1.0}) as service:
        ledger, scorer = (
            open_ledger(tmp_path / "l.sqlite"),
            client(service, monkeypatch, first=0.001),
        )
        with pytest.raises(InputError, match=said) as e:
            scores_through(ledger, scorer, "en", texts(60))
        assert KEY not in str(e.value) and set(scorer.faults) == {kind}
        assert ledger.execute(
            "SELECT (SELECT count(*) FROM scores) + (SELECT count(*) FROM claims)"
        ).fetchone() == (0,)
        service.faults = {}
        assert {
            t: s.score
            for t, s in scores_through(
                ledger, client(service, monkeypatch), "en", texts(60)
            ).items()
        } == {t: true_score(t) for t in texts(60)}


@pytest.mark.parametrize("fault", ["trickle", "slow head"])
def test_an_answer_has_a_deadline_in_all(key, monkeypatch, fault):
    "A byte every twentieth of a second would last ten seconds; half a second is allowed."
    from xgdetox.scorers.patience import Fault
    from xgdetox.scorers.perspective import ask_perspective

    with Service({fault: 1.0}) as service:
        scorer, since = client(service, monkeypatch, timeout=0.5), time.monotonic()
        assert (
            ask_perspective(scorer.service, "a", "en", ("TOXICITY",)) == Fault("timeout")
            and 0.4 < time.monotonic() - since < 5
        )
        service.faults = {}
        assert ask_perspective(scorer.service, "a", "en", ("TOXICITY",)).score == true_score("a")


NOW = 1_000_000.0
PAUSES = {  # what the header says: seconds
    "3": 3,
    "0.5": 0.5,
    "86400": 600,
    "9" * 400: 0,
    formatdate(NOW + 40, usegmt=True): 40,
    formatdate(NOW + 10**6, usegmt=True): 600,
    formatdate(NOW - 5, usegmt=True): 0,
    "": 0,
    None: 0,
    "soon": 0,
    "-3": 0,
    "nan": 0,
    "Thu, 99 Jan 2020 00:00:00 GMT": 0,
}


def test_retry_after_is_read_in_seconds_and_as_a_date():
    from xgdetox.scorers.perspective import retry_after

    for said, wanted in PAUSES.items():
        assert retry_after(said, NOW) == wanted, said


def test_retry_after_is_honoured_by_everyone(key, monkeypatch):
    "Everyone waits, not only the text that was turned away."
    with Service({"429": 1.0}, retry_after="2") as service:
        scorer = client(service, monkeypatch, workers=1, first=0.001)
        stream = scorer.stream(iter(texts(3)), "en")

        def later():
            while not service.log:
                time.sleep(0.01)
            service.faults = {}

        threading.Thread(target=later, daemon=True).start()
        assert sum(len(b) for b in stream) == 3
        came = [e["at"] for e in service.log if e["outcome"] == "came"]
        first = [e["at"] for e in service.log if e["outcome"] == "429"]
        assert first and min(t for t in came if t > first[0]) - first[0] >= 1.9


@pytest.mark.parametrize("fault", ["echo", "shout"])
def test_a_service_that_repeats_the_key_puts_it_nowhere(tmp_path, key, monkeypatch, fault):
    "Also where the key looks like a word of the service's: in no ledger, no score file, no message."
    shouted = "THE_SECRET_KEY"
    if fault == "shout":
        monkeypatch.setattr("perspective_fake.KEY", shouted)
        monkeypatch.setenv("XGDETOX_PERSPECTIVE_KEY", shouted)
    (tmp_path / "output-rtp_lx_en.json").write_text(
        "".join(json.dumps(dict(prompt="p", generated_text=t)) + "\n" for t in texts(3))
    )
    with Service({fault: 1.0}) as service:
        out = score_generations(
            {"en": tmp_path / "output-rtp_lx_en.json"},
            client(service, monkeypatch, tries=2, first=0.001),
            tmp_path / "s",
        )["en"]
    assert {json.loads(x)["reason"] for x in out.read_text().splitlines()} == {
        "service unavailable"
    }
    written = b"".join(p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert KEY.encode() not in written and shouted.encode() not in written


@pytest.mark.parametrize(
    "error",
    [
        {"status": "FAILED_PRECONDITION"},
        {"status": "OUT_OF_RANGE"},
        {"status": "INVALID_ARGUMENT", "details": [{"reason": "USER_PROJECT_DENIED"}]},
    ],
)
def test_what_the_platform_refuses_says_nothing_of_the_text(error):
    "A project without billing, a place that is not served: the same text has a score where that is over."
    from xgdetox.scorers.patience import Fault
    from xgdetox.scorers.perspective import http_fault, silence

    word = error.get("details", [{"reason": error["status"]}])[0]["reason"]
    assert http_fault(400, json.dumps({"error": {"code": 400, **error}}).encode(), {}) == Fault(
        f"400 {word}"
    )
    assert f"answers 400 {word}, which is about the key, the project or the place" in str(
        silence([f"400 {word}"])
    )
    assert (
        http_fault(400, b'{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}', {})
        == "INVALID_ARGUMENT"
    )
    assert [http_fault(code, b"<html>", {}).kind for code in (408, 413, 425)] == [
        "408",
        "413",
        "425",
    ]


GIVEN_UP = {
    "429": "answers 429, too many requests (6 times)",
    "500": "answers 500",
    "bad json": "answers with what is not its JSON",
}


def test_a_run_that_got_no_score_says_what_the_service_did(tmp_path, key, run, fails, monkeypatch):
    rows = [json.dumps(dict(prompt="p", generated_text=f"x {i}")) + "\n" for i in range(3)]
    (tmp_path / "output-rtp_lx_en.json").write_text("".join(rows))
    scorer = "perspective?qps=1000&tries=2&first=0.001"
    words = ["--generations", tmp_path, "--output-dir", tmp_path / "s", "--scorer", scorer]
    for fault, what in GIVEN_UP.items():
        with Service({fault: 1.0}, retry_after="0.01") as service:
            monkeypatch.setenv("XGDETOX_PERSPECTIVE_URL", service.url)
            assert f"(service unavailable: 3; the service {what}" in fails("score", *words)
    with Service() as service:
        monkeypatch.setenv("XGDETOX_PERSPECTIVE_URL", service.url)
        said = run("score", *words)
    assert "en: 3 of 3 scored" in said and "the service" not in said


ODD_WORDS = ("<script>", "AB", "A" * 65, "lower_case", "TWO WORDS", 7, None, ["X"], {"a": 1}, "")
ODD_BODIES = (
    b"",
    b"[]",
    b"null",
    b"{}",
    b'{"error": 3}',
    b'{"error": "BAD_REQUEST"}',
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"error": {"details": 3, "errors": 4}}',
)


def test_only_words_of_the_services_form_are_reasons():
    from xgdetox.scorers.patience import Fault
    from xgdetox.scorers.perspective import http_fault

    error = lambda **facts: json.dumps({"error": facts}).encode()
    body = lambda word: error(code=400, details=[{"errorType": word}])
    assert http_fault(400, body("COMMENT_TOO_LONG"), {}) == "COMMENT_TOO_LONG"
    for odd in (*map(body, ODD_WORDS), *ODD_BODIES):
        assert http_fault(400, odd, {}) == Fault("400"), odd[:90]
    refused = error(status="INVALID_ARGUMENT", errors=[{"reason": "keyInvalid"}])
    with pytest.raises(InputError, match=r"refuses every request \(400 INVALID_ARGUMENT\)"):
        http_fault(400, refused, {})


def claims(path):
    import sqlite3

    ledger = sqlite3.connect(path)
    found = ledger.execute("SELECT pid, count(*) FROM claims GROUP BY pid").fetchall()
    ledger.close()
    return found


WAITER = """
import sys
from xgdetox.ledger import open_ledger, scores_through
from xgdetox.scorers.perspective import Perspective
scorer = Perspective(qps=100, workers=4, timeout=60)
scores_through(open_ledger(sys.argv[1]), scorer, 'en', [f'text number {i}' for i in range(8)])
"""


def test_the_claims_of_a_killed_process_leave_the_ledger(tmp_path, key):
    """A process is killed while it waits for its answers.

    Whoever opens the ledger next finds no claim of it, whatever they ask for. Those of a living process stay."""
    path = tmp_path / "l.sqlite"
    with Service({"slow": 1.0}, slow=30) as service:
        asking = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(path)],
            env={**os.environ, "XGDETOX_PERSPECTIVE_URL": service.url},
        )
        while len(service.log) < 2:
            time.sleep(0.02)
        assert claims(path) == [(asking.pid, 8)]
        open_ledger(path).close()
        assert claims(path) == [(asking.pid, 8)], "it lives"
        asking.kill()
        asking.wait()
        assert claims(path) == [(asking.pid, 8)]
        open_ledger(path).close()
        assert claims(path) == []


SIX = ["TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT"]


def test_the_originals_six_attributes(tmp_path, key, monkeypatch, run):
    "--upstream-output asks for what the original asks for, in one request per text."
    rows = [json.dumps(dict(prompt="p", generated_text=t)) + "\n" for t in texts(4)]
    (tmp_path / "output-rtp_lx_en.json").write_text("".join(rows))
    words = ["--generations", tmp_path, "--scorer", "perspective?qps=100"]
    with Service() as service:
        monkeypatch.setenv("XGDETOX_PERSPECTIVE_URL", service.url)
        run("score", *words, "--output-dir", tmp_path / "s", "--upstream-output", tmp_path / "up")
        came = [e for e in service.log if e["outcome"] == "came"]
    assert len(came) == 4 and all(e["attributes"] == SIX for e in came)
    written = tmp_path / "up/perspective_api_eval-output-rtp_lx_en.json"
    answers = [json.loads(x)["response"] for x in written.read_text().splitlines()]
    assert len(answers) == 4
    for text, answer in zip(texts(4), answers):
        scores = answer["attributeScores"]
        assert list(scores) == SIX and "scorer" not in answer
        wanted = dict(value=true_score(text), type="PROBABILITY")
        assert scores["THREAT"]["summaryScore"] == wanted


def test_a_long_wait_is_said_and_said_again(key, monkeypatch, capfd):
    "Each refusal asks for a pause; whoever waits hears of it once in a while, and not any more when answers come."
    with Service({"429": 1.0}, retry_after="0.2") as service:
        scorer = client(service, monkeypatch, workers=1, first=0.01)
        scorer.notice = 0.3, 0.5
        stream = scorer.stream(iter(texts(3)), "en")
        threading.Timer(1.5, lambda: setattr(service, "faults", {})).start()
        assert sum(len(batch) for batch in stream) == 3
    said = capfd.readouterr().err.splitlines()
    assert 2 <= len(said) <= 5 and "answers 429, too many requests; no answer for 1 min" in said[0]
    assert all(line.startswith("xgdetox: the Perspective API ") for line in said), said


def test_who_waits_for_a_quota_that_others_hold_is_told(tmp_path, key, monkeypatch, capfd):
    "The pause that one process was told to keep holds for all that share the ledger: they have seen no fault."
    ledger = open_ledger(tmp_path / "l.sqlite")
    with Service() as service:
        scorer = client(service, monkeypatch)
        scorer.notice = 0.3, 60.0
        scorer.share(ledger)
        scorer.quota.hold(1.0)
        scorer.quota.after = None
        assert len(scores_through(ledger, scorer, "en", texts(1))) == 1
    (said,) = capfd.readouterr().err.splitlines()
    assert "may not be asked yet, by the quota in the ledger" in said


def test_a_service_that_answers_gives_no_notice(key, monkeypatch, capfd):
    with Service(delay=0.01) as service:
        client(service, monkeypatch).score(texts(20), "en")
    assert capfd.readouterr().err == ""
