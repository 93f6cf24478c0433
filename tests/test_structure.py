"The shape of the project: notebooks and package in sync, import direction, page conventions, the site's links."

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
# The order of the pages: a page may import any earlier one and none later (DESIGN.md, layout).
ORDER = (
    "files identity languages rows stats weights data datasets scorers.base world models splits placebos adapters sampling engines generation "
    "ledger calibration scorers.lexicon scorers.perspective scorers.classifier scorers.guard scorers.imported scorers.panel "
    "scorers.encoders scorers.judge scoring toxicity mass quality recipes training trainer probe value_vectors intervention activations "
    "retrieval runs relation figures report explorer pairs outcome "
    "grid.stages grid.devices grid.schema grid.steps grid.jobs grid.costs grid.checks grid.load grid.status grid.tables grid.runner cli"
).split()
STORY = sorted(NBS.glob("*.ipynb"))  # the argument, and how to ask it
LIBRARY = sorted((NBS / "lib").glob("*.ipynb"))  # machinery, one page a module
PAGES = STORY + LIBRARY
EXPERIMENTS = sorted((NBS / "experiments").glob("*.ipynb"))
ids = lambda p: p.stem


def cells(page, kind="code"):
    return [
        c for c in json.loads(page.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind
    ]


def source(cell):
    return "".join(cell["source"])


def exported(page):
    "The module that a page exports to, or None."
    return next(
        (
            m[1]
            for c in cells(page)
            if (m := re.search(r"^#\|\s*default_exp\s+([\w.]+)", source(c), re.M))
        ),
        None,
    )


def module_name(path):
    "The dotted name of a module's file inside the package: `scorers.judge`."
    return ".".join(path.relative_to(ROOT / "xgdetox").with_suffix("").parts)


MODULES = sorted(
    p for p in (ROOT / "xgdetox").rglob("*.py") if p.stem not in ("__init__", "_modidx")
)


def tracked_copy(to):
    "The files that git knows or would add, copied to `to`."
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in names.splitlines():
        if (
            name.startswith(("nbs/", "xgdetox/"))
            and name.endswith((".ipynb", ".py", ".yml"))
            or name in ("settings.ini", "setup.py", "README.md", "_quarto.yml")
        ):
            if (ROOT / name).is_file():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to / name)


def test_export_and_clean_leave_no_difference(tmp_path):
    "nbdev_export and nbdev_clean on a copy change nothing: the package is what the notebooks say, outputs are clean."
    tracked_copy(tmp_path)
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code = "from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    after = {
        p.relative_to(tmp_path): p.read_bytes()
        for p in tmp_path.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    changed = sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    assert not changed, f"run nbdev_export and nbdev_clean, then commit: {changed}"


def test_every_module_has_its_page():
    modules = {module_name(p) for p in MODULES}
    assert modules == {m for p in PAGES if (m := exported(p))}
    assert modules == set(ORDER) and len(ORDER) == len(modules), (
        "a new page: give it its place in ORDER"
    )


@pytest.mark.parametrize("page", PAGES + EXPERIMENTS, ids=ids)
def test_imports_alone_in_their_cells(page):
    for cell in cells(page):
        try:
            body = ast.parse(re.sub(r"^[!%].*$", "", source(cell), flags=re.M)).body
        except SyntaxError as e:
            pytest.fail(f"{page.name}: {e}")
        kinds = {
            isinstance(n, (ast.Import, ast.ImportFrom))
            for n in body
            if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
        }
        last_export = "nbdev_export" in source(cell)
        assert kinds != {True, False} or last_export, (
            f"{page.name}: imports and other code share a cell: {source(cell)[:80]!r}"
        )


