"""How long the story pages are, and how soon each says its answer.

`reading.py [FOLDER]` prints a table of the rendered pages in FOLDER (default: the preview): words that are not folded,
screens of 1280 x 900 pixels, and how many screens a reader scrolls before the answer (the first `.answer` or card, else
where a page compares itself with the paper or says what to make of it)."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser  # noqa: E402

HEIGHT = 900
WIDTH = 1280
LOOK = """(() => {
const main = document.querySelector('main');
const found = ['.answer', '.claims', '#what-to-make-of-it', '#compare-with-the-paper', '#the-verdicts']
  .map(s => main.querySelector(s)).find(e => e);
return {
  words: main.innerText.split(/\\s+/).filter(w => w).length,
  height: main.getBoundingClientRect().height,
  before: found ? found.getBoundingClientRect().top + scrollY : -1,
};
})()"""


def story_pages(folder: Path) -> list[Path]:
    "The rendered story pages: those that stand in the site's root, the first page first."
    pages = sorted(folder.glob("*.html"))
    return sorted(pages, key=lambda page: page.stem != "index")


def measure(page: Path, browser: Browser) -> dict:
    "Words, screens, and screens before the answer of a page; details stay folded."
    browser.window(WIDTH, HEIGHT)
    browser.open(page.as_uri())
    found = browser.run(LOOK)
    before = found["before"] / HEIGHT if found["before"] >= 0 else float("nan")
    return dict(words=found["words"], screens=found["height"] / HEIGHT, before=before)


def main(folder: Path) -> None:
    "Print the table."
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        print("page                 words  screens  before the answer")
        for page in story_pages(folder):
            m = measure(page, browser)
            print(
                f"{page.stem:18} {m['words']:7} {m['screens']:8.1f} {m['before']:12.1f}", flush=True
            )
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_preview")
