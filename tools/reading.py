"""How long the story pages are, and how soon each says its answer.

`reading.py [FOLDER]` prints a table of the rendered pages in FOLDER (default: the preview): the words that a reader
sees without opening anything, those with every fold open, screens of 1280 x 900 pixels, and how many screens a reader
scrolls before the answer (the first `.answer` or card, else where a page compares itself with the paper or says what to
make of it). A story page has at most 2,500 words in sight, and its answer on the first screen."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import site_steps as site  # noqa: E402
import yaml  # noqa: E402
from browser import Browser  # noqa: E402

MOST_WORDS = 2500
STORY = ("Start", "The method", "The mechanism")  # sections of the sidebar
HEIGHT = 900
WIDTH = 1280
LOOK = """(() => {
const main = document.querySelector('main');
const found = ['.answer', '.claims', '#what-to-make-of-it', '#compare-with-the-paper', '#the-verdicts']
  .map(s => main.querySelector(s)).find(e => e);
const words = () => main.innerText.split(/\\s+/).filter(w => w).length;
const seen = {
  words: words(),
  height: main.getBoundingClientRect().height,
  before: found ? found.getBoundingClientRect().top + scrollY : -1,
};
main.querySelectorAll('details').forEach(fold => { fold.open = true; });
main.querySelectorAll('.collapse').forEach(fold => fold.classList.add('show'));
return {...seen, open: words()};
})()"""


def story_pages(folder: Path) -> list[Path]:
    "The rendered story pages, in the sidebar's order."
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8"))
    sections = config["website"]["sidebar"]["contents"]
    named = site.listed([section for section in sections if section["section"] in STORY])
    return [folder / site.address_of(name) for name in named]


def measure(page: Path, browser: Browser) -> dict:
    "Words in sight and with every fold open, screens, and screens before the answer of a page."
    browser.window(WIDTH, HEIGHT)
    browser.open(page.as_uri())
    found = browser.run(LOOK)
    before = found["before"] / HEIGHT if found["before"] >= 0 else float("nan")
    screens = found["height"] / HEIGHT
    return dict(words=found["words"], open=found["open"], screens=screens, before=before)


def main(folder: Path) -> None:
    "Print the table."
    story = story_pages(folder)
    others = [page for page in sorted(folder.glob("*.html")) if page not in story]
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        print("page                 words     open  screens  before the answer")
        for page in [*story, *others]:
            m = measure(page, browser)
            numbers = f"{m['words']:7} {m['open']:8} {m['screens']:8.1f} {m['before']:12.1f}"
            print(f"{page.stem:18} {numbers}", flush=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_preview")
