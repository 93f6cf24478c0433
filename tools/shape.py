"""Code that does not fit the layout: long functions, what ruff says, and names that mean two things."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_CHARACTERS = 40, 1200  # of one function, with its docstring


def sources() -> list[Path]:
    "Every page, test and tool, sorted; the package is exported from the pages, so it is not looked at twice."
    folders = ("nbs", "nbs/lib", "nbs/experiments", "tests", "tools")
    files = [p for f in folders for p in (ROOT / f).iterdir() if p.suffix in (".ipynb", ".py")]
    return sorted(files)


def code_blocks(path: Path) -> list[str]:
    "The code of a file: one text per code cell of a page, magic lines blanked; a module is one text."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    code = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^[!%].*$", "", c, flags=re.M) for c in code]


def functions(tree: ast.AST, prefix: str = ""):
    "Pairs of (dotted name, node) of every function in `tree`, methods and inner functions too."
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        name = f"{prefix}{node.name}" if named else prefix
        if named and not isinstance(node, ast.ClassDef):
            yield name, node
        yield from functions(node, f"{name}." if named else prefix)


def is_long(text: str, node: ast.FunctionDef) -> bool:
    "Whether a function takes more lines or characters than one idea should."
    lines = node.end_lineno - node.lineno + 1
    return lines > MOST_LINES or len(ast.get_source_segment(text, node)) > MOST_CHARACTERS


def long_functions(path: Path) -> set[str]:
    "Dotted names of the functions of a file that are too long."
    return {
        name
        for text in code_blocks(path)
        for name, node in functions(ast.parse(text))
        if is_long(text, node)
    }


def ruff(*arguments: str) -> subprocess.CompletedProcess:
    "What `ruff` says of the whole tree under ruff.toml; its output is text."
    command = [sys.executable, "-m", "ruff", *arguments, "."]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def lint() -> set[tuple[str, str]]:
    "Pairs of (file, rule) that `ruff check` finds."
    found = json.loads(ruff("check", "--no-cache", "--output-format", "json").stdout)
    return {(str(Path(f["filename"]).relative_to(ROOT)), f["code"]) for f in found}


def public_names(tree: ast.Module) -> set[str]:
    "Functions, classes and constants that a module defines and does not keep to itself."
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        parts = [part for target in targets if target for part in ast.walk(target)]
        names |= {part.id for part in parts if isinstance(part, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def shared_names() -> list[str]:
    """Public names that two modules define, with the modules.

    Every scorer has a KIND, every program a main, and a group of commands names options of its own."""
    own, defined = {"KIND", "main"}, {}
    for path in sorted((ROOT / "xgdetox").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "xgdetox").with_suffix("").parts)
        for name in public_names(ast.parse(path.read_text(encoding="utf-8"))) - own:
            defined.setdefault(name, []).append(module)
    twice = {n: ms for n, ms in defined.items() if len(ms) > 1 and not n.endswith("Option")}
    return [f"{name}: {', '.join(modules)}" for name, modules in sorted(twice.items())]


def unfit() -> list[str]:
    """What does not fit, one line each.

    `file: function` for a long function, `file: RULE` for what `ruff check` finds, `two meanings of name: modules`."""
    long = {(str(p.relative_to(ROOT)), name) for p in sources() for name in long_functions(p)}
    twice = [f"two meanings of {name}" for name in shared_names()]
    return sorted(f"{file}: {what}" for file, what in long | lint()) + twice


if __name__ == "__main__":
    print(*unfit(), sep="\n")