def imported_modules(path):
    "The modules of ours that a module imports, at its head or inside a function: dotted names."
    package, found = module_name(path).split(".")[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = package[: len(package) - node.level + 1]
        elif (node.module or "").split(".")[0] == "xgdetox":
            base = []
        else:
            continue
        inside = (node.module or "").removeprefix("xgdetox").strip(".")
        names = [
            ".".join([*base, *filter(None, [inside])]),
            *(".".join([*base, *filter(None, [inside]), a.name]) for a in node.names),
        ]
        found |= set(names) & set(ORDER)
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_import_direction(path):
    module = module_name(path)
    wrong = imported_modules(path) & set(ORDER[ORDER.index(module) :])
    assert not wrong, f"{module} imports {wrong}, which stand at or after it"


HEAVY = {
    "trl",
    "vllm",
    "bitsandbytes",
    "googleapiclient",
    "snakemake",
    "peft",
    "lm_eval",
    "papermill",
    "vl_convert",
}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_heavy_packages_only_inside_functions(path):
    top = {
        a.name.split(".")[0]
        for n in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(n, ast.Import)
        for a in n.names
    }
    top |= {
        (n.module or "").split(".")[0]
        for n in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(n, ast.ImportFrom)
    }
    assert not top & (HEAVY | {"nbdev", "fastcore"})


@pytest.mark.parametrize("page", PAGES + EXPERIMENTS, ids=ids)
def test_outputs_are_small_clean_and_whole(page):
    for cell in cells(page):
        for output in cell["outputs"]:
            text = json.dumps(output, ensure_ascii=False)
            assert len(text) < 300_000, f"{page.name}: an output of {len(text) // 1000} kB"
            assert output["output_type"] != "error", f"{page.name}: an error stands in the outputs"
            assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/\w", text), (
                f"{page.name}: an absolute path in an output"
            )
            assert not re.search(r"\d+%\|", text), f"{page.name}: a progress bar in an output"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_page_opens_with_title_and_sentence(page):
    first = json.loads(page.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# .+\n\n?> .+", source(first)), (
        f"{page.name}: first cell is '# Title' and '> sentence'"
    )


@pytest.mark.parametrize("page", EXPERIMENTS, ids=ids)
def test_experiments_are_short_and_parameterised(page):
    tags = [t for c in cells(page) for t in c["metadata"].get("tags", [])]
    assert tags == ["parameters"], f"{page.name}: exactly one cell is tagged parameters"
    assert len(cells(page)) <= 7 and "snakemake" not in "".join(map(source, cells(page)))


def markdown(page):
    "The text of a page: its Markdown cells, and the Markdown that its code writes."
    written = [
        "".join(o["data"]["text/markdown"])
        for c in cells(page)
        for o in c["outputs"]
        if "text/markdown" in o.get("data", {})
    ]
    return "\n".join([*map(source, cells(page, "markdown")), *written])


def labels(page):
    found = [
        m for c in cells(page) for m in re.findall(r"^#\|\s*label:\s*([\w-]+)", source(c), re.M)
    ]
    return found + re.findall(r"\{#((?:fig|tbl|eq|sec)-[\w-]+)", markdown(page))


def test_labels_are_unique_and_references_resolve():
    known = set(re.findall(r"@\w+\{([\w:-]+),", (NBS / "references.bib").read_text()))
    for page in PAGES:
        have = labels(page)
        assert len(have) == len(set(have)), f"{page.name}: a label twice"
        text = re.sub(r"`[^`]*`|```.*?```", "", markdown(page), flags=re.S)
        used = set(re.findall(r"(?<![\w.@/])@([A-Za-z][\w-]*)", text))
        missing = {u for u in used if u not in have and u not in known}
        assert not missing, f"{page.name}: unresolved references {missing}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_figures_have_a_label_a_caption_and_an_alternative(page):
    for cell in cells(page):
        label = re.search(r"^#\|\s*label:\s*(fig-[\w-]+)", source(cell), re.M)
        drawn = any(k.startswith("image/") for o in cell["outputs"] for k in o.get("data", {}))
        assert not drawn or label, f"{page.name}: a picture without a label: {source(cell)[:80]!r}"
        for key in ("fig-cap", "fig-alt"):
            assert not label or re.search(rf"^#\|\s*{key}:\s*\S.{{20}}", source(cell), re.M), (
                f"{page.name}: {label[1]} without {key}"
            )
    for alt, after in re.findall(r"!\[(.*?)\]\([^)]*\)(\{.*?\})?", markdown(page), re.S):
        assert alt.strip() and "fig-alt=" in after, (
            f"{page.name}: a picture without caption or fig-alt: {alt[:40]!r}"
        )


