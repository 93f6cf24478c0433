"""The site's steps around Quarto, and a check that needs no Quarto.

`site_steps.py prepare` processes the pages into _proc, makes tables fit for people and folds long code (folding.py);
`site_steps.py finish FOLDER` adds to rendered pages what Quarto leaves out (skip link, scope of headers, folds.js);
`site_steps.py preview` renders _proc with pandoc into _preview, between those two steps. It is a check, not a second
site: it carries what the browser tests look at (text, code, tables, figures, callouts, our styles) and no more.
`site_steps.py quarto` says which Quarto the site is for, and fails where another is on the path."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from folding import fold_page, options_of

ROOT = Path(__file__).resolve().parents[1]
PROC, PREVIEW, DOCS = ROOT / "_proc", ROOT / "_preview", ROOT / "_docs"
TOOLS = Path(__file__).parent
TEMPLATE = TOOLS / "preview"
QUARTO = "1.7.32"  # the Quarto that _quarto.yml is for; the workflow installs the same
SKIP = '<a class="skip-link" href="#quarto-document-content">Skip to the content</a>'


# ---- figures that follow light and dark

INK = "#767676"  # the ink of tools/matplotlibrc and of the headline; read on white and on black
THEMED = "<style>svg{color:#23272b}@media (prefers-color-scheme:dark){svg{color:#e4e6e9}}</style>"


def themed(text: str) -> str:
    "An SVG whose ink is that of the page: a browser gives a picture the colour scheme of where it stands."
    if INK not in text:
        return text
    return re.sub(r"(<svg\b[^>]*>)", rf"\1{THEMED}", text.replace(INK, "currentColor"), count=1)


# ---- tables for people


def fit_cell(text: str) -> str:
    "A cell's text with a dash where a value is missing."
    return "\u2013" if text.strip() in ("NaN", "nan", "None", "NaT", "&lt;NA&gt;") else text


def one_head(head: str) -> str:
    "A table's head of one row: pandas writes the names of the index into a second one."
    rows = re.findall(r"<tr.*?</tr>", head, re.S)
    cells = [re.findall(r"<th[^>]*>(.*?)</th>", row, re.S) for row in rows]
    if len(rows) != 2 or len(cells[0]) != len(cells[1]) or "colspan" in head:
        return head
    if any(a.strip() and b.strip() for a, b in zip(*cells)):
        return head
    names = "".join(f"<th>{a.strip() or b.strip()}</th>" for a, b in zip(*cells))
    return f"<thead><tr>{names}</tr></thead>"


def fit_table(text: str) -> str:
    "A data frame's HTML without its style sheet and inline alignment, with scope on headers and dashes for missing."
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r' style="text-align: \w+;"| border="1"', "", text)
    text = re.sub(r"(<td[^>]*>)([^<]*)", lambda m: m[1] + fit_cell(m[2]), text)
    text = re.sub(r"<thead.*?</thead>", lambda m: one_head(m[0]), text, flags=re.S)
    return with_scope(re.sub(r"\n\s*", "\n", text)).strip()


def with_scope(text: str) -> str:
    "HTML whose header cells say what they head: a column inside `thead`, a row elsewhere; an empty one is a cell."
    text = re.sub(r"<th([^>]*)>\s*</th>", r"<td\1></td>", text)

    def scoped(part, scope):
        return re.sub(r"<th(?![^>]*\bscope=)(?=[\s>])", f'<th scope="{scope}"', part)

    head = re.sub(r"<thead.*?</thead>", lambda m: scoped(m[0], "col"), text, flags=re.S)
    return scoped(head, "row")


def fit_mathematics(text: str) -> str:
    "Markdown whose mathematics is upright where it is words: browsers draw MathML's letters one by one."
    text = re.sub(r"\\mathrm\{(\w\w+)\}", r"\\text{\1}", text)
    for name, letter in ((r"\mathbb{1}", "𝟙"), (r"\mathbb{E}", "𝔼"), (r"\mathcal{L}", "ℒ")):
        text = text.replace(name, letter)
    return text


def last_level(text: str, level: int) -> int:
    "The level of the last heading of some Markdown, or `level` where it has none."
    heads = re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return len(heads[-1]) if heads else level


def fit_output(data: dict, level: int) -> None:
    """An output's HTML as raw HTML inside Markdown; a documented name as a heading below `level`.

    Quarto loads require.js and jQuery from another host for any output of type text/html."""
    if "image/svg+xml" in data:
        data["image/svg+xml"] = themed("".join(data["image/svg+xml"]))
    if "text/html" in data:
        text = fit_table("".join(data.pop("text/html")))
        data["text/markdown"] = f"\n```{{=html}}\n{text}\n```\n"
    elif "text/markdown" in data:
        text = "".join(data["text/markdown"])
        data["text/markdown"] = re.sub(r"(?<=^---\n\n)###(?= )", "#" * (level + 1), text)


def fit_page(page: Path) -> None:
    "Fit every output of a processed page for people; fold the long code of a story page."
    nb, level = json.loads(page.read_text("utf-8")), 1
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            level = last_level("".join(cell["source"]), level)
            cell["source"] = fit_mathematics("".join(cell["source"]))
        for output in cell.get("outputs", []):
            fit_output(output.get("data", {}), level)
    if page.parent == PROC:  # those of lib/ are read for their code
        fold_page(nb)
    nb["metadata"]["fitted"] = True
    page.write_text(json.dumps(nb, ensure_ascii=False, indent=1), "utf-8")


def prepare() -> None:
    "Pages processed by nbdev into _proc (those that changed), their tables fit for people."
    from nbdev.serve import proc_nbs

    folding = (TOOLS / "folding.py").stat().st_mtime
    for page in PROC.glob("*.ipynb"):
        if page.stat().st_mtime < folding:
            page.unlink()
    proc_nbs(n_workers=1)
    for page in sorted(PROC.rglob("*.ipynb")):
        if '"fitted": true' not in page.read_text("utf-8")[-300:]:
            fit_page(page)
    for drawn in (PROC / "images").glob("*.svg"):
        drawn.write_text(themed(drawn.read_text("utf-8")), "utf-8")


# ---- what Quarto leaves out of a rendered page


FOLDS = (TOOLS / "folds.js").read_text("utf-8")


def finish_page(text: str) -> str:
    "A rendered page with a skip link first, a target that takes focus, and tables that scroll and name what they head."
    if 'class="skip-link"' not in text:
        text = re.sub(r"<body\b[^>]*>", lambda m: f"{m[0]}\n{SKIP}", text, count=1)
    target = 'id="quarto-document-content"'
    if f"{target} tabindex" not in text:
        text = text.replace(target, f'{target} tabindex="-1"', 1)
    if 'class="scroll-table"' not in text:
        text = re.sub(r"<table\b", '<div class="scroll-table"><table', text)
        text = text.replace("</table>", "</table></div>")
    if 'class="code-fold"' in text and FOLDS not in text:
        text = text.replace("</body>", f"<script>\n{FOLDS}</script>\n</body>", 1)
    return with_scope(text)


def finish(folder: Path) -> None:
    "Finish every page of a rendered site, where it stands."
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text("utf-8")
        if 'id="quarto-document-content"' in text:
            page.write_text(finish_page(text), "utf-8")


# ---- the preview


def picture(data: dict, name: str, folder: Path) -> str:
    "The file of a picture that an output holds, written into `folder`; empty where it holds none."
    for kind, suffix in (("image/svg+xml", "svg"), ("image/png", "png")):
        if kind in data:
            content = "".join(data[kind])
            raw = content.encode() if suffix == "svg" else base64.b64decode(content)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.{suffix}").write_bytes(raw)
            return f"{folder.name}/{name}.{suffix}"
    return ""


def figure(file: str, told: dict) -> str:
    "A figure as Markdown, with the label, caption and alternative of its cell."
    label, alt = told.get("label", ""), html.escape(str(told.get("fig-alt", "")))
    cap = " ".join(str(told.get("fig-cap", "")).split())
    return f'\n![{cap}]({file}){{#{label} fig-alt="{alt}"}}\n' if label else f"\n![]({file})\n"


def drawn(text: str, label: str, told: dict) -> str:
    "A figure that is not a file, as Markdown: what is drawn, and its caption below."
    caption = " ".join(str(told.get("fig-cap", "")).split())
    return f"\n::: {{#{label}}}\n{text}\n\n[{label}: {caption}]{{.figure-caption}}\n:::\n"


def output_text(output, told: dict, name: str, folder: Path) -> str:
    "An output of a cell as Markdown: a picture, what is Markdown already, or text in a block."
    data = output.get("data", {})
    if file := picture(data, name, folder):
        return figure(file, told)
    if "text/markdown" in data:
        text = "".join(data["text/markdown"])
        if str(label := told.get("label", "")).startswith("fig-"):
            return drawn(text, label, told)
        caption = told.get("tbl-cap")
        return f"\n{text}\n" + (f"\n[{caption}]{{.table-caption}}\n" if caption else "")
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"\n::: {{.cell-output}}\n````\n{text}\n````\n:::\n" if text else ""


def code_text(cell, told: dict) -> str:
    "The code of a cell as Markdown; folded, or left out, where its directives say so."
    code = re.sub(r"^(#\|.*\n?)+", "", "".join(cell["source"])).strip()
    if told.get("echo") is False or told.get("include") is False or not code:
        return ""
    block = f"\n````{{.python .sourceCode}}\n{code}\n````\n"
    if fold := told.get("code-fold"):
        start = '<details class="code-fold"' + (" open>" if fold == "show" else ">")
        summary = html.escape(told.get("code-summary", "Code"), quote=False)
        return f"\n{start}<summary>{summary}</summary>\n{block}\n</details>\n"
    return block


def cell_text(cell, name: str, folder: Path) -> str:
    "A cell of a processed page as Pandoc's Markdown."
    if cell["cell_type"] != "code":
        return "".join(cell["source"]) + "\n"
    told = options_of(cell)
    outputs = cell["outputs"] if told.get("include") is not False else []
    shown = [output_text(o, told, f"{name}-{i}", folder) for i, o in enumerate(outputs)]
    return "\n::: {.cell}\n" + code_text(cell, told) + "".join(shown) + ":::\n"


def with_references(text: str) -> str:
    "Markdown whose figures are numbered, and whose references to them are links."
    labels = re.findall(r"\{#((?:fig|tbl)-[\w-]+)", text)
    figures = [x for x in labels if x.startswith("fig")]
    for n, label in enumerate(figures, 1):
        text = re.sub(rf"(?<![\w`])@{label}\b(?!-)", f"[Figure {n}](#{label})", text)
        text = text.replace(f"[{label}: ", f"[Figure {n}: ")
        text = re.sub(
            rf"!\[((?:[^\]]|\](?!\())*)\]\(([^)]*)\)\{{#{label}\b",
            rf"![Figure {n}: \1](\2){{#{label}",
            text,
        )
    text = re.sub(r"\{(#fig-[\w-]+) fig-alt=", r"{\1 alt=", text)
    return re.sub(
        r"\]\(((?:\.\./)?(?:\w+/)*)(?:\d+_)?(\w+)\.ipynb(#[\w-]*)?\)", r"](\1\2.html\3)", text
    )


def address_of(entry: str) -> str:
    "The address of a page inside the site: nbdev leaves the numbers of file names out."
    return re.sub(r"(^|/)\d+_(\w+)\.ipynb$", r"\1\2.ipynb", entry).replace(".ipynb", ".html")


def title_of(page: Path) -> tuple[str, str]:
    "Title and description of a processed page, from its first cell."
    first = "".join(json.loads(page.read_text("utf-8"))["cells"][0]["source"])
    front = yaml.safe_load(first.strip().strip("-"))
    return front.get("title", page.stem), front.get("description", "")


def entries(contents) -> list:
    "The sidebar of _quarto.yml as nested (title, address or entries)."
    out = []
    for entry in contents:
        if isinstance(entry, str):
            out.append((title_of(PROC / entry)[0], address_of(entry)))
        elif "section" in entry:
            out.append((entry["section"], entries(entry.get("contents", []))))
        else:
            out.append((entry.get("text", ""), address_of(entry["href"])))
    return out


def sidebar(items, up: str, here: str) -> str:
    "The sidebar as HTML; the section that holds the page is open."
    out = ""
    for title, to in items:
        title = html.escape(title)
        if isinstance(to, str):
            mark = ' aria-current="page"' if to == here else ""
            out += f'<li><a href="{up}{to}"{mark}>{title}</a></li>'
        else:
            inside = sidebar(to, up, here)
            opened = " open" if "aria-current" in inside else ""
            out += f"<li><details{opened}><summary>{title}</summary>{inside}</details></li>"
    return f"<ul>{out}</ul>"


def variables(config: dict, page: str) -> list[str]:
    "What the template needs to know of a page: where it stands, its sidebar, the bar above."
    here, website = address_of(page), config["website"]
    up = "../" * here.count("/")
    bar = "".join(
        f'<li><a href="{up}{address_of(e["href"])}">{e["text"]}</a></li>'
        for e in website["navbar"]["left"]
    )
    contents = sidebar(entries(website["sidebar"]["contents"]), up, here)
    told = dict(up=up, bar=bar, sidebar=contents, favicon=website.get("favicon", ""))
    return [f"--variable={key}={value}" for key, value in told.items()]


def render(page: str, config: dict) -> None:
    "One page of the preview, by pandoc."
    source, target = PROC / page, PREVIEW / address_of(page)
    cells = json.loads(source.read_text("utf-8"))["cells"]
    folder = target.parent / f"{target.stem}_files"
    text = "\n".join(cell_text(c, f"cell-{i}", folder) for i, c in enumerate(cells))
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *("pandoc", "--from=markdown", "--to=html5", "--mathml", "--section-divs", "--citeproc"),
        *("--toc", "--toc-depth=3", f"--bibliography={PROC / 'references.bib'}", "--wrap=none"),
        *(f"--template={TEMPLATE / 'page.html'}", f"--lua-filter={TEMPLATE / 'quarto.lua'}"),
        *variables(config, page),
    ]
    done = subprocess.run(
        command, input=with_references(text), capture_output=True, text=True, check=True
    )
    target.write_text(done.stdout, "utf-8")


def is_old(page: str) -> bool:
    "Whether a page of the preview is older than what it is made from."
    target = PREVIEW / address_of(page)
    sources = [
        PROC / page,
        ROOT / "_quarto.yml",
        Path(__file__),
        TOOLS / "folds.js",
        *TEMPLATE.iterdir(),
    ]
    return not target.exists() or target.stat().st_mtime < max(s.stat().st_mtime for s in sources)


def listed(contents) -> list[str]:
    "Every page that the sidebar lists."
    nested = [
        [e] if isinstance(e, str) else [e["href"]] if "href" in e else listed(e.get("contents", []))
        for e in contents
    ]
    return [page for part in nested for page in part if page.endswith(".ipynb")]


def preview() -> None:
    "The site as pandoc renders it, in _preview."
    if not shutil.which("pandoc"):
        sys.exit(
            "make preview needs pandoc (Debian: apt-get install pandoc): install it, then run make preview again"
        )
    prepare()
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8"))
    for page in filter(is_old, listed(config["website"]["sidebar"]["contents"])):
        render(page, config)
    for file in PROC.rglob("*"):
        if file.suffix not in (".ipynb", ".yml", ".bib", ".py") and file.is_file():
            to = PREVIEW / file.relative_to(PROC)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
    shutil.copy(TEMPLATE / "theme.css", PREVIEW / "theme.css")
    finish(PREVIEW)
    print(f"The preview is in {PREVIEW.name}: open {PREVIEW.name}/index.html")


def quarto() -> None:
    "Print the Quarto that the site is for; fail where another one, or none, is on the path."
    where = "https://quarto.org/docs/download"
    if not shutil.which("quarto"):
        sys.exit(f"make site needs Quarto {QUARTO} ({where}): install it, then run make site again")
    found = subprocess.run(["quarto", "--version"], capture_output=True, text=True).stdout.strip()
    if found != QUARTO:
        sys.exit(f"make site is for Quarto {QUARTO} and found {found}: install {QUARTO} ({where})")
    print(f"Quarto {found}")


if __name__ == "__main__":
    what, *names = sys.argv[1:] or ["help"]
    steps = dict(prepare=prepare, preview=preview, quarto=quarto)
    if what == "finish" and len(names) == 1:
        finish(Path(names[0]))
    elif what in steps and not names:
        steps[what]()
    else:
        sys.exit(__doc__)
