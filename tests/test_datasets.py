"Data sets: downloads against a server of our own, what a person fetched, the table, the paper's numbers."

import http.server
import json
import signal
import subprocess
import sys
import threading
import types
import zipfile

import pytest
from small_files import jsonl, pair, refused

from xgdetox.data import load_pairs
from xgdetox.datasets import (
    DATASETS,
    check_dataset,
    data_table,
    download,
    get_dataset,
    paper_numbers,
)
from xgdetox.files import read_json


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; cuts the first reply off in the middle when `cut`.

    It understands Range, unless `odd`: then it answers from another place."""

    protocol_version, content, cut, odd, asked = "HTTP/1.1", b"", False, False, []

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        Server.asked.append(start)
        self.close_connection = True
        if self.path.endswith("gone"):
            self.send_error(404)
        elif start >= len(Server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(Server.content)}")
            self.end_headers()
        else:
            self.send_from(start)

    def send_from(self, start):
        body = Server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range",
                f"bytes {start + Server.odd}-{len(Server.content) - 1}/{len(Server.content)}",
            )
        if self.path.endswith("chunked"):
            # a length that is not told beforehand, and a reply that ends before its end
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nabcde\r\n5\r\nab")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if Server.cut and not start else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    Server.asked, Server.cut, Server.odd = [], False, False
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_download_goes_on_where_it_stopped_and_pins_what_it_got(tmp_path, server, monkeypatch):
    Server.content, Server.cut = b"word\n" + b"text\n" * 9_999, True
    file = next(iter(DATASETS["hatecheck"].files))
    error = refused(get_dataset, "hatecheck", tmp_path, {file: f"{server}/p"})
    assert "goes on" in error.remedy and not (tmp_path / file).exists()
    assert "has 9,999 rows, not 3,728" in str(
        refused(get_dataset, "hatecheck", tmp_path, {file: f"{server}/p"})
    )
    assert Server.asked == [0, 25_000] and (tmp_path / file).read_bytes() == Server.content
    monkeypatch.setitem(DATASETS["hatecheck"].expect, file, 9_999)
    assert get_dataset("hatecheck", tmp_path, {file: f"{server}/p"}).kept == 1
    assert len(Server.asked) == 2  # it is there: nothing is asked again
    (tmp_path / file).write_bytes(b"another")
    assert "downloaded first" in str(refused(get_dataset, "hatecheck", tmp_path, {}))
    Server.cut, probe = False, next(iter(DATASETS["probe"].files))  # its hash is known beforehand
    assert "published" in str(refused(get_dataset, "probe", tmp_path, {probe: f"{server}/p"}))


def test_download_of_a_finished_part_and_of_a_missing_page(tmp_path, server):
    Server.content = b"x" * 10
    (tmp_path / "f.part").write_bytes(b"x" * 10)
    assert download(f"{server}/f", tmp_path / "f").read_bytes() == b"x" * 10
    assert (
        "404" in str(refused(download, f"{server}/gone", tmp_path / "g"))
        and not (tmp_path / "g").exists()
    )
    assert refused(download, "http://127.0.0.1:9/none", tmp_path / "h").remedy


def test_a_part_that_cannot_be_gone_on_with_is_never_taken_for_the_whole(tmp_path, server):
    Server.content = b"0123456789"
    (tmp_path / "longer.part").write_bytes(b"of another file")
    assert download(
        f"{server}/longer", tmp_path / "longer"
    ).read_bytes() == Server.content and Server.asked == [15, 0]
    (tmp_path / "odd.part").write_bytes(b"0123")
    Server.odd = True
    assert (
        "another part" in str(refused(download, f"{server}/odd", tmp_path / "odd"))
        and (tmp_path / "odd.part").read_bytes() == b"0123"
    )
    Server.odd = False
    assert download(f"{server}/odd", tmp_path / "odd").read_bytes() == Server.content
    assert (
        refused(download, f"{server}/chunked", tmp_path / "cut").remedy
        and not (tmp_path / "cut").exists()
    )


def test_a_killed_download_goes_on_in_the_next_process(tmp_path, server):
    Server.content, Server.cut = b"word\n" * 10_000, True
    code = f"""
import os
from pathlib import Path
from xgdetox.datasets import download
try:
    download("{server}/p", Path("{tmp_path}/p"))
finally:
    os.kill(os.getpid(), 9)
