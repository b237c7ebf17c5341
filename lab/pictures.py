"""The two pictures at the top of the README: a decode as it fills, and what speed costs.

Each is an SVG that is dark where its reader's screen is. `python -m lab.gallery` makes them, like
the others in docs/gallery. Nothing in them depends on the machine: the first shows tokens, not how
sure the model was of them, and the second is drawn from the table that docs/results.md has.
"""

import math
from pathlib import Path
from xml.sax.saxutils import escape

from dllm import prepare, stream
from lab.command_line import encode
from lab.report import MEASURED, replace_file
from lab.watch import ENDED, MASKED, Observer

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"
STYLE = """
  text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328; white-space: pre }
  .card { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #d1d9e0 } .faint { fill: #818b98 }
  .new, .mask { font-weight: bold } .new { fill: #0969da } .mask { fill: #bc4c00 }
  .c0 { color: #0969da } .c1 { color: #bc4c00 } .c2 { color: #1a7f37 } .c3 { color: #cf222e }
  .c4 { color: #8250df }
  .own { fill: currentColor } .line { fill: none; stroke: currentColor; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .card { fill: #0d1117; stroke: #3d444d } .grid { stroke: #3d444d } .faint { fill: #9198a1 }
    .new { fill: #4493f8 } .mask { fill: #f0883e }
    .c0 { color: #4493f8 } .c1 { color: #f0883e } .c2 { color: #3fb950 } .c3 { color: #ff7b72 }
    .c4 { color: #ab7df8 }
  }"""
WIDTH, LETTER, LINE = 720, 7.8, 24  # in pixels; a letter of the font above is 0.6 of its size


def save(file: Path, height: int, parts: list[str]) -> None:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    card = f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}\n</style>", card]
    replace_file(file, "\n".join([*lines, *parts, "</svg>"]) + "\n")


def text(x: float, y: float, words: str, kind: str = "", more: str = "") -> str:
    """Words that take the room their letters should, whatever font the reader has."""
    room = f'textLength="{len(words) * LETTER:g}" lengthAdjust="spacingAndGlyphs"'
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" {room}{more}>{escape(words)}</text>'


# --- a decode -------------------------------------------------------------------------------------


def draw_decode(file: Path, model, tokenizer, prompt: str) -> None:
    """A line for each forward: what stands there, what it has just written, and masks as dots."""
    canvas = prepare(model, encode(tokenizer, prompt), "fast-dllm", {"gen_length": 32})
    observer, lines = Observer(canvas, tokenizer, {}), []
    for step in stream(canvas):
        observer.see(step)
        written = {slot - canvas.prompt_length for slot, _ in observer.record["writes"]}
        lines.append((observer.texts(), written))
    widths, parts = [len(cell) for cell in lines[-1][0]], []
    for number, (cells, written) in enumerate(lines, start=1):
        x, y = 24 + 11 * LETTER, LINE * number + 8
        parts.append(text(24, y, f"forward {number}", "faint"))
        for slot, (cell, width) in enumerate(zip(cells, widths)):
            kind = "new" if slot in written else {MASKED: "mask", ENDED: "faint"}.get(cell, "")
            parts.append(text(x, y, cell.center(width), kind, ' xml:space="preserve"'))
            x += width * LETTER
    save(file, LINE * (len(lines) + 1), parts)


# --- the trade-off --------------------------------------------------------------------------------


def measured() -> dict[str, list[dict[str, float]]]:
    """The points of each strategy in the table of docs/results.md that is drawn as a curve."""
    found = MEASURED.findall(RESULTS.read_text(encoding="utf-8"))
    table = next(output for command, output in found if "--plot" in command)
    rows = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in row] for row in rows)
    points: dict[str, list[dict[str, float]]] = {}
    for row in (dict(zip(head, row)) for row in rows):
        low, high = row["95 % interval"].split(" - ")
        shares = {"right": row["right"], "low": low, "high": high}
        point = {name: float(share.rstrip("%")) for name, share in shares.items()}
        point["speed"] = float(row["tokens/forward"])
        points.setdefault(row["strategy"].partition(":")[0], []).append(point)
    return points


def draw_curve(file: Path) -> None:
    """Right answers, with their 95 % intervals, against tokens a forward: a line a strategy."""
    left, right, top, bottom = 64, WIDTH - 24, 36, 250
    lines, every = measured(), [point for points in measured().values() for point in points]
    least, doublings = min(p["low"] for p in every) // 10 * 10, [-1, 0, 1, 2, 3]  # of one token
    most = math.log2(max(p["speed"] for p in every)) + 0.1
    x_of = lambda speed: left + (right - left) * (math.log2(speed) + 1) / (most + 1)
    y_of = lambda share: bottom - (bottom - top) * (share - least) / (100 - least)
    below = "tokens per forward"
    parts = [text(24, 22, "right answers, %")]
    parts += [text(right - len(below) * LETTER, bottom + 38, below)]
    for share in range(100, int(least), -20):
        y = y_of(share)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(text(left - 8 - len(str(share)) * LETTER, y + 4, str(share), "faint"))
    for speed in (2**doubling for doubling in doublings if doubling < most):
        parts.append(text(x_of(speed) - LETTER / 2, bottom + 18, f"{speed:g}", "faint"))
    name_at = right - (sum(map(len, lines)) + 3 * len(lines) - 3) * LETTER
    for number, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point["speed"])
        at = [(x_of(p["speed"]), y_of(p["right"]), y_of(p["low"]), y_of(p["high"])) for p in points]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in at)
        spread = "".join(f"M{x:.1f} {low:.1f}V{high:.1f}" for x, _, low, high in at)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y, *_ in at)
        parts.append(f'<g class="c{number} own"><path class="line" d="M{way}"/>')
        parts.append(f'<path class="line" opacity=".3" d="{spread}"/>{dots}')
        parts.append(text(name_at, 22, name, "own") + "</g>")
        name_at += (len(name) + 3) * LETTER
    save(file, bottom + 52, parts)
