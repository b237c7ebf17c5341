"""The figures of the course, as SVG: `python -m course figures` writes them into docs/figures.

Each is drawn from what it shows: views are asked for their slots, a decode for its forwards, the
leaderboard for its figures. Colours follow the reader's scheme, light or dark. Left out on purpose:
any drawing library.
"""

import json
from html import escape
from pathlib import Path
from types import SimpleNamespace

import torch

from course.checks import CONFIDENCE, random_model
from course.rank import BOARD, THRESHOLDS, front
from dllm import decode
from lab.report import replace_file
from model import Slots
from strategies import Window
from strategies.d2f import block_mask
from strategies.fast_dllm import cached
from strategies.streaming import pruned

FOLDER = Path(__file__).parent.parent / "docs" / "figures"
STYLE = """
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.small { font-size: 11px; fill: var(--soft); }
.title { font-size: 15px; font-weight: 600; }
.mid { text-anchor: middle; }
.end { text-anchor: end; }
.paper { fill: var(--paper); }
.box { fill: var(--paper); stroke: var(--line); stroke-width: 1.2; }
.fresh { fill: var(--blue); }
.new { fill: var(--orange); }
.stale { fill: var(--grey); }
.none { fill: none; stroke: var(--faint); }
.line { fill: none; stroke: var(--line); stroke-width: 1.2; }
.curve { fill: none; stroke: var(--blue); stroke-width: 2; }
.on { fill: var(--inverse); }
svg { --ink: #1c1c1a; --soft: #5f5e58; --paper: #fcfcfb; --line: #8a8980; --faint: #d9d8d2;
  --blue: #2a78d6; --orange: #d95a1f; --grey: #b9c4d2; --inverse: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #f2f1ec; --soft: #a9a89f; --paper: #1a1a19; --line: #8a8980; --faint: #3b3b37;
    --blue: #4d96ea; --orange: #ee7c45; --grey: #566373; --inverse: #10100f; }
}"""


# --- drawing --------------------------------------------------------------------------------------


def text(x: float, y: float, what, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(str(what))}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    size = f'width="{width:g}" height="{height:g}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} rx="2" class="{kind}"/>'


def path(points: list[tuple[float, float]], kind: str = "line", arrow: bool = False) -> str:
    way = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{way}" class="{kind}"{" marker-end=" * arrow}{ARROW * arrow}/>'


ARROW = '"url(#tip)"'
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto"><path d="M0 0 8 4 0 8z" fill="var(--line)"/></marker>'
)


def legend(x: float, y: float, entries: dict[str, str]) -> list[str]:
    """A square and its meaning, for each."""
    drawn = []
    for kind, meaning in entries.items():
        drawn += [box(x, y - 10, 12, 12, kind), text(x + 18, y, meaning, "small")]
        x += 34 + 6.2 * len(meaning)
    return drawn