"""
    assert (
        subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
        and not (tmp_path / "p").exists()
    )
    assert download(
        f"{server}/p", tmp_path / "p"
    ).read_bytes() == Server.content and Server.asked == [0, 25_000]


def drive(monkeypatch, names, asked, fail=()):
    "A gdown whose Drive holds one zip of pairs; it stops, leaving a part behind, as often as `fail` says."

    def download(id, output, resume, use_cookies):
        asked.append(id)
        if len(asked) in fail:
            open(f"{output}abcdefgh.part", "w").close()
            raise OSError("connection lost")
        with zipfile.ZipFile(output, "w") as z:
            for name in names:
                z.writestr(name, json.dumps(pair(name)) + "\n")
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))


@pytest.mark.parametrize("top", ["toxicity_pairwise/", ""])
def test_pairs_come_from_drive_as_a_zip_and_are_counted(tmp_path, monkeypatch, top):
    asked = []
    drive(
        monkeypatch,
        ["__MACOSX/._split_0.jsonl"] * bool(top) + [f"{top}split_{i}.jsonl" for i in range(6)],
        asked,
        fail=[1],
    )
    assert "same command again" in refused(get_dataset, "pairs", tmp_path).remedy
    assert "pairwise/toxicity_pairwise has 6 rows, not 24,576" in str(
        refused(get_dataset, "pairs", tmp_path)
    )
    monkeypatch.setitem(DATASETS["pairs"].expect, "pairwise/toxicity_pairwise", 6)
    assert (
        get_dataset("pairs", tmp_path).kept == 7 and len(set(asked)) == 1 and len(asked) == 2
    )  # the zip and its six files; no other file is asked for
    assert (
        len(load_pairs(tmp_path / "pairwise/toxicity_pairwise").rows) == 6
        and len(read_json(tmp_path / "checksums.json")) == 7
    )
    (tmp_path / "pairwise/toxicity_pairwise.zip").write_bytes(
        (tmp_path / "pairwise/toxicity_pairwise.zip").read_bytes()[:-40]
    )
    assert "not a whole zip" in str(refused(get_dataset, "pairs", tmp_path))


def test_without_gdown_or_without_the_file_the_command_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=lambda **_: None))
    assert (
        "Drive" in str(e := refused(get_dataset, "pairs", tmp_path))
        and "toxicity_pairwise.zip" in e.remedy
    )
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert "pip install gdown" in refused(get_dataset, "pairs", tmp_path).remedy


def test_hub_data_sets(tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot_download(repo, *, repo_type, allow_patterns, local_dir):
        jsonl(
            tmp_path / "prompts/realtoxicityprompts/prompts.jsonl",
            [{"filename": "a", "begin": 0, "end": 1, "prompt": {"text": "Hi,", "toxicity": 0.1}}],
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert get_dataset("realtoxicityprompts", tmp_path).kept == 1
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: None)
    assert "no such files" in str(refused(get_dataset, "polyglotoxicityprompts", tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    assert "hub" in str(refused(get_dataset, "realtoxicityprompts", tmp_path))


def test_what_needs_a_person_says_so_and_unknown_names_are_refused(tmp_path):
    assert (
        "password" in refused(get_dataset, "prompts", tmp_path).remedy
        and "Kaggle" in refused(get_dataset, "jigsaw", tmp_path).remedy
    )
    assert "pairs" in refused(get_dataset, "nothing", tmp_path).remedy and not list(
        tmp_path.iterdir()
    )


def test_what_a_person_fetched_is_checked(tmp_path, monkeypatch):
    jsonl(tmp_path / "prompts/RTP_LX_EN.json", [{"Prompt": "Good morning,"}])
    assert (
        "has 1 rows, not 999" in str(refused(get_dataset, "prompts", tmp_path))
        and not (tmp_path / "checksums.json").exists()
    )
    monkeypatch.setitem(DATASETS["prompts"].expect, "prompts/RTP_LX_EN.json", 1)
    assert get_dataset("prompts", tmp_path).kept == 1 and check_dataset("prompts", tmp_path) == []
    jsonl(tmp_path / "labelled/jigsaw/other.csv", [])  # beside the file that is wanted
    assert "Kaggle" in refused(get_dataset, "jigsaw", tmp_path).remedy


def test_table_has_every_data_set_with_size_licence_state_and_a_way(tmp_path):
    for name in ("ar.txt", "cs.txt.gz", "de.txt.part"):
        (tmp_path / "lexicons/ldnoobw").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lexicons/ldnoobw" / name).touch()
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference/english-probe.safetensors").touch()
    table = data_table(tmp_path).set_index("name")
    assert list(table.index) == list(DATASETS) and not (table == "").any(axis=None)
    assert (
        table.state["ldnoobw"] == "2 of 16 files"
        and table.state["probe"] == "here (1 file)"
        and table.state["pairs"] == "not here"
    )
    for name, how in table.how.items():
        assert how == f"xgdetox data get {name}" or how.startswith("https://")
    assert set(data_table(tmp_path / "none").state) == {"not here"}


def test_addresses_name_a_commit():
    for d in DATASETS.values():
        if d.how == "https":
            assert all(
                a.split("/")[5].isalnum() and len(a.split("/")[5]) == 40 for a in d.files.values()
            ), d.name


# the paper's numbers


def test_reference_numbers_are_whole_and_have_their_places():
    numbers = paper_numbers()
    assert (
        len(numbers["table2"]["rows"]) == 6 * 7
        and len(numbers["potential_sources"]["neurons"]) == 100
    )
    assert all("where" in v for v in numbers.values() if isinstance(v, dict))
    assert [tuple(n) for n in numbers["actual_sources"]["neurons"]] == [
        tuple(numbers["potential_sources"]["neurons"][r - 1])
        for r in numbers["actual_sources"]["rank_in_potential_sources"]
    ]
    assert "table2" in refused(paper_numbers, "tabel2").remedy
