"Keep the committed pages fresh: `pages.py readme` makes README.md, `pages.py refill [NAME ...]` runs pages and keeps their outputs."

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbdev.clean import nbdev_clean
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
SITE = "https://xgdetox.github.io/xgdetox/"


def readme() -> None:
    "README.md from index.ipynb: hidden cells, directives, inline images and site-only links are replaced."
    nb = nbformat.read(NBS / "index.ipynb", as_version=4)
    for c in nb.cells:  # a cell that shows only its output: keep its table, as HTML that GitHub renders, or its text
        if c.cell_type == "code" and c.source.startswith("#| echo: false"):
            shown = "".join(
                o.data.get("text/markdown", o.data.get("text/html", ""))
                for o in c.outputs
                if "data" in o
            )
            c.cell_type, c.source = "markdown", re.sub(r"<style.*?</style>", "", shown, flags=re.S)
    hidden = ("#| hide", "#|hide", "#| default_exp")
    nb.cells = [c for c in nb.cells if c.cell_type == "markdown" or not c.source.startswith(hidden)]
    text, _ = MarkdownExporter(
        config=Config({"ExtractOutputPreprocessor": {"enabled": False}})
    ).from_notebook_node(nb)
    text = re.sub(r"^:::.*\n", "", text, flags=re.M)
    text = re.sub(r"^#\| .*\n", "", text, flags=re.M)
    text = re.sub(r"\]\(((?:\w|/)+)\.ipynb(#[\w-]*)?\)", rf"]({SITE}\1.html\2)", text)
    text = text.replace("](images/", "](nbs/images/")
    text = re.sub(r"\[@[\w-]+\]", "(arXiv:2406.16235)", text)
    text = re.sub(r"\{#[^}]*\}|\{\.[\w .-]+\}", "", text)
    (ROOT / "README.md").write_text(
        re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8"
    )
    print("README.md")


def execute(page: Path):
    "The notebook `page` run where it stands, with the outputs that a reader sees: progress and warnings are for the terminal."
    nb = nbformat.read(page, as_version=4)
    NotebookClient(nb, timeout=900, resources={"metadata": {"path": str(page.parent)}}).execute()
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return nb


def refill(names: list[str]) -> None:
    "Run the named pages (default: all, in order) where they stand, and keep the cleaned outputs."
    pages = [NBS / f"{n}.ipynb" for n in names] or [
        *sorted(NBS.glob("*.ipynb")),
        *sorted((NBS / "lib").glob("*.ipynb")),
    ]
    for page in pages:
        print(f"running {page.name} ...", end=" ", flush=True)
        nbformat.write(execute(page), page)
        nbdev_clean(str(page))
        print("done", flush=True)


if __name__ == "__main__":
    what, *names = sys.argv[1:] or ["help"]
    if what == "readme":
        readme()
    elif what == "refill":
        refill(names)
    else:
        sys.exit(__doc__)
