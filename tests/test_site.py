"""The site as people read it: every page in a browser, wide and narrow, light and dark.

Over the preview that needs only pandoc, and over the rendered site where Quarto is on the path. What still fails stands
in tests/site_faults.txt, one line per kind and page, and may only get less."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from browser import CHROMIUM, Browser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import folding  # noqa: E402
import reading  # noqa: E402
import site_steps as site  # noqa: E402

FAULTS = Path(__file__).parent / "site_faults.txt"
MEASURE = (Path(__file__).parent / "measure_site.js").read_text("utf-8")
KINDS = {
    "wide": "sticks out to the right",
    "cut": "code or output is cut off at the right",
    "faint": "contrast under WCAG's AA",
    "headings": "one h1, and no level left out",
    "nameless": "controls without a name",
    "pictures": "pictures without an alternative in words",
    "plain links": "links in a sentence that only their colour tells",
    "skip": "the first tab stop skips to the content",
    "scope": "header cells that do not say what they head",
    "cut cells": "cells of tables that end in dots",
    "nan": "missing values that are not a dash",
    "links": "links or anchors that lead nowhere",
    "console": "complaints in the console",
    "foreign": "asks another host for something",
    "small": "text in a figure under 11 pixels on a phone",
}
LEAST_TEXT = 11  # pixels
PICTURES = (
    "[...document.querySelectorAll('main img')].map(e => [e.src, e.getBoundingClientRect().width])"
)


def quarto_render():
    done = subprocess.run(["make", "site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


SITES = {
    "preview": (site.PREVIEW, site.preview),
    "quarto": (site.DOCS, quarto_render),
}  # where, made how
NEEDS = {"preview": "pandoc", "quarto": "quarto"}
WHERE = {"preview": "apt-get install pandoc", "quarto": f"the site is for Quarto {site.QUARTO}"}


def drawn_sizes(picture):
    "The sizes of the text in an SVG, as a share of its width; empty for other pictures, or where no text is."
    text = picture.read_text("utf-8") if picture.suffix == ".svg" else ""
    written = re.findall(r"<text\b[^>]*?font(?:-size)?[:=] ?\"?([\d.]+)px", text)
    width = re.search(r'viewBox="\S+ \S+ (\S+) ', text)
    return [float(size) / float(width[1]) for size in written]


def small_in_files(browser):
    "Which pictures that are files have text under 11 pixels in the page as it is open: a picture shrinks whole."
    found = set()
    for address, width in browser.run(PICTURES):
        if not address.startswith("file:"):
            continue
        sizes = [size * width for size in drawn_sizes(Path(unquote(urlsplit(address).path)))]
        if sizes and min(sizes) < LEAST_TEXT - 0.1:
            found.add(f"{min(sizes):.1f} {address.rsplit('/', 1)[-1]}")
    return found


def looked_at(page, browser):
    "What is wrong with a page, by kind: both widths, then dark."
    found = defaultdict(set)
    for width, dark in ((390, False), (1280, False), (1280, True)):
        browser.window(width, dark=dark)
        browser.open(page.as_uri())
        for kind, where in browser.run(MEASURE).items():
            found[kind] |= {f"{width}{' dark' if dark else ''}: {w}" for w in where}
        found["small"] |= small_in_files(browser) if width == 390 else set()
        found["console"] |= set(browser.errors())
        here = ("file:", "data:", "blob:", "about:")
        found["foreign"] |= {u for u in browser.asked_for() if not u.startswith(here)}
    return found


def dead_links(pages):
    "{page: links that lead to no page or to no anchor}."
    read = lambda p: re.sub(r"<script.*?</script>", "", p.read_text("utf-8"), flags=re.S)
    texts = {p.resolve(): read(p) for p in pages}
    anchors = {p: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in texts.items()}
    dead = defaultdict(set)
    for page, text in texts.items():
        for target in map(unescape, re.findall(r'\b(?:href|src)="([^"]*)"', text)):
            to, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            file = (page.parent / to.partition("?")[0]).resolve() if to else page
            known = anchors.get(file, {anchor})
            if not file.exists() or anchor and anchor not in known:
                dead[page].add(target)
    return dead


def site_pages(folder):
    "The pages of a rendered site, in order."
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8"))
    named = site.listed(config["website"]["sidebar"]["contents"])
    more = [r for r in config["project"]["resources"] if r.endswith(".html")]
    return [folder / name for name in [*map(site.address_of, named), *more]]


@pytest.fixture(scope="module", params=SITES)
def rendered(request):
    "The folder of a rendered site."
    folder, make = SITES[request.param]
    if not shutil.which(NEEDS[request.param]):
        pytest.skip(f"no {NEEDS[request.param]} on the path: {WHERE[request.param]}")
    make()
    return folder


@pytest.fixture(scope="module")
def faults(rendered, tmp_path_factory):
    "{kind: {page: where}} of a rendered site."
    folder = rendered
    pages, found = site_pages(folder), defaultdict(dict)
    dead, begun = dead_links(pages), time.time()
    browser = Browser(tmp_path_factory.mktemp("profile"))
    for page in pages:
        here = looked_at(page, browser)
        here["links"] |= dead.get(page.resolve(), set())
        for kind, where in here.items():
            if where:
                found[kind][str(page.relative_to(folder))] = sorted(where)
    browser.close()
    print(f"{len(pages)} pages in {time.time() - begun:.0f} s")
    (folder / "faults.json").write_text(json.dumps(found, ensure_ascii=False, indent=1))
    return found


def allowed(kind):
    lines = FAULTS.read_text("utf-8").splitlines() if FAULTS.exists() else []
    pairs = [line.split(": ", 1) for line in lines if line and not line.startswith("#")]
    return {page for k, page in pairs if k == kind}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("kind", KINDS)
def test_every_page_in_a_browser(faults, kind):
    found = faults.get(kind, {})
    wrong = {page: where[:5] for page, where in found.items() if page not in allowed(kind)}
    assert not wrong, f"{KINDS[kind]}: {json.dumps(wrong, ensure_ascii=False, indent=1)}"
    assert not allowed(kind) - set(found), "done: take it off tests/site_faults.txt"


def test_one_quarto_is_pinned(root):
    "The workflow installs the Quarto that make site asks for, and make site asks."
    workflow = yaml.safe_load((root / ".github" / "workflows" / "test.yaml").read_text("utf-8"))
    steps = [s for job in workflow["jobs"].values() for s in job["steps"]]
    pinned = [s["with"]["version"] for s in steps if "quarto-actions/setup" in s.get("uses", "")]
    assert pinned == [site.QUARTO]
    assert "site_steps.py quarto" in (root / "Makefile").read_text("utf-8")


TABLE = """<style scoped>.x {}</style><table border="1" class="dataframe"><thead><tr style="text-align: right;">
<th></th><th>fall</th></tr></thead>
<tbody><tr><th>de</th><td>NaN</td></tr><tr><th>en</th><td>0.5</td></tr></tbody></table>"""


def test_a_table_is_made_fit_for_people():
    made = site.fit_table(TABLE)
    assert "NaN" not in made and "<td>\u2013</td>" in made and "<td>0.5</td>" in made
    assert '<th scope="col">fall</th>' in made and '<th scope="row">de</th>' in made
    assert "<style" not in made and "<th></th>" not in made and "text-align" not in made


def test_a_figure_takes_the_ink_of_its_page():
    drawn = '<?xml version="1.0"?><svg width="9"><path stroke="#767676"/><g fill="#0072B2"/></svg>'
    made = site.themed(drawn)
    assert 'stroke="currentColor"' in made and 'fill="#0072B2"' in made
    assert "prefers-color-scheme:dark" in made and site.themed(made) == made


def test_the_text_of_a_picture_is_measured(tmp_path):
    picture = tmp_path / "x.svg"
    style = '<text style="font: 10px sans-serif">a</text><text style="font-size: 20px">b</text>'
    picture.write_text(f'<svg viewBox="0 0 400 200">{style}<text font-size="8px">c</text></svg>')
    assert drawn_sizes(picture) == [0.025, 0.05, 0.02]
    (tmp_path / "x.png").write_bytes(b"")
    assert drawn_sizes(tmp_path / "x.png") == []


def test_words_in_mathematics_are_words():
    made = site.fit_mathematics(r"$\mathrm{EMT} = \mathbb{1}[x] + \mathrm{d}$")
    assert made == r"$\text{EMT} = 𝟙[x] + \mathrm{d}$"


def test_the_name_of_an_index_stands_in_the_one_head():
    import pandas as pd

    table = pd.DataFrame(dict(fall=[0.5]), index=pd.Index(["de"], name="language"))
    made = site.fit_table(table._repr_html_())
    assert '<th scope="col">language</th><th scope="col">fall</th>' in made
    assert made.count("<tr") == 2
    several = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["a"], ["b", "c"]]))
    assert site.fit_table(several._repr_html_()).count("<tr") == 3


def test_a_finished_page_is_finished_once():
    page = '<body class="x"><main id="quarto-document-content"><table><tr><th>a</th></tr></table></main></body>'
    once = site.finish_page(page)
    assert once == site.finish_page(once)
    assert once.index("skip-link") < once.index("<main") and 'tabindex="-1"' in once
    assert once.count("scroll-table") == 1 and '<th scope="row">a</th>' in once


def test_the_readme_links_to_pages_that_the_site_has(root):
    config = yaml.safe_load((root / "_quarto.yml").read_text("utf-8"))
    known = {page.name for page in site_pages(Path())} | {p.as_posix() for p in site_pages(Path())}
    known |= set(config["project"]["resources"])
    base = re.escape(config["website"]["site-url"])
    linked = re.findall(rf"{base}/([\w/]+\.html)", (root / "README.md").read_text("utf-8"))
    assert linked and not set(linked) - known


CHOSEN = "['model', 'tuning', 'language', 'offset'].map(i => document.getElementById(i).value).slice(0, 3)"
CHANGE = """
 const e = document.getElementById('language');
 e.value = 'fr';
 e.dispatchEvent(new Event('change'));
 location.hash"""
REAL = """[
 document.getElementById('summary').textContent,
 document.getElementById('about').textContent,
 [...document.querySelectorAll('#key li:not([hidden])')].map(e => e.dataset.state),
 [...document.querySelectorAll('#numbers thead th')].map(e => e.textContent),
 [...document.querySelectorAll('.figures .note:not([hidden])')].map(e => e.textContent),
 [...document.querySelectorAll('.chart')].filter(e => e.getClientRects().length && !e.querySelector('svg path')).length,
 document.querySelector('#model option').textContent]"""
THEME = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_explorer_keeps_its_state_in_the_address(browser, root):
    page = (root / "nbs" / "explore" / "world.html").as_uri()
    browser.window(1280)
    browser.open(f"{page}#model=world-1&language=ja&tuning=dpo%2C+seed+1&offset=-2")
    assert browser.run(CHOSEN) == ["world-1", "dpo, seed 1", "ja"]
    assert browser.run("document.getElementById('says').textContent") == "-2"
    assert browser.run(CHANGE) == "#model=world-1&tuning=dpo%2C+seed+1&language=fr&offset=-2"
    assert browser.run("document.querySelectorAll('#model optgroup').length") >= 2
    browser.open(page + "?again#model=nonsense&language=xx")
    assert browser.run(CHOSEN)[2] == "de" and not browser.errors()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_explorer_shows_real_weights_beside_their_placebo(browser, root, width):
    "Chosen through the address; a sentence stands where a measurement is missing, never an empty chart."
    page = (root / "nbs" / "explore" / "world.html").as_uri()
    browser.window(width)
    browser.open(f"{page}#model=gemma&tuning=dpo%2C+seed+0&language=ja&measure=emt")
    assert browser.run(CHOSEN) == ["gemma", "dpo, seed 0", "ja"]
    assert "measure=emt" in browser.run("location.hash")
    time.sleep(0.5)  # the charts are drawn a moment later
    said, about, key, heads, notes, empty, name = browser.run(REAL)
    assert said.startswith("Japanese: base") and "placebo" in said and "maximum" in said
    assert key == ["base", "tuned", "placebo"] and len(heads) == 4 and "seed 0" in about
    assert len(notes) == 2 and all("Gemma 3 270M (real weights)" in note for note in notes)
    assert not empty and "real weights" in name and not browser.errors()
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_explorer_takes_the_theme_that_was_chosen_in_the_site(browser, root):
    page = (root / "nbs" / "explore" / "world.html").as_uri()
    browser.window(1280)
    browser.open(page)
    assert browser.run(THEME) == "rgb(255, 255, 255)"
    browser.run("localStorage.setItem('quarto-color-scheme', 'alternate')")
    browser.open(page + "?again")
    assert browser.run(THEME) == "rgb(22, 25, 29)"


# ---- story pages: short, the answer first, long code folded


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_story_page_is_short_and_begins_with_its_answer(rendered, browser):
    found = {page.stem: reading.measure(page, browser) for page in reading.story_pages(rendered)}
    assert len(found) == 15
    long = {name: m["words"] for name, m in found.items() if m["words"] > reading.MOST_WORDS}
    assert not long, "fold long tables and details for the few, or move machinery to nbs/lib"
    late = {name: m["before"] for name, m in found.items() if not m["before"] < 0.8}
    assert not late, "an answer begins below the first screen, or is missing"
    assert sum(m["open"] for m in found.values()) > 1.3 * sum(m["words"] for m in found.values())


def press(browser, where):
    "Put the focus on an element, as the tab key would, and press Enter."
    browser.run(f"document.querySelector({json.dumps(where)}).focus()")
    key = dict(key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, **key)
    time.sleep(0.2)


OPEN = "document.querySelectorAll('main details.code-fold[open]').length"
FOLDS = "document.querySelectorAll('main details.code-fold').length"
SAYS = "document.querySelector('.fold-all').textContent"
ARRIVED = """(async id => {
  await new Promise(done => setTimeout(done, 200));
  const fold = document.getElementById(id), top = fold.getBoundingClientRect().top;
  return fold.open && fold.lastElementChild.checkVisibility() && top > -2 && top < innerHeight;
})"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_fold_opens_by_keyboard_one_or_all(rendered, browser):
    browser.window(1280)
    browser.open((rendered / "training.html").as_uri())
    assert browser.run(FOLDS) > 10 and browser.run(OPEN) == 0
    press(browser, "main details.code-fold > summary")
    assert browser.run(OPEN) == 1 and browser.run(SAYS) == "Show all code"
    press(browser, ".fold-all")
    assert browser.run(OPEN) == browser.run(FOLDS) and browser.run(SAYS) == "Hide all code"
    press(browser, ".fold-all")
    assert browser.run(OPEN) == 0 and not browser.errors()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_links_and_searches_lead_into_a_closed_fold(rendered, browser):
    browser.window(1280)
    page = (rendered / "training.html").as_uri()
    browser.open(f"{page}#dpo_loss")
    assert browser.run(f"{ARRIVED}('dpo_loss')") and browser.run(OPEN) == 1
    browser.run("location.hash = '#encode_pair'")
    assert browser.run(f"{ARRIVED}('encode_pair')") and browser.run(OPEN) == 2
    browser.open((rendered / "value_vectors.html").as_uri() + "#find_sources")  # a fold in a fold
    assert browser.run(f"{ARRIVED}('find_sources')")
    browser.open(f"{page}?q=logsigmoid")
    assert browser.run("document.getElementById('dpo_loss').open") and not browser.errors()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_fold_needs_no_script_and_paper_shows_everything(rendered, browser):
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    browser.open((rendered / "training.html").as_uri())
    press(browser, "main details.code-fold > summary")
    assert browser.run(OPEN) == 1 and not browser.run("document.querySelector('.fold-all')")
    hidden = "[...document.querySelectorAll('main pre')].filter(e => !e.checkVisibility()).length"
    assert browser.run(hidden) > 10
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.run(hidden) == 0