def anchors(page):
    "The anchors that Pandoc gives the headings of a page."
    heads = re.findall(
        r"^#+\s+(.+?)\s*(?:\{.*\})?$", re.sub(r"```.*?```", "", markdown(page), flags=re.S), re.M
    )
    return {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", h.replace("`", "").lower()).strip())
        for h in heads
    }


@pytest.mark.parametrize("page", PAGES + [ROOT / "README.md"], ids=ids)
def test_links_resolve(page):
    text = page.read_text(encoding="utf-8") if page.suffix == ".md" else markdown(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        to, _, anchor = target.partition("#")
        assert (page.parent / to).exists(), f"{page.name}: no {target}"
        assert not anchor or anchor in anchors(page.parent / to), (
            f"{page.name}: no heading {target}"
        )


FITS = {  # what must hold of the code of package, pages, tests and tools -> what breaks it now, what may break it
    "ruff format": lambda shape: (shape.ruff("format", "--check", "-q").stdout.splitlines(), []),
    "long functions and ruff check": lambda shape: (shape.unfit(), shape.listed()),
}


@pytest.mark.parametrize("what", FITS)
def test_code_fits(what, monkeypatch):
    "One layout, no line over 120, no function over 40 lines or 1,200 characters; the list of exceptions only shrinks."
    monkeypatch.syspath_prepend(ROOT / "tools")
    import shape

    found, allowed = map(set, FITS[what](shape))
    assert not found - allowed, "split it, or lay it out with ruff format (CONTRIBUTING.md)"
    assert not allowed - found, "done: take it off the list with python tools/shape.py write"


def sidebar(entry):
    if isinstance(entry, str):
        return [entry]
    return (
        [f for part in entry.get("contents", []) for f in sidebar(part)]
        if isinstance(entry, dict)
        else []
    )


def test_every_page_stands_in_the_sidebar():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    named = [f for part in config["website"]["sidebar"]["contents"] for f in sidebar(part)]
    assert len(named) == len(set(named))
    assert set(named) == {str(p.relative_to(NBS)) for p in PAGES}
    assert yaml.safe_load((NBS / "_quarto.yml").read_text())["metadata-files"] == ["../_quarto.yml"]
    for name in ("references.bib", "styles.css", *config["project"]["resources"]):
        assert (NBS / name).is_file()


def test_site_is_processed_without_quarto(tmp_path):
    "nbdev's processing of the pages passes: every import cell runs, every directive is known."
    tracked_copy(tmp_path)
    for name in ("references.bib", "styles.css", "explore/world.html", "images/headline.svg"):
        (tmp_path / "nbs" / name).parent.mkdir(exist_ok=True)
        shutil.copy(NBS / name, tmp_path / "nbs" / name)
    code = "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = {str(p.relative_to(tmp_path / "_proc")) for p in (tmp_path / "_proc").rglob("*.ipynb")}
    assert {str(p.relative_to(NBS)) for p in PAGES} <= made, done.stderr[-2000:]
    for name in ("references.bib", "styles.css", "explore/world.html", "images/headline.svg"):
        assert (tmp_path / "_proc" / name).is_file(), name


# ---- the tables behind the committed figures, against a refill

READ_TABLES = (
    "index",
    "results",
    "differences",
)  # pages that only read results/: quick, every table is compared
TOLERANCE = dict(
    rel=0.02, abs=0.02
)  # other processors round otherwise, and a sampled text may change


def numbers(cell):
    "The numbers of a cell's tables, in order."
    tables = "".join(
        "".join(o["data"]["text/html"])
        for o in cell["outputs"]
        if "<table" in "".join(o.get("data", {}).get("text/html", ""))
    )
    return [
        float(n)
        for n in re.findall(
            r"-?\d+(?:\.\d+)?(?:e-?\d+)?",
            re.sub(r"<style.*?</style>|<[^>]+>", " ", tables, flags=re.S),
        )
    ]


def behind_figures(code, every):
    "Positions of the cells whose table is compared: every one, or those that the next figure is drawn from."
    tables, found = [i for i, c in enumerate(code) if numbers(c)], []
    for i, c in enumerate(code):
        before = [t for t in tables if t <= i]
        if re.search(r"^#\|\s*label:\s*fig-", source(c), re.M) and before:
            found.append(before[-1])
    return tables if every else sorted(set(found))


def compare_with_refill(page, tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    from pages import execute

    for name in ("nbs", "results", "experiments"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.lock", "explore")
        )
    untracked = subprocess.run(
        ["git", "ls-files", "-o", "results"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in untracked:
        (tmp_path / name).unlink(
            missing_ok=True
        )  # a table that is not committed yet is behind no committed figure
    copy = tmp_path / page.relative_to(ROOT)
    raw = json.loads(copy.read_text(encoding="utf-8"))
    raw["cells"] = [c for c in raw["cells"] if "nbdev_export()" not in source(c)]
    copy.write_text(json.dumps(raw), encoding="utf-8")
    old, new = cells(copy), [c for c in execute(copy).cells if c.cell_type == "code"]
    for i in behind_figures(old, page.stem in READ_TABLES):
        assert numbers(new[i]) == pytest.approx(numbers(old[i]), **TOLERANCE), (
            f"{page.name}: run make refill PAGES={page.stem}: {source(old[i])[:60]!r}"
        )


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem in READ_TABLES], ids=ids)
def test_tables_equal_a_refill(page, tmp_path):
    compare_with_refill(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        p
        for p in PAGES
        if p.stem not in READ_TABLES
        and any(re.search(r"^#\|\s*label:\s*fig-", source(c), re.M) for c in cells(p))
    ],
    ids=ids,
)
def test_tables_behind_figures_equal_a_refill(page, tmp_path):
    compare_with_refill(page, tmp_path)
