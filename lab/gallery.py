"""The pictures of docs/watching.md, made by the tools they show, and the README's:
`python -m lab.gallery`.

Make them anew when the model or a tool changes. Left out on purpose: any retouching, but that the
SVG names no font of a server.
"""

import io
import re
import shutil
import subprocess
from pathlib import Path

from rich.console import Console

from dllm import prepare, stream
from lab import command_line, pictures, trace
from lab.command_line import TINY, encode, use_threads
from lab.watch import Observer
from load_weights import load_model, load_tokenizer

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
PROMPT = (  # held out from the training of the embedded model
    "Ann had 6 shelves with 2 leaves each and got 26 more leaves. After that, she got 4 more "
    "leaves. After that, Ann gave 8 of them to her uncle. How many leaves does Ann have?"
)
RUNS = {"fast-dllm": ["--cache", "dual", "--threshold", "0.9"], "llada": ["--steps", "32"]}
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


def draw_for_readme() -> None:
    """The decode and the curve at its top."""
    pictures.draw_decode(FOLDER / "decode.svg", load_model(TINY), load_tokenizer(TINY), PROMPT)
    pictures.draw_curve(FOLDER / "curve.svg")


def draw_terminal() -> None:
    """One picture of --watch --explain, a quarter into the answer."""
    model, tokenizer = load_model(TINY), load_tokenizer(TINY)
    use_threads(model)
    settings = {"gen_length": 64, "steps": 32}
    canvas = prepare(model, encode(tokenizer, PROMPT), "llada", settings)
    observer = Observer(canvas, tokenizer, {})
    for step, _ in zip(stream(canvas), range(8)):
        observer.see(step)
    console = Console(
        record=True, width=80, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    console.print(observer.picture(observer.sentence()))
    svg = console.export_svg(title="python dllm.py --watch --explain")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    (FOLDER / "watch.svg").write_text(svg, encoding="utf-8")


def draw_page(page: Path, fragment: str, picture: str, size: str, *flags: str) -> None:
    """What a browser window shows of a page, as a PNG."""
    to = [f"--screenshot={FOLDER / picture}", f"--window-size={size}", *flags]
    command = [BROWSER, *FLAGS, *to, page.resolve().as_uri() + fragment]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    draw_terminal()
    draw_for_readme()
    if BROWSER is None:
        return print("drawn but for what a browser shows: there is no chromium on the PATH")
    files, page = [str(FOLDER / f"{strategy}.jsonl") for strategy in RUNS], FOLDER / "page.html"
    for file, (strategy, own) in zip(files, RUNS.items()):
        where = ["--gen-length", "64", "--trace", file]
        command_line.main(["--prompt", PROMPT, "--strategy", strategy, *own, *where])
    trace.main([*files, "--out", str(page)])
    result = trace.read(files[0])[0]["prompt_length"] + 16  # of the third step: a slot
    shown = f"#step=2&slot={result}"
    draw_page(page, shown, "viewer.png", "1200,720")
    dark = "--blink-settings=preferredColorScheme=0"
    draw_page(page, f"{shown}&threshold=0.7", "phone.png", "400,900", dark)
    page.unlink()
    print(*sorted(file.name for file in FOLDER.iterdir()))


if __name__ == "__main__":
    main()
