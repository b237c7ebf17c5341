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
from itertools import pairwise, takewhile
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from dllm import Canvas, Step
from lab.command_line import Parser
from lab.files import append, json_object, read_bytes, write
from lab.report import replace_file
from strategies import trait

FORMAT, VERSION = "dllm-trace", 1
# the fields of both kinds of records
HEADER = {"strategy", "settings", "versions", "model", "special", "prompt", "padding", "tokens"}
HEADER |= {"prompt_length", "gen_length", "block_length"}
FORWARD = set("nfe window blocks query visible candidates writes unwrites rows ms tokens".split())
MOST = 2**53 - 1  # the greatest whole number that a page can count to
LONGEST, DRAWN = 2**20, 2**14  # slots of a canvas: of one that is read, and on a page
TOP = 5  # how many of the likeliest tokens a candidate is recorded with
VIEWER = Path(__file__).parent.parent / "docs" / "viewer.html"
EMPTY = '<script type="application/json" id="traces">[]</script>'  # where the page has its traces


def trace(
    steps: Iterator[Step],
    s: Canvas,
    tokenizer,
    path: str,
    strategy="",
    own=None,
    row=0,
    question="",
) -> Iterator[Step]:
    """Pass on the steps of canvas `s` and record what they do to one row, as the suffix says.

    .jsonl is written as it goes, a record a line: of a run that ends early whole lines are left.
    .html is written when the run is done. Raises OSError or ValueError if it cannot be written.
    strategy, own, question: its name, its own settings, and what was asked, for the record
    """
    recorder = Recorder(s, tokenizer, row)
    try:
        header = recorder.header(strategy, own or {}, question)
        if path.endswith(".html"):
            check_size(header)
        with writer(path) as put:
            put(header)
            for step in steps:
                if row in step.window.live:
                    put(recorder.forward(step))
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
        yield lambda record: append(file, compact(record).encode() + b"\n")


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Recorder:
    """Makes the records of one row of a canvas: what each forward saw, and how it changed it."""

    def __init__(self, s: Canvas, tokenizer, row: int):
        self.s, self.tokenizer, self.row = s, tokenizer, row
        self.canvas = s.x[row].tolist()  # as the last record left it
        self.known: set[int] = set()  # the ids whose text has been recorded
        self.ends = list(s.model.config.ends)

    def header(self, strategy: str, own: dict, question: str) -> dict:
        s, P = self.s, self.s.prompt_length
        prompt, answer = self.canvas[:P], enumerate(self.canvas[P:], start=P)
        given = [[slot, token] for slot, token in answer if token != s.mask_id]
        exact = trait(s.strategy.view, "settled") == 0
        return {
            "format": FORMAT,
            "version": VERSION,
            "strategy": {"name": strategy, "settings": told(own), "exact": exact},
            "settings": told(asdict(s.settings) | {"eos": s.eos}),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "model": {"device": str(s.model.device), "dtype": str(s.model.dtype)[len("torch.") :]},
            "special": {"mask": s.mask_id, "eos": s.eos_id, "ends": self.ends},
            "question": question,
            "prompt": prompt,
            "given": given,
            "padding": s.start[self.row].item(),
            "prompt_length": P,
            "gen_length": s.settings.gen_length,
            "block_length": s.block_length,
            "tokens": self.texts([*prompt, s.mask_id, *self.ends, *(token for _, token in given)]),
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
        full = self.s.mask_id not in self.canvas
        return {
            "nfe": step.nfe,
            "window": [window.start, window.end],
            "blocks": [(window.start - P) // k, (window.end - P) // k],
            "query": ranges(
                at.query if at.own is None else self.s.model.indices(at.query)[at.own[b]]
            ),
            "visible": ranges(visible),
            "candidates": candidates,
            "writes": writes,
            "unwrites": unwrites,
            "rows": step.rows,
            "ms": rounded(step.seconds * 1000, 6),
            "tokens": self.texts(ids + [cell[1] for cell in candidates + writes + unwrites]),
        } | ({"answer": self.answer()} if full else {})

    def answer(self) -> str:
        """The text up to the first end token, in which characters of several tokens are whole."""
        written = takewhile(lambda i: i not in self.ends, self.canvas[self.s.prompt_length :])
        return self.tokenizer.decode(list(written))

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


def told(settings: dict) -> dict:
    """Settings for JSON, which has no infinity, nor models: as text."""
    plain = lambda value: isfinite(value) if isinstance(value, float) else True
    known = (bool, int, float, str, type(None))
    return {k: v if isinstance(v, known) and plain(v) else str(v) for k, v in settings.items()}


def read(path: str | Path) -> list[dict]:
    """The records of a trace, the header first; the torn last line of a run that ended early is
    left out.

    Raises ValueError, naming the file and the line, if it is none, or if a record is not as
    docs/trace.md says: what the fields hold can be relied on.
    """
    try:
        *lines, rest = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeError:
        raise ValueError(f"{path} is no trace: it is not text") from None
    records = [json_object(line) or {} for line in lines]
    if whole := json_object(rest):  # not torn: somebody has taken its end of line
        records.append(whole)
    header = records[0] if records else {}
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no trace: its first line is not the header of one")
    version = header.get("version")
    known = version if is_whole(version) else "unknown"
    if known != VERSION:
        raise ValueError(f"{path} is a trace of version {known}: expected version {VERSION}")
    for number, record in enumerate(records, start=1):
        try:
            sound = is_header(record) if number == 1 else is_forward(record, header)
        except (TypeError, ValueError, KeyError, AttributeError):
            sound = False
        if not sound:
            raise ValueError(f"{path} is damaged: line {number} is not a whole record")
    return records


def is_header(header: dict) -> bool:
    """Whether these are the fields of a header. May also raise what wrong types lead to."""
    P, G = header["prompt_length"], header["gen_length"]
    special, strategy = header["special"], header["strategy"]
    ids = [special["mask"], special["eos"], *listed(special.get("ends", []))]
    return (
        HEADER <= header.keys()
        and is_whole(P, 1, LONGEST - 1)
        and is_whole(G, 1, LONGEST - P)
        and is_whole(header["block_length"], 1, G)
        and is_whole(header["padding"], 0, P - 1)
        and len(header["prompt"]) == P
        and all(map(is_whole, [*ids, *listed(header["prompt"])]))
        and are_cells(header.get("given", []), P, P + G)
        and isinstance(strategy["name"], str)
        and isinstance(strategy["exact"], bool)
        and all(isinstance(header[name], dict) for name in ("settings", "versions", "model"))
        and isinstance(strategy["settings"], dict)
        and isinstance(header.get("question", ""), str)
        and are_texts(header["tokens"])
    )


def is_forward(record: dict, header: dict) -> bool:
    """The same of the record of a forward, under a header that is one."""
    P = header["prompt_length"]
    S = P + header["gen_length"]
    (start, end), (first, last) = record["window"], record["blocks"]
    candidates = listed(record["candidates"])
    likeliest = [pair for _, _, _, top in candidates for pair in listed(top)]
    return (
        FORWARD <= record.keys()
        and all(map(is_whole, (record["nfe"], record["rows"], first, last)))
        and are_ranges([[P, start], [start, end]], S)
        and are_ranges(record["query"], S)
        and are_ranges(record["visible"], S)
        and are_cells([cell[:2] for cell in candidates], P, S)
        and all(is_number(confidence, 1) for _, _, confidence, _ in candidates)
        and all(is_whole(i) and is_number(p, 1) for i, p in likeliest)
        and are_cells(record["writes"], P, S)
        and are_cells(record["unwrites"], P, S)
        and is_number(record["ms"], MOST)
        and isinstance(record.get("answer", ""), str)
        and are_texts(record["tokens"])
    )


def listed(value) -> list:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def is_whole(value, low: int = 0, high: int = MOST) -> bool:
    return type(value) is int and low <= value <= high


def is_number(value, high: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= high


def are_cells(cells: list, start: int, end: int) -> bool:
    """Whether these are [slot, token], ascending, of slots start to end."""
    slots = [
        slot for slot, token in listed(cells) if is_whole(slot, start, end - 1) and is_whole(token)
    ]
    return len(slots) == len(cells) and all(one < two for one, two in pairwise(slots))


def are_ranges(found: list, end: int) -> bool:
    """Whether these are [from, to], ascending and apart, up to a slot."""
    bounds = [bound for start, stop in listed(found) for bound in (start, stop)]
    ascend = all(one <= two for one, two in pairwise(bounds))
    return ascend and all(is_whole(bound, 0, end) for bound in bounds)


def are_texts(tokens: dict) -> bool:
    ids = all(i.isascii() and i.isdecimal() for i in tokens)
    return ids and all(isinstance(text, str) for text in tokens.values())


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


def check_size(header: dict) -> None:
    slots = header["prompt_length"] + header["gen_length"]
    if slots > DRAWN:
        raise ValueError(f"a canvas of {slots} slots: a page draws at most {DRAWN}")


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
        traces = [read(path) for path in args.traces]
        for header, *_ in traces:
            check_size(header)
        write_page(args.out, traces)
        write(args.out, "name of the page")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except RecursionError:
        parser.error("a trace has a field that is nested too deep")


if __name__ == "__main__":
    main()