def page(name: str, width: int, height: int, title: str, parts: list[str]) -> None:
    """Write a figure; its title is what a reader hears who does not see it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    start = f'{head} width="{width}" height="{height}"><title>{escape(title)}</title>'
    body = [box(0, 0, width, height, "paper"), text(20, 28, title, "title"), *parts]
    svg = [start, f"<style>{STYLE}\n</style><defs>{TIP}</defs>", *body, "</svg>"]
    replace_file(FOLDER / f"{name}.svg", "\n".join(svg) + "\n")


# --- the figures ----------------------------------------------------------------------------------


def loop() -> None:
    """One forward: which blocks are open, what is computed, what is written."""
    parts, names = [], ("schedule", "view", "network", "scores", "rule", "canvas")
    asks = [
        "which blocks\nare open?", "compute what,\nsee what?", "one forward",
        "token, doubt,\nmargin, entropy", "what to write?", "write, and\nonce more",
    ]  # fmt: skip
    for i, (name, asked) in enumerate(zip(names, asks)):
        x = 20 + 118 * i
        parts += [box(x, 50, 98, 66), text(x + 49, 70, name, "mid")]
        parts += [text(x + 49, 90 + 14 * j, line, "small mid") for j, line in
                  enumerate(asked.split("\n"))]  # fmt: skip
        if i:
            parts.append(path([(x - 20, 83), (x - 2, 83)], arrow=True))
    parts.append(path([(659, 116), (659, 136), (69, 136), (69, 118)], arrow=True))
    rows = {"canvas": ["M"] * 8, "confidence": CONFIDENCE, "threshold 0.9": None, "canvas, then": 0}
    tokens = ["12", "+", "7", "=", "19", "so", "it", "is"]
    for r, (name, cells) in enumerate(rows.items()):
        y = 160 + 34 * r
        parts.append(text(20, y + 17, name))
        for i, c in enumerate(CONFIDENCE):
            x, sure = 140 + 70 * i, c >= 0.9
            shown = cells[i] if cells else ("write" if cells is None else tokens[i])
            shown = shown if cells or sure else "" if cells is None else "M"
            marked = sure and not cells
            parts.append(box(x, y, 64, 26, "new" if marked else "box"))
            parts.append(text(x + 32, y + 17, shown, "mid on" if marked else "mid"))
    page("loop", 740, 310, "One forward of the loop, and what it does to eight masks", parts)


def window_of(start: int, end: int, slots: int, age: int) -> Window:
    few = torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), torch.tensor([1])
    return Window(start, end, age, start, slots - end, None, *few)


def listed(slots: Slots) -> list[int]:
    return list(range(slots.start, slots.stop)) if isinstance(slots, slice) else slots.tolist()


def slots() -> None:
    """What each of 20 slots is to three forwards of a block, under four caches."""
    P, L, S = 4, 4, 20
    prefix = cached("prefix")
    views = {
        "none (LLaDA)": cached("none"),
        "prefix (Fast-dLLM)": prefix,
        "dual (Fast-dLLM)": cached("dual"),
        "prefix, pruned (Streaming)": pruned(prefix, 3),
    }
    start, parts = P + L, []
    for v, (name, view) in enumerate(views.items()):
        x0, y0 = 20 + 420 * (v % 2), 54 + 150 * (v // 2)
        parts.append(text(x0, y0 + 10, name))
        for age in range(3):
            canvas = SimpleNamespace(x=torch.zeros(1, S), templated=False)
            at = view(canvas, window_of(start, start + L, S, age))
            fresh = listed(at.query)
            seen = listed(at.visible) if at.visible is not None else fresh
            y = y0 + 24 + 24 * age
            parts.append(text(x0, y + 14, ("refresh", "then", "then")[age], "small"))
            for slot in range(S):
                kind = "fresh" if slot in fresh else "stale" if slot in seen else "none"
                parts.append(box(x0 + 52 + 16 * slot + 4 * (slot // 4), y, 14, 18, kind))
        for b, block in enumerate(["prompt", "block 0", "block 1", "block 2", "block 3"]):
            parts.append(text(x0 + 52 + 68 * b + 32, y0 + 110, block, "small mid"))
    meanings = {"fresh": "computed in this forward", "stale": "kept from before, seen"}
    parts += legend(20, 366, meanings | {"none": "not seen"})
    page("slots", 850, 384, "Block 1 is open: what each slot is to three of its forwards", parts)


def mask() -> None:
    """D2F's block mask, 4 slots of prompt and 3 blocks of 4."""
    P, L, S, size, x0, y0 = 4, 4, 16, 18, 110, 66
    sees, parts = block_mask(P, L, 0, S).tolist(), []
    names = ["prompt", "block 0", "block 1", "block 2"]
    for b, name in enumerate(names):
        parts.append(text(x0 + size * (4 * b + 2) + 4 * b, y0 - 8, name, "small mid"))
        parts.append(text(x0 - 10, y0 + size * (4 * b + 2) + 4 * b + 4, name, "small end"))
    for i in range(S):
        for j in range(S):
            x, y = x0 + size * j + 4 * (j // L), y0 + size * i + 4 * (i // L)
            own = "new" if i // L == j // L else "fresh"
            parts.append(box(x, y, size - 2, size - 2, own if sees[i][j] else "none"))
    parts += legend(20, 396, {"new": "its own block, both ways", "fresh": "what lies before"})
    parts.append(text(20, 418, "A full block looks at nothing that can still change.", "small"))
    page("mask", 430, 436, "Who (a line) sees which slot, under D2F's mask", parts)


def pipeline() -> None:
    """A decode by a random model, which is unsure enough, a line for each forward."""
    model, prompt, L, G = random_model("a"), [4, 7, 10], 4, 40
    settings = {"gen_length": G, "block_length": L, "skip_threshold": 0.6, "eos": "fill"}
    steps, before, P = [], None, len(prompt)
    for step in decode(model, prompt, "d2f", **settings):
        filled = (step.x[0, P:] != model.config.mask_token_id).tolist()
        opened = (step.window.end - P) // L
        steps.append((filled, before or [False] * G, opened, (step.window.start - P) // L))
        before = filled
    parts = []
    for number, (filled, was, opened, first) in enumerate(steps):
        y = 62 + 24 * number
        parts.append(text(20, y + 14, f"forward {number + 1}", "small"))
        for cell in range(G):
            x = 90 + 15 * cell + 5 * (cell // L)
            kind = "stale" if was[cell] else "new" if filled[cell] else "none"
            if first <= cell // L < opened:
                parts.append(box(x - 1.5, y - 2, 15, 22, "line"))
            parts.append(box(x, y, 12, 18, kind))
    for block in range(G // L):
        parts.append(text(90 + 65 * block + 30, 54, f"block {block}", "small mid"))
    y = 62 + 24 * len(steps) + 24
    parts += legend(20, y, {"new": "written now", "stale": "written before", "none": "mask",
                            "box": "computed: in an open block"})  # fmt: skip
    page("pipeline", 770, y + 20, "D2F: several blocks are in flight, each of four tokens", parts)


def tradeoff() -> None:
    """Right answers against forwards: plain thresholds as a line, other strategies as dots."""
    board = json.loads(BOARD.read_text(encoding="utf-8"))["board"]
    board = {label.removesuffix(":eos=stop"): f for label, f in board.items() if f["forwards"] < 3}
    place = lambda f: (70 + 560 * (f["forwards"] - 1.6) / 1.1, 330 - 260 * (f["right"] - 84) / 16)
    parts, best = [], front(board)
    for right in range(85, 101, 5):
        y = place({"forwards": 2, "right": right})[1]
        parts += [path([(70, y), (640, y)], "none"), text(60, y + 4, right, "small end")]
    for tenth in range(16, 28, 2):
        x = place({"forwards": tenth / 10, "right": 90})[0]
        parts.append(text(x, 352, f"{tenth / 10:.1f}", "small mid"))
    parts += [
        text(350, 374, "forwards a story", "small mid"),
        text(20, 50, "right, of 100", "small"),
    ]
    parts.append(path([place(board[label]) for label in THRESHOLDS], "curve"))
    for label, f in board.items():
        (x, y), short = place(f), label.removeprefix("fast-dllm:").replace("cache=dual", "")
        low, high = (place(f | {"right": f[name] * 100})[1] for name in ("low", "high"))
        if label in THRESHOLDS:
            parts.append(box(x - 4, y - 4, 8, 8, "fresh"))
            parts.append(text(x + 8, y + 16, short.split("=")[-1], "small"))
        else:
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" class="new"/>')
        if label in best and label not in THRESHOLDS:
            parts.append(text(x - 2, y - 10, short.strip(":"), "small end"))
        if label.endswith("threshold=0.9"):
            parts.append(path([(x, min(low, 330)), (x, high)]))
    parts += legend(70, 400, {"fresh": "plain thresholds, dual cache", "new": "other strategies"})
    parts.append(text(70, 420, "Named: on the Pareto front. The bar: a 95 % interval.", "small"))
    page("tradeoff", 680, 440, "What a forward less costs: a hundred held-out stories", parts)


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for draw in (loop, slots, mask, pipeline, tradeoff):
        draw()
    print(*sorted(file.name for file in FOLDER.iterdir()))
    return 0


if __name__ == "__main__":
    main()
