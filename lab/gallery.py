"""The pictures of docs/watching.md, made by the tools they show: `python -m lab.gallery`. Make them anew when the model or a tool changes.

Left out on purpose: any retouching, but that the SVG names no font of a server.
"""

import io
import re
from pathlib import Path

from rich.console import Console

from dllm import finish, prepare, steps
from lab.browser import Browser
from lab.command_line import TINY, use_threads
from lab.trace import read, trace, write_page
from lab.watch import Observer
from load_weights import load_model, load_tokenizer

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
PROMPT = "Tom has 12 boxes of 9 apples each. He buys 17 more and gives away 38. Then he eats 3 apples. How many apples does Tom have?"
LENGTHS = {"gen_length": 64, "block_length": 32}
RUNS = {"fast-dllm": {"cache": "dual", "threshold": 0.9}, "llada": {"steps": 32}}
COLUMNS = 80


def still(model, tokenizer, ids: list[int]) -> None:
    """One picture of --watch --explain, a quarter into the answer."""
    canvas = prepare(model, ids, "llada", LENGTHS | RUNS["llada"])
    observer = Observer(canvas, tokenizer, {})
    for step in steps(canvas):
        observer.see(step)
        if step.nfe == 8:
            break
    console = Console(
        record=True,
        width=COLUMNS,
        force_terminal=True,
        color_system="truecolor",
        file=io.StringIO(),
    )
    console.print(observer.picture(observer.sentence()))
    svg = console.export_svg(title="python dllm.py --watch --explain")
    (FOLDER / "watch.svg").write_text(
        re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8"
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    use_threads(model)
    ids = tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
    still(model, tokenizer, ids)
    for strategy, settings in RUNS.items():
        canvas = prepare(model, ids, strategy, LENGTHS | settings)
        finish(
            canvas,
            trace(
                steps(canvas),
                canvas,
                tokenizer,
                str(FOLDER / f"{strategy}.jsonl"),
                strategy,
                settings,
            ),
        )
    page = FOLDER / "page.html"
    write_page(str(page), [read(FOLDER / f"{strategy}.jsonl") for strategy in RUNS])
    slot = len(ids) + 16  # the result of the third step
    with Browser() as browser:
        browser.open(page, f"#step=2&slot={slot}", width=1200, height=720)
        browser.picture(FOLDER / "viewer.png")
        browser.open(page, f"#step=2&slot={slot}&threshold=0.7", width=400, height=720, dark=True)
        browser.picture(FOLDER / "phone.png")
    page.unlink()
    print(*sorted(file.name for file in FOLDER.iterdir()))


if __name__ == "__main__":
    main()
