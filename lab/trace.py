"""A decode as a file: `--trace run.jsonl` records every forward, `--trace run.html` makes a page of
it, and this makes a page of one or two:

    python -m lab.trace run.jsonl other.jsonl --out page.html

docs/trace.md describes the format, docs/viewer.html is the page. Left out on purpose: which query
sees which slot (a block-causal view records the slots that any query sees), and the bytes of a
token that is only part of a character.

Letters: as in dllm.py.
"""

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dllm import Canvas, Step
from lab.command_line import Parser
from lab.files import json_object, read_bytes
from lab.report import replace_file
from strategies import trait

FORMAT, VERSION = "dllm-trace", 1
# the fields of both kinds of records
HEADER = {"strategy", "settings", "versions", "model", "special", "prompt", "padding", "tokens"}
HEADER |= {"prompt_length", "gen_length", "block_length"}
FORWARD = set("nfe window blocks query visible candidates writes unwrites rows ms tokens".split())
TOP = 5  # how many of the likeliest tokens a candidate is recorded with
VIEWER = Path(__file__).parent.parent / "docs" / "viewer.html"
EMPTY = '<script type="application/json" id="traces">[]</script>'  # where the page has its traces


def trace(
    steps: Iterator[Step], s: Canvas, tokenizer, path: str, strategy: str = "", own=None, row=0
) -> Iterator[Step]:
    """Pass on the steps of canvas `s` and record what they do to one row, as the suffix says.

    .jsonl is written as it goes, a record a line: of a run that is killed whole lines are left.
    .html is written when the run is done. Raises OSError if the file cannot be written.
    strategy, own: its name and its own settings, for the record
    """
    recorder = Recorder(s, tokenizer, row)
    try:
        with writer(path) as write:
            write(recorder.header(strategy, own or {}))
            for step in steps:
                if row in step.window.live:
                    write(recorder.forward(step))
                yield step
    except OSError as error:
        raise OSError(f"the trace {path} cannot be written: {error.strerror}") from None


@contextmanager
def writer(path: str) -> Iterator[Callable[[dict], None]]:
    if path.endswith(".html"):
        records: list[dict] = []
        yield records.append
        write_page(path, [records])
        return
    with open(path, "wb", buffering=0) as file:  # so that a line is written at once
        yield lambda record: file.write(compact(record).encode() + b"\n")


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"))


