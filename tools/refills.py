"""Whether the committed pages are what their code gives now.

A page is run again in a copy, and the tables behind its figures are compared. That takes minutes, so
tests/refilled.txt keeps a hash of the code that the outputs of each page come from; a page whose hash is
the same need not run."""

import ast
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
REFILLED = (
    ROOT / "tests" / "refilled.txt"
)  # pages, and a hash of the code that their outputs come from
TOLERANCE = dict(
    rel=0.02, abs=0.02
)  # other processors round differently, and a sampled text may change
ONLY_TABLES = (
    "index",
    "results",
    "differences",
)  # pages that only read results/: every table is compared
FIGURE = re.compile(r"^#\|\s*label:\s*fig-", re.M)


# ---- what a page's outputs depend on


def module_files() -> dict[str, Path]:
    "The package's modules by dotted name; a folder stands for its __init__.py."
    found = {}
    for path in sorted((ROOT / "xgdetox").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    found.pop("xgdetox._modidx", None)  # an index of the package, which nothing computes with
    return found


def named_modules(tree: ast.AST, package: list[str]) -> set[str]:
    "Every dotted name that code may import, inside functions too; `package` is where relative imports start."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("xgdetox."):
            names.add(str(node.value).partition(":")[0])  # imported by name when it is asked for
    return names


def without_words(tree: ast.AST) -> str:
    "The code of a tree without comments, layout and docstrings, which change no output."
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and not isinstance(node, ast.Interactive):
                body[0] = ast.Pass()
    return ast.unparse(tree)


def page_code(page: Path) -> str:
    "The code of a page as one text; a magic line stands as a text of its own."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    code = re.sub(r"^([!%].*)$", lambda m: f"_ = {m[1]!r}", code, flags=re.M)
    return re.sub(r"^from __future__.*$", "", code, flags=re.M)


def needed_modules(tree: ast.AST) -> list[str]:
    "The package's modules that a page needs, directly or through others, sorted."
    files = module_files()
    open_names, found = named_modules(tree, []), set()
    while names := {n for n in open_names if n in files} - found:
        found |= names
        open_names = set()
        for name in names:
            package = name.split(".") if files[name].stem == "__init__" else name.split(".")[:-1]
            open_names |= {name.rpartition(".")[0]}
            open_names |= named_modules(ast.parse(files[name].read_text("utf-8")), package)
    return sorted(found)


def other_files(code: str) -> list[Path]:
    "What else a page's outputs depend on: the package's assets, pinned versions, tables that it reads."
    files = [p for p in (ROOT / "xgdetox" / "assets").rglob("*") if p.is_file()]
    if "results" in code:
        files += (ROOT / "results").rglob("*.csv")
    return sorted([*files, ROOT / "constraints.txt"])


def page_hash(page: Path) -> str:
    "A hash of everything that a page's outputs depend on."
    code, files = page_code(page), module_files()
    tree, digest = ast.parse(code), hashlib.sha256()
    modules = needed_modules(tree)
    digest.update(without_words(tree).encode())
    for name in modules:
        digest.update(without_words(ast.parse(files[name].read_text("utf-8"))).encode())
    for path in other_files(code):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def refilled() -> set[tuple[str, str]]:
    "The kept pairs of (page, hash)."
    lines = REFILLED.read_text("utf-8").splitlines() if REFILLED.exists() else []
    return {tuple(line.split(": ")) for line in lines}


def keep_hash(page: Path) -> None:
    "Write down that the outputs of `page` are what its code gives now."
    name = page.relative_to(NBS).as_posix()
    kept = {pair for pair in refilled() if pair[0] != name} | {(name, page_hash(page))}
    REFILLED.write_text("".join(f"{p}: {h}\n" for p, h in sorted(kept)), encoding="utf-8")


def is_fresh(page: Path) -> bool:
    "Whether the outputs of a page come from exactly this code."
    return (page.relative_to(NBS).as_posix(), page_hash(page)) in refilled()


# ---- the tables behind the committed figures, against a refill


def source(cell) -> str:
    return "".join(cell["source"])


def code_cells(page: Path) -> list[dict]:
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code"]


def has_figures(page: Path) -> bool:
    return any(FIGURE.search(source(c)) for c in code_cells(page))


FOR_READERS = (
    "--InlineBackend.figure_formats=svg",
    "--IPKernelApp.exec_lines=import pandas; pandas.options.display.max_colwidth = None; del pandas",
)  # figures that stay sharp and follow light and dark, table cells that are not cut


def execute(page: Path):
    "The notebook `page` run where it stands, with the outputs that a reader sees: nothing from stderr."
    return run_cells(nbformat.read(page, as_version=4), page.parent)


def run_cells(nb, folder: Path):
    "The notebook `nb` run in `folder`, its outputs without what went to stderr."
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(nb, timeout=900, resources=where, extra_arguments=list(FOR_READERS))
    client.execute(env={**os.environ, "MATPLOTLIBRC": str(ROOT / "tools" / "matplotlibrc")})
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return nb


def numbers(cell) -> list[float]:
    "The numbers of a cell's tables, in order."
    shown = ["".join(o.get("data", {}).get("text/html", "")) for o in cell["outputs"]]
    tables = "".join(text for text in shown if "<table" in text)
    plain = re.sub(r"<style.*?</style>|<[^>]+>", " ", tables, flags=re.S)
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", plain)]


def same_numbers(committed: list[float], refilled: list[float]) -> bool:
    "Whether a table is the committed one but for rounding; missing values are no numbers and do not count."
    close = lambda a, b: math.isclose(a, b, rel_tol=TOLERANCE["rel"], abs_tol=TOLERANCE["abs"])
    return len(committed) == len(refilled) and all(map(close, committed, refilled))


def compared_cells(code: list[dict], every: bool) -> list[int]:
    "Positions of the cells whose table is compared: every one, or those that the next figure is drawn from."
    tables = [i for i, c in enumerate(code) if numbers(c)]
    if every:
        return tables
    figures = [i for i, c in enumerate(code) if FIGURE.search(source(c))]
    behind = [[t for t in tables if t <= i][-1:] for i in figures]
    return sorted({t for found in behind for t in found})


def copy_of(page: Path, folder: Path) -> Path:
    "A copy of `page` in `folder` that can run: beside the committed tables and grid files, without its export."
    for name in ("nbs", "results", "experiments"):
        ignored = shutil.ignore_patterns("*.lock", "explore")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    ask = [
        "git",
        "ls-files",
        "-o",
        "results",
    ]  # a table that is not committed yet is behind no committed figure
    untracked = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in untracked.splitlines():
        (folder / name).unlink(missing_ok=True)
    copy = folder / page.relative_to(ROOT)
    raw = json.loads(copy.read_text(encoding="utf-8"))
    raw["cells"] = [c for c in raw["cells"] if "nbdev_export()" not in source(c)]
    copy.write_text(json.dumps(raw), encoding="utf-8")
    return copy


def changed_tables(page: Path, folder: Path) -> list[str]:
    "Where a refill of `page`, run in `folder`, gives another table than the committed one: the start of each cell."
    copy = copy_of(page, folder)
    old, new = code_cells(copy), [c for c in execute(copy).cells if c.cell_type == "code"]
    compared = compared_cells(old, every=page.stem in ONLY_TABLES)
    changed = [i for i in compared if not same_numbers(numbers(old[i]), numbers(new[i]))]
    return [source(old[i])[:60] for i in changed]
