"""A decode as a file: `--trace run.jsonl` records every forward, `--trace run.html` makes a page of it, and this makes a page of one or two:

    python -m lab.trace run.jsonl other.jsonl --out page.html

docs/trace.md describes the format, docs/viewer.html is the page. Left out on purpose: which query sees which slot (a block-causal view
records the slots that any query sees), and the bytes of a token that is only part of a character.

Letters: as in dllm.py.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dllm import Canvas, Step, traits
from lab.command_line import Parser

FORMAT, VERSION = "dllm-trace", 1
TOP = 5  # how many of the likeliest tokens a candidate is recorded with
VIEWER = Path(__file__).parent.parent / "docs" / "viewer.html"
EMPTY = '<script type="application/json" id="traces">[]</script>'  # where the viewer takes its traces from

# --- writing ---------------------------------------------------------------------------------------------------------------------------


def trace(
    stream: Iterator[Step],
    s: Canvas,
    tokenizer,
    path: str,
    strategy: str = "",
    own: dict | None = None,
    row: int = 0,
) -> Iterator[Step]:
    """Pass on the steps of canvas `s` and record what they do to one row of the batch, in a file whose suffix says how.

    .jsonl is written as it goes, a record a line: of a run that is killed whole lines are left. .html is written when the run is done.
    strategy, own: its name and its own settings, for the record. Raises OSError if the file cannot be written.
    """
    recorder = Recorder(s, tokenizer, row)
    try:
        with writer(path) as write:
            write(recorder.header(strategy, own or {}))
            for step in stream:
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
    with open(path, "wb", buffering=2**20) as file:  # a line leaves the buffer in one piece

        def write(record: dict) -> None:
            file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            file.flush()

        yield write


def check_path(path: str) -> None:
    """Raise ValueError, naming the flag, if no trace can be written there; nothing is created."""
    folder = Path(path).parent
    if not path.endswith((".jsonl", ".html")):
        raise ValueError(f"--trace {path}: expected a name that ends in .jsonl or .html")
    if not folder.is_dir() or Path(path).is_dir():
        raise ValueError(
            f"--trace {path}: "
            + ("that is a folder" if folder.is_dir() else f"there is no folder {folder}")
        )
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise ValueError(f"--trace {path}: no permission to write there")


class Recorder:
    """Makes the records of one row of a canvas: what each forward saw, and how it changed the canvas."""

    def __init__(self, s: Canvas, tokenizer, row: int):
        self.s, self.tokenizer, self.row = s, tokenizer, row
        self.canvas = s.x[row].tolist()  # as the last record left it
        self.told: set[int] = set()  # the ids whose text has been recorded

    def header(self, strategy: str, own: dict) -> dict:
        s = self.s
        prompt, answer = self.canvas[: s.prompt_length], self.canvas[s.prompt_length :]
        given = [
            [slot, token]
            for slot, token in enumerate(answer, start=s.prompt_length)
            if token != s.mask_id
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "strategy": {"name": strategy, "settings": own, "exact": traits(s.strategy.view).exact},
            "settings": asdict(s.settings) | {"eos": s.eos},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "model": {
                "device": str(s.model.device),
                "dtype": str(s.model.dtype).removeprefix("torch."),
            },
            "special": {"mask": s.mask_id, "eos": s.eos_id},
            "prompt": prompt,
            "given": given,
            "padding": s.start[self.row].item(),
            "prompt_length": s.prompt_length,
            "gen_length": s.settings.gen_length,
            "block_length": s.block_length,
            "tokens": self.texts([*prompt, s.mask_id, s.eos_id, *(token for _, token in given)]),
        }

    def forward(self, step: Step) -> dict:
        window, at, k, P = step.window, step.at, self.s.block_length, self.s.prompt_length
        before, self.canvas = self.canvas, step.x[self.row].tolist()
        writes, unwrites = changes(before, self.canvas, self.s.mask_id)
        candidates = self.candidates(step)
        line = window.live.tolist().index(self.row)
        query = at.query if at.own is None else at.query[at.own[line]]
        visible = at.query if at.visible is None else at.visible
        if (
            isinstance(visible, Tensor) and visible.dim() == 3
        ):  # of each layer and row: what some layer sees
            visible = visible[:, line].unique()
        return {
            "nfe": step.nfe,
            "window": [window.start, window.end],
            "blocks": [(window.start - P) // k, (window.end - P) // k],
            "query": ranges(query),
            "visible": ranges(visible),
            "candidates": candidates,
            "writes": writes,
            "unwrites": unwrites,
            "rows": step.rows,
            "ms": rounded(step.seconds * 1000, 6),
            "tokens": self.texts(
                [i for _, _, _, top in candidates for i, _ in top]
                + [c[1] for c in candidates + writes + unwrites]
            ),
        }

    def candidates(self, step: Step) -> list[list]:
        """[slot, token, confidence, [[id, probability], ...]] for each cell that could be written."""
        b = step.window.live.tolist().index(self.row)
        cells = step.candidates[b].nonzero()[:, 0]  # offsets into the window
        logits = step.logits[b, cells].float()  # [cells, V]
        top = logits.softmax(-1).topk(min(TOP, logits.shape[-1]))
        columns = (
            cells + step.window.start,
            step.scores.token[b, cells],
            step.scores.confidence[b, cells],
            top.indices,
            top.values,
        )
        return [
            [
                slot,
                token,
                rounded(confidence, 9),
                [[i, rounded(p, 4)] for i, p in zip(ids, probabilities) if p > 0],
            ]
            for slot, token, confidence, ids, probabilities in zip(
                *(column.tolist() for column in columns)
            )
        ]

    def texts(self, ids: list[int]) -> dict[str, str]:
        """The texts of those ids that no record has told yet."""
        new = [i for i in dict.fromkeys(ids) if i not in self.told]
        self.told.update(new)
        return {str(i): self.tokenizer.decode([i], skip_special_tokens=False) for i in new}


def changes(before: list[int], after: list[int], mask_id: int) -> tuple[list, list]:
    """What a forward did to a canvas, as [slot, token after it]: to slots that were masks, and to slots that held a token already."""
    changed = [
        (old, [slot, new]) for slot, (old, new) in enumerate(zip(before, after)) if old != new
    ]
    return [write for old, write in changed if old == mask_id], [
        write for old, write in changed if old != mask_id
    ]


def ranges(slots: slice | Tensor) -> list[list[int]]:
    """Ascending slots as half-open ranges: 0 1 2 7 is [[0, 3], [7, 8]]."""
    if isinstance(slots, slice):
        return [[slots.start, slots.stop]]
    found: list[list[int]] = []
    for slot in slots.tolist():
        if found and found[-1][1] == slot:
            found[-1][1] = slot + 1
        else:
            found.append([slot, slot + 1])
    return found


def rounded(value: float, digits: int) -> float:
    """To so many significant digits; 9 keep a float32 exactly."""
    return float(f"{value:.{digits}g}")


# --- reading ---------------------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[dict]:
    """The records of a trace, the header first. Raises ValueError, naming the file and the line, if it is none or is damaged."""
    try:
        lines = Path(path).read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{path} is no trace: it is not text") from None
    header, *forwards = map(parsed, lines)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no trace: its first line is not the header of one")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} is a trace of version {header.get('version')}: expected version {VERSION}"
        )
    whole = [
        whole_header(header),
        *(whole_header(header) and whole_forward(record, header) for record in forwards),
    ]
    if not all(whole):
        raise ValueError(f"{path} is damaged: line {whole.index(False) + 1} is not a whole record")
    return [header, *forwards]


def parsed(line: str) -> dict:
    """The object on a line; an empty one, which is no record, if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def whole_header(record: dict) -> bool:
    """Whether a header has every field that the viewer and `replay` read, and sound ones."""
    try:
        lengths = [record[name] for name in ("prompt_length", "gen_length", "block_length")]
        texts = [*record["tokens"].values(), record["strategy"]["name"]]
        given = record.get("given", [])
        ids = [
            *record["prompt"],
            record["special"]["mask"],
            record["special"]["eos"],
            record["padding"],
            *map(int, record["tokens"]),
            *(n for pair in given for n in pair),
        ]
        objects = [
            record["strategy"]["settings"],
            record["settings"],
            record["versions"],
            record["model"],
        ]
        return (
            all(type(n) is int and n >= 0 for n in lengths + ids)
            and len(record["prompt"]) == lengths[0]
            and min(lengths[1:]) >= 1
            and all(
                len(pair) == 2 and lengths[0] <= pair[0] < lengths[0] + lengths[1] for pair in given
            )
            and all(type(text) is str for text in texts)
            and all(type(each) is dict for each in objects)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def whole_forward(record: dict, header: dict) -> bool:
    """The same of the record of a forward: no slot or range of it lies beyond the canvas."""
    S = header["prompt_length"] + header["gen_length"]
    try:
        spans = [record["window"], *record["query"], *record["visible"]]
        cells = [
            *record["writes"],
            *record["unwrites"],
            *([slot, token] for slot, token, _, _ in record["candidates"]),
        ]
        top = [
            [i, p]
            for candidate in record["candidates"]
            for i, p in [[candidate[1], candidate[2]], *candidate[3]]
        ]
        return (
            all(0 <= start <= end <= S for start, end in spans + [record["blocks"]])
            and all(
                type(slot) is type(token) is int and 0 <= slot < S and token >= 0
                for slot, token in cells
            )
            and all(type(i) is int and 0 <= p <= 1 for i, p in top)
            and all(type(text) is str and int(i) >= 0 for i, text in record["tokens"].items())
            and record["nfe"] >= 1
            and record["rows"] >= 0
            and record["ms"] >= 0
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


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


# --- the page --------------------------------------------------------------------------------------------------------------------------


def write_page(path: str, traces: list[list[dict]]) -> None:
    """Put traces into a copy of the viewer: a page that needs nothing else. Written to a temporary name, then renamed."""
    data = json.dumps(traces, separators=(",", ":")).replace(
        "<", "\\u003c"
    )  # nothing in it can end the script element
    page = VIEWER.read_text(encoding="utf-8").replace(EMPTY, EMPTY.replace("[]", data))
    temporary = path + ".part"
    try:
        Path(temporary).write_text(page, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def main(arguments: list[str] | None = None) -> None:
    """Make a page of one or two traces; exit code 2 for anything wrong with them."""
    parser = Parser(
        prog="lab.trace",
        description="Make a page of one or two traces, to look at in a browser.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "traces",
        nargs="+",
        metavar="RUN.jsonl",
        help="what --trace has recorded; a second is shown beside the first",
    )
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