class Recorder:
    """Makes the records of one row of a canvas: what each forward saw, and how it changed it."""

    def __init__(self, s: Canvas, tokenizer, row: int):
        self.s, self.tokenizer, self.row = s, tokenizer, row
        self.canvas = s.x[row].tolist()  # as the last record left it
        self.known: set[int] = set()  # the ids whose text has been recorded

    def header(self, strategy: str, own: dict) -> dict:
        s, P = self.s, self.s.prompt_length
        prompt, answer = self.canvas[:P], enumerate(self.canvas[P:], start=P)
        given = [[slot, token] for slot, token in answer if token != s.mask_id]
        exact = trait(s.strategy.view, "settled") == 0
        return {
            "format": FORMAT,
            "version": VERSION,
            "strategy": {"name": strategy, "settings": own, "exact": exact},
            "settings": asdict(s.settings) | {"eos": s.eos},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "model": {"device": str(s.model.device), "dtype": str(s.model.dtype)[len("torch.") :]},
            "special": {"mask": s.mask_id, "eos": s.eos_id},
            "prompt": prompt,
            "given": given,
            "padding": s.start[self.row].item(),
            "prompt_length": P,
            "gen_length": s.settings.gen_length,
            "block_length": s.block_length,
            "tokens": self.texts([*prompt, s.mask_id, s.eos_id, *(token for _, token in given)]),
        }

    def forward(self, step: Step) -> dict:
        window, at, k, P = step.window, step.at, self.s.block_length, self.s.prompt_length
        b = window.live.tolist().index(self.row)
        before, self.canvas = self.canvas, step.x[self.row].tolist()
        writes, unwrites = changes(before, self.canvas, self.s.mask_id)
        candidates = top_candidates(step, b)
        visible = at.query if at.visible is None else at.visible
        if isinstance(visible, Tensor) and visible.dim() == 3:  # of each layer and row
            visible = visible[:, b].unique()  # what some layer sees
        ids = [i for _, _, _, top in candidates for i, _ in top]
        return {
            "nfe": step.nfe,
            "window": [window.start, window.end],
            "blocks": [(window.start - P) // k, (window.end - P) // k],
            "query": ranges(at.query if at.own is None else at.query[at.own[b]]),
            "visible": ranges(visible),
            "candidates": candidates,
            "writes": writes,
            "unwrites": unwrites,
            "rows": step.rows,
            "ms": rounded(step.seconds * 1000, 6),
            "tokens": self.texts(ids + [cell[1] for cell in candidates + writes + unwrites]),
        }

    def texts(self, ids: list[int]) -> dict[str, str]:
        """The texts of those ids that no record holds yet."""
        new = [i for i in dict.fromkeys(ids) if i not in self.known]
        self.known.update(new)
        return {str(i): self.tokenizer.decode([i], skip_special_tokens=False) for i in new}


def top_candidates(step: Step, b: int) -> list[list]:
    """[slot, token, confidence, [[id, probability], ...]] for each cell that could be written.

    b: the row, among the unfinished ones
    """
    cells = step.candidates[b].nonzero()[:, 0]  # offsets into the window
    logits = step.logits[b, cells].float()  # [cells, V]
    top = logits.softmax(-1).topk(min(TOP, logits.shape[-1]))
    scores = (step.scores.token[b, cells], step.scores.confidence[b, cells])
    columns = (cells + step.window.start, *scores, top.indices, top.values)
    found = []
    for slot, token, confidence, ids, odds in zip(*(column.tolist() for column in columns)):
        likeliest = [[i, rounded(p, 4)] for i, p in zip(ids, odds) if p > 0]
        found.append([slot, token, rounded(confidence, 9), likeliest])
    return found


def changes(before: list[int], after: list[int], mask_id: int) -> tuple[list, list]:
    """What a forward did to a canvas, as [slot, token after it]: to masks, and to tokens."""
    pairs = enumerate(zip(before, after))
    changed = [(old, [slot, new]) for slot, (old, new) in pairs if old != new]
    writes = [cell for old, cell in changed if old == mask_id]
    return writes, [cell for old, cell in changed if old != mask_id]


def ranges(slots: slice | Tensor) -> list[list[int]]:
    """Ascending slots as half-open ranges: 0 1 2 7 is [[0, 3], [7, 8]]."""
    if isinstance(slots, slice):
        return [[slots.start, slots.stop]]
    found: list[list[int]] = []
    for slot in slots.tolist():
        if not found or found[-1][1] != slot:
            found.append([slot, slot])
        found[-1][1] += 1
    return found


def rounded(value: float, digits: int) -> float:
    """To so many significant digits; 9 keep a float32 exactly."""
    return float(f"{value:.{digits}g}")


def read(path: str | Path) -> list[dict]:
    """The records of a trace, the header first.

    Raises ValueError, naming the file and the line, if it is none, or if a record lacks a field;
    whether what they hold is sound is checked by the page.
    """
    try:
        lines = read_bytes(path).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeError:
        raise ValueError(f"{path} is no trace: it is not text") from None
    header, *forwards = (json_object(line) or {} for line in lines)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no trace: its first line is not the header of one")
    if (version := header.get("version")) != VERSION:
        raise ValueError(f"{path} is a trace of version {version}: expected version {VERSION}")
    for number, record in enumerate([header, *forwards], start=1):
        if not (HEADER if number == 1 else FORWARD) <= record.keys():
            raise ValueError(f"{path} is damaged: line {number} is not a whole record")
    return [header, *forwards]


def replay(records: list[dict]) -> Iterator[list[int]]:
    """The canvas after each forward, from the records alone."""
    header, *forwards = records
    canvas = header["prompt"] + [header["special"]["mask"]] * header["gen_length"]
    for slot, token in header.get("given", []):
        canvas[slot] = token
    for record in forwards:
        for slot, token in record["writes"] + record["unwrites"]:
            canvas[slot] = token
        yield list(canvas)


def write_page(path: str, traces: list[list[dict]]) -> None:
    """Put traces into a copy of the viewer, which needs nothing else: the whole page, or none."""
    data = compact(traces).replace("<", "\\u003c")  # nothing in it can end the script element
    page = VIEWER.read_text(encoding="utf-8").replace(EMPTY, EMPTY.replace("[]", data))
    replace_file(Path(path), page)


def main(arguments: list[str] | None = None) -> None:
    """Make a page of one or two traces; exit code 2 for anything wrong with them."""
    about = "Make a page of one or two traces, to look at in a browser."
    parser = Parser(prog="lab.trace", description=about, allow_abbrev=False)
    what = "what --trace has recorded; a second is shown beside the first"
    parser.add_argument("traces", nargs="+", metavar="RUN.jsonl", help=what)
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="the page to write")
    args = parser.parse_args(arguments)
    try:
        if len(args.traces) > 2:
            raise ValueError(f"{len(args.traces)} traces: expected one, or two to compare")
        write_page(args.out, [read(path) for path in args.traces])
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{args.out} cannot be written: {error.strerror}")
    print(args.out)


if __name__ == "__main__":
    main()