LONG = 'def half(x):\n    """Half of `x` (section 3).\n\n    A number."""\n' + "    x = x\n" * 8
SHORT = "def third(x):\n    return x / 3"
SAID = "---\n\n### {0}\n\n```python\ndef {0}(\n    x\n):\n```\n\n*Half of `x`.*\n\nMore of it."


def code_cell(source, **output):
    "A code cell of a processed page, with one output."
    shown = [dict(output_type="display_data", data=output)] if output else []
    return dict(cell_type="code", source=source, outputs=shown)


def documented(name):
    "What nbdev puts beside an exported name."
    said = {"text/markdown": SAID.format(name)}
    return code_cell(f"#| echo: false\n#| output: asis\nshow_doc({name})", **said)


def folded(*cells):
    "The sources and outputs of cells after the step that folds them."
    page = dict(cells=list(cells))
    folding.fold_page(page)
    out = lambda c: c["outputs"][0]["data"]["text/markdown"] if c["outputs"] else ""
    return [(cell["source"], out(cell)) for cell in page["cells"]]


EXPORTED = '#| code-fold: show\n#| code-summary: "Exported source"\n'


def test_a_name_of_the_package_is_one_fold_with_its_source():
    [(_, said)] = folded(documented("half"), code_cell(EXPORTED + LONG))
    assert '<details class="code-fold" id="half">' in said and "###" not in said
    assert "<summary><code>half(...)</code>: Half of <code>x</code></summary>" in said
    assert said.count("def half") == 1 and "x = x" in said
    [(_, said)] = folded(documented("third"), code_cell(EXPORTED + SHORT))
    assert '<div id="third">' in said and "<details" not in said and "return x / 3" in said


