"Draw nbs/images/card.png, the picture that a shared link to the site shows: our own headline, before and after."

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from matplotlib.figure import Figure  # noqa: E402
from xgdetox.figures import ORANGE  # noqa: E402
from xgdetox.runs import headline, load_run  # noqa: E402

QUESTION = "Tune a language model in English to be less toxic:\ndoes it become less toxic in 16 other languages?"
BELOW = "Toxicity probability per language, before (orange) and after (blue) tuning: three small invented worlds"


def draw_card(path: Path) -> None:
    "Write the card: 1200 x 630 pixels, the question, one dot pair per language."
    t = headline(load_run(ROOT / "results" / "world"), "world")
    t = t.sort_values("probability_before", ascending=False)
    card = Figure(figsize=(12, 6.3), dpi=100, facecolor="#16191d")
    card.text(0.05, 0.9, "xgdetox", color="#a9b0b8", fontsize=22)
    card.text(0.05, 0.7, QUESTION, color="#e4e6e9", fontsize=29, linespacing=1.3)
    card.text(0.05, 0.04, BELOW, color="#a9b0b8", fontsize=14)
    ax = card.add_axes((0.05, 0.16, 0.9, 0.46), facecolor="#16191d")
    x = range(len(t))
    ax.vlines(x, t.probability_after, t.probability_before, color="#6b737c", linewidth=2)
    ax.plot(x, t.probability_before, "o", color=ORANGE, markersize=13)
    ax.plot(x, t.probability_after, "s", color="#56B4E9", markersize=12)
    ax.set_xticks(x, t.language, color="#a9b0b8", fontsize=15)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    card.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw_card(ROOT / "nbs" / "images" / "card.png")
