"""Long code folds on the story pages, so that a reader reads the story and opens what they want.

The step works on pages that nbdev has processed: the notebooks stay as they are, and Quarto and the preview fold alike.
A name of the package is one fold with its source, or with its signature where the source is not shown; its anchor is
the fold. Any other long cell folds through Quarto's `code-fold`, and what it shows stays in sight."""

import ast
import builtins
import html
import json
import re

import yaml

OPEN_LINES = 8  # a cell with more lines folds
VAGUE = ("The code", "Exported source")  # summaries that do not say what is inside
PLAIN = (*dir(builtins), "Path", "display")  # calls that do not say what a cell does
OPENING = ("resolve_", "load_", "find_", "read_", "write_", "committed")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
HEAD = re.compile(r"(?:#\|.*\n?)*")


def split_cell(cell) -> tuple[str, str]:
    "The directives at the head of a code cell, and its code."
    source = "".join(cell["source"])
    head = HEAD.match(source)[0]
    return head, source[len(head) :].strip()


def options_of(cell) -> dict:
    "The directives at the head of a code cell, as YAML reads them."
    pairs = [line[2:].strip().partition(":") for line in split_cell(cell)[0].splitlines()]
    return {key.strip(): yaml.safe_load(value or "true") for key, _, value in pairs}


def is_long(code: str) -> bool:
    "Whether code has more lines than stay open."
    return code.count("\n") >= OPEN_LINES


# ---- what a fold says


def definitions(code: str) -> list:
    "The functions and classes that code defines at its top, public ones first."
    found = [node for node in ast.parse(code).body if isinstance(node, DEFINITIONS)]
    return sorted(found, key=lambda node: node.name.startswith("_"))


def first_sentence(text: str) -> str:
    "The first sentence of a docstring on one line, without its full stop and the source in brackets at its end."
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<!\be\.g)(?<!\bal)\.(?=\s|$)", paragraph)[0]
    return re.sub(r" \((?:section|Table|paper|equation)[^()]*\)$", "", sentence).rstrip(",:;")


def main_call(code: str, own=()) -> str:
    "The first of its page's `own` names that code calls, else the first of some weight; empty without one."
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    calls.sort(key=lambda node: (node.lineno, node.col_offset))
    names = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    telling = [n for n in names if n not in PLAIN and not n.startswith(OPENING)]
    return next(iter([n for n in names if n in own] + telling), "")


def summary_of(code: str, told: dict, own=()) -> str:
    "What is inside a cell, in plain words: a definition, a figure, the first comment or the first call."
    if found := definitions(code):
        sentence = first_sentence(ast.get_docstring(found[0]))
        return f"{found[0].name}(...)" + (f": {sentence}" if sentence else "")
    if str(told.get("label", "")).startswith("fig-"):
        return "Code of the figure"
    if comment := re.search(r"^\s*# (.+)", code, re.M):
        return f"Code: {comment[1]}"
    call = main_call(code, own)
    return f"Code: {call}(...)" if call else "Code"


# ---- folds


def shows_table(cell) -> bool:
    "Whether an output of a cell is a table."
    shown = [output.get("data", {}).get("text/markdown", "") for output in cell["outputs"]]
    return any("<table" in "".join(text) for text in shown)


def fold_code(cell, own=()) -> None:
    "Fold a long cell, and one that its page folds; open any other. A summary that its page wrote is kept."
    head, code = split_cell(cell)
    told = options_of(cell)
    if told.get("echo") is False or told.get("include") is False or not code:
        return
    rest = re.sub(r"^#\| *code-(?:fold|summary):.*\n?", "", head, flags=re.M)
    if not is_long(code) and told.get("code-fold") is not True:
        cell["source"] = rest + code
        return
    summary = told.get("code-summary", VAGUE[0])
    if summary in VAGUE:
        summary = summary_of(code, told, own)
        if summary == "Code" and shows_table(cell):
            summary = "Code of the table"
    summary = re.sub(r'[`"]', "", summary)  # it becomes an attribute in Quarto's Markdown
    options = f"#| code-fold: true\n#| code-summary: {json.dumps(summary, ensure_ascii=False)}\n"
    cell["source"] = options + rest + code


def with_code(text: str) -> str:
    "Text as HTML, what stands between backticks as code."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def raw(text: str) -> str:
    "HTML as a raw block of Markdown."
    return f"```{{=html}}\n{text}\n```\n"


def definition(name: str, told: str, inside: str, closed: bool) -> str:
    "A name of the package as Markdown: a fold, or open code, that the links to the name lead to."
    anchor = name.lower()  # as Pandoc makes it from a heading
    if not closed:
        return f"\n{raw(f'<div id={json.dumps(anchor)}>')}\n{inside}\n\n{raw('</div>')}"
    sentence = f": {with_code(told)}" if told else ""
    summary = f"<summary><code>{html.escape(name)}(...)</code>{sentence}</summary>"
    start = f'<details class="code-fold" id="{html.escape(anchor)}">{summary}'
    return f"\n{raw(start)}\n{inside}\n\n{raw('</details>')}"


SHOWN = re.compile(r"^show_doc\(([\w.]+)", re.M)
DOCUMENTED = re.compile(r"\A\s*---\n\n(\[source\].*\n\n)?#+ .*\n\n")


def fold_definition(cell, name: str, source: str | None) -> None:
    "Fold what nbdev says of a name; `source` takes the place of its signature and docstring."
    data = cell["outputs"][0]["data"]
    text = DOCUMENTED.sub(r"\1", "".join(data["text/markdown"]))
    if source is None:
        told = re.search(r"^\*(.+?)\*$", text, re.M | re.S)
        told = first_sentence(told[1] if told else "")
        data["text/markdown"] = definition(name, told, text, closed=True)
    else:
        told = first_sentence(ast.get_docstring(definitions(source)[0]))
        inside = f"````python\n{source}\n````"
        data["text/markdown"] = definition(name, told, inside, closed=is_long(source))


def exported_sources(cells) -> dict:
    "{first public name: cell} of the cells whose source nbdev shows."
    found = {}
    for cell in cells:
        if cell["cell_type"] == "code" and options_of(cell).get("code-summary") == VAGUE[1]:
            names = [node.name for node in definitions(split_cell(cell)[1])]
            found |= {name: cell for name in names[:1] if not name.startswith("_")}
    return found


def fold_page(nb: dict) -> None:
    "Fold the long code of a processed page; a name's source stands where its documentation stood."
    cells = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    shown = {m[1]: c for c in cells if (m := SHOWN.search("".join(c["source"]))) and c["outputs"]}
    sources = {n: c for n, c in exported_sources(cells).items() if n in shown}
    for name, cell in shown.items():
        source = split_cell(sources[name])[1] if name in sources else None
        fold_definition(cell, name, source)
    moved = [id(cell) for cell in sources.values()]
    nb["cells"] = [cell for cell in nb["cells"] if id(cell) not in moved]
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            fold_code(cell, own=shown)