def test_a_name_without_its_source_folds_with_its_signature():
    [(_, said)] = folded(documented("quarter"))
    assert "<code>quarter(...)</code>: Half of <code>x</code></summary>" in said
    assert "def quarter(" in said and "More of it." in said


def test_a_long_cell_folds_and_says_what_is_inside():
    lines = "\n".join(f"x = {i}" for i in range(8))
    told = {
        "path = Path()\ntrain(path)\n": "Code: train(...)",
        '#| label: fig-x\nplot("x")\n': "Code of the figure",
        "display(1)\n": "Code of the table",
        "# By hand, in `steps`\nprint(1)\n": "Code: By hand, in steps",
        '#| code-summary: "Made by hand"\n#| code-fold: true\nf(1)\n': "Made by hand",
    }
    for code, summary in told.items():
        [(source, said)] = folded(code_cell(code + lines, **{"text/markdown": "<table>"}))
        assert folding.options_of(dict(source=source))["code-fold"] is True
        assert folding.options_of(dict(source=source))["code-summary"] == summary
        assert said == "<table>" and source.endswith(lines)


def test_a_cell_that_calls_a_name_of_its_page_says_so():
    code = "train(1)\nhalf(2)\n" + "x = 1\n" * 8
    source, _ = folded(documented("half"), code_cell(code))[1]
    assert folding.options_of(dict(source=source))["code-summary"] == "Code: half(...)"


def test_a_short_cell_and_a_hidden_one_stay_as_they_are():
    hidden = "#| echo: false\n" + "x = 1\n" * 20
    assert folded(code_cell("f(1)"), code_cell(hidden)) == [("f(1)", ""), (hidden, "")]


def test_a_page_with_folds_gets_their_script_once():
    page = '<body><main><details class="code-fold"></details></main></body>'
    once = site.finish_page(page)
    assert once == site.finish_page(once) and once.count("fold-all") == 1
    assert "fold-all" not in site.finish_page("<body><main></main></body>")
