"""Keep the committed pages fresh.

`pages.py readme` makes README.md from index.ipynb; `pages.py refill [NAME ...]` runs pages and keeps their outputs;
`pages.py answers [NAME ...]` runs only what pages open with, the cells with ids `ans...`: cards, and the figure beside
the paper's; they read committed tables and take seconds, as does the explorer's page, which it makes again as
`pages.py explorer` does; `pages.py compare [NAME ...]` runs pages in a copy and
compares the tables behind their figures with those committed."""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.clean import nbdev_clean
from refills import NBS, ROOT, changed_tables, execute, has_figures, keep_hash, run_cells
from traitlets.config import Config

SITE = "https://xgdetox.github.io/xgdetox/"
HIDDEN = ("#| hide", "#|hide", "#| default_exp")


def show_output(cell) -> None:
    "Turn a cell that shows only its output into that output: its Markdown, or its table as HTML that GitHub renders."
    shown = [
        o.data.get("text/markdown", o.data.get("text/html", ""))
        for o in cell.outputs
        if "data" in o
    ]
    cell.cell_type = "markdown"
    cell.source = re.sub(r"<style.*?</style>", "", "".join(shown), flags=re.S)


def for_github(text: str) -> str:
    "The page's Markdown without what only the site understands."
    text = re.sub(r"^:::.*\n", "", text, flags=re.M)
    text = re.sub(r"^- (toc|page-layout): .*\n", "", text, flags=re.M)
    text = re.sub(r"\[([^\]]*)\]\{\.verdict[^}]*\}", r"**\1**", text)
    text = re.sub(r"^#\| .*\n", "", text, flags=re.M)
    page = r"\]\(((?:\w+/)*)(?:\d+_)?(\w+)\.ipynb(#[\w-]*)?\)"  # the site leaves numbers out of addresses
    text = re.sub(page, rf"]({SITE}\1\2.html\3)", text)
    text = text.replace("](images/", "](nbs/images/")
    text = re.sub(r"\]\((?=(?:reports|explore)/)", f"]({SITE}", text)
    text = re.sub(r"\[@[\w-]+\]", "(arXiv:2406.16235)", text)
    text = re.sub(r"\{#[^}]*\}|\{\.[\w .-]+\}|\{fig-alt=\"[^\"]*\"\}", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def readme() -> None:
    "README.md from index.ipynb: hidden cells, directives, inline figures and site-only links are replaced."
    nb = nbformat.read(NBS / "index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if "#| label: fig-" not in c.source]  # a file stands beside it
    for cell in nb.cells:
        if cell.cell_type == "code" and cell.source.startswith("#| echo: false"):
            show_output(cell)
    shown = lambda c: c.cell_type == "markdown" or not c.source.startswith(HIDDEN)
    nb.cells = [c for c in nb.cells if shown(c)]
    config = Config({"ExtractOutputPreprocessor": {"enabled": False}})
    text, _ = MarkdownExporter(config=config).from_notebook_node(nb)
    (ROOT / "README.md").write_text(for_github(text), encoding="utf-8")
    print("README.md")


def pages(names: list[str]) -> list[Path]:
    "The named pages; without names all, in order."
    every = [*sorted(NBS.glob("*.ipynb")), *sorted((NBS / "lib").glob("*.ipynb"))]
    return [NBS / f"{name}.ipynb" for name in names] or every


def compare(names: list[str]) -> None:
    "Compare the named pages (default: all with figures) with a refill; what is the same is noted as such."
    wrong = []
    for page in filter(has_figures, pages(names)):
        with tempfile.TemporaryDirectory() as folder:
            changed = changed_tables(page, Path(folder))
        print(f"{page.name}: {changed or 'the same'}", flush=True)
        if changed:
            wrong.append(page.name)
        else:
            keep_hash(page)
    if wrong:
        sys.exit(f"other tables than the committed ones: {', '.join(wrong)}")


def refill(names: list[str]) -> None:
    "Run the named pages (default: all, in order) where they stand, and keep the cleaned outputs."
    for page in pages(names):
        print(f"running {page.name} ...", end=" ", flush=True)
        nbformat.write(execute(page), page)
        nbdev_clean(str(page))
        if has_figures(page):
            keep_hash(page)
        print("done", flush=True)


def opening(nb):
    "A notebook of the cells alone that a page opens with."
    small = nbformat.v4.new_notebook(metadata=nb.metadata)
    small.cells = [c for c in nb.cells if c.id.startswith("ans") and c.cell_type == "code"]
    return small


def answers(names: list[str]) -> None:
    "Run what the named pages (default: all that have it) open with, and keep those outputs."
    for page in pages(names):
        nb = nbformat.read(page, as_version=4)
        if not (small := opening(nb)).cells:
            continue
        run_cells(small, page.parent)
        nbformat.write(nb, page)
        nbdev_clean(str(page))
        print(page.name, flush=True)
    if not names:
        explorer()


def explorer() -> None:
    "The explorer's page from the committed tables; the shipped model and its texts stay as the page has them."
    from xgdetox.explorer import write_explorer

    page = NBS / "explore" / "world.html"
    runs = [ROOT / "results" / name for name in ("gemma", "world", "architectures")]
    write_explorer([*runs, page], page, site="../")
    print(f"explore/{page.name}", flush=True)


if __name__ == "__main__":
    what, *names = sys.argv[1:] or ["help"]
    if what == "readme":
        readme()
    elif what == "refill":
        refill(names)
    elif what == "answers":
        answers(names)
    elif what == "explorer" and not names:
        explorer()
    elif what == "compare":
        compare(names)
    else:
        sys.exit(__doc__)
