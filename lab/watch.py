"""Watching a decode in the terminal: `--watch` redraws the answer in place, `--explain` says in words what each forward did.

Both write to stderr. Where that is no terminal, or one that cannot redraw, watching is a plain line a forward. Left out on purpose: the
prompt, and every row of a batch but the first.

Letters: as in dllm.py.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.style import Style
from rich.text import Text

from dllm import Canvas, Step
from lab.command_line import printable
from lab.trace import changes

ORANGE, GREY, BLUE = (
    (214, 95, 0),
    (135, 135, 135),
    (0, 135, 215),
)  # confidence 0, 1/2 and 1: legible on black and on white, told apart by all
MASKED, ENDED = "\N{MIDDLE DOT}", "\N{END OF PROOF}"
NEWLINE, BORDER = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{BOX DRAWINGS LIGHT VERTICAL}"
FAINT = Style(dim=True)


def watch(
    stream: Iterator[Step], s: Canvas, tokenizer, own: dict, seconds: float | None, explain: bool
) -> Iterator[Step]:
    """Pass on the steps of canvas `s`, and show what they do to the first row.

    own: the strategy's own settings. seconds: how long each forward stays on the screen at least; None draws nothing.
    """
    console = Console(stderr=True)
    observer = Observer(s, tokenizer, own)
    if seconds is not None and console.is_interactive and console.file.isatty():
        yield from redraw(stream, observer, console, seconds, explain)
        return
    for step in stream:
        observer.see(step)
        if explain:
            print(observer.sentence(), file=sys.stderr)
        if seconds is not None:
            print(observer.line(), file=sys.stderr)
        yield step


def redraw(
    stream: Iterator[Step], observer: "Observer", console: Console, seconds: float, explain: bool
) -> Iterator[Step]:
    """Draw on a screen of its own, which survives a change of the window's size, and leave the last picture on the usual one."""
    said = []
    with Live(console=console, screen=True) as live:  # which draws anew four times a second
        for step in stream:
            observer.see(step)
            said += [observer.sentence()] * explain
            live.update(observer.picture(*said[-1:]), refresh=True)
            time.sleep(seconds)
            yield step
    for sentence in said:
        print(sentence, file=sys.stderr)
    console.print(observer.picture())


class Observer:
    """What the first row of a canvas looks like after a step, and what the step did to it."""

    def __init__(self, s: Canvas, tokenizer, own: dict):
        self.s, self.tokenizer = s, tokenizer
        self.threshold = (
            None
            if own.get("factor") is not None
            else own.get("threshold", own.get("skip_threshold"))
        )
        self.strict = "skip_threshold" in own
        self.ids = s.x[0].tolist()
        self.holes = self.ids.count(s.mask_id)
        self.confidence: dict[
            int, float
        ] = {}  # by slot: of what was last proposed there, which is what stands there
        self.rows, self.seconds = 0, 0.0

    def see(self, step: Step) -> None:
        """Take in the next step; of one that no longer concerns the first row, only the counters."""
        before, self.ids = self.ids, step.x[0].tolist()
        self.step = step
        self.rows, self.seconds = self.rows + step.rows, self.seconds + step.seconds
        self.writes, self.unwrites = changes(before, self.ids, self.s.mask_id)
        self.proposed: dict[int, float] = {}  # the same for this step alone
        self.committed: list[
            float
        ] = []  # the confidences of what the rule wrote now; what an early end fills in is none of it
        if 0 in step.window.live:
            b = step.window.live.tolist().index(0)
            slots = step.candidates[b].nonzero()[:, 0] + step.window.start
            self.proposed = dict(
                zip(slots.tolist(), step.scores.confidence[b, step.candidates[b]].tolist())
            )
            self.committed = sorted(
                step.scores.confidence[b, step.candidates[b] & step.commit[b]].tolist()
            )
        self.confidence |= self.proposed

    def sentence(self) -> str:
        """In words: "step 7: 5 of 12 masked >= 0.90, committed 5 (0.91 to 1.00); block 2, rows 32 of 160"."""
        step, P, k = self.step, self.s.prompt_length, self.s.block_length
        committed = self.committed
        parts = [f"step {step.nfe}: {self.passing()}", f"committed {len(committed)}"]
        if committed:
            low, high = f"{committed[0]:.2f}", f"{committed[-1]:.2f}"
            parts[-1] += f" ({low})" if low == high else f" ({low} to {high})"
        if filled := len(self.writes) - len(committed):
            parts.append(f"ended and filled {filled} with EOS")
        if self.unwrites:
            parts.append(f"took back {len(self.unwrites)}")
        first, last = (step.window.start - P) // k + 1, (step.window.end - P) // k
        blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
        passes = len(step.window.live) * (2 if self.s.settings.cfg_scale else 1)
        return f"{', '.join(parts)}; {blocks}, rows {step.rows} of {passes * len(self.ids)}"

    def passing(self) -> str:
        masked = len(self.proposed)
        if self.threshold is None:
            return f"{masked} masked"
        sure = sum(
            c > self.threshold if self.strict else c >= self.threshold
            for c in self.proposed.values()
        )
        return f"{sure} of {masked} masked {'>' if self.strict else '>='} {self.threshold:.2f}"

    def line(self) -> str:
        """The answer so far, on one line."""
        return f"{self.step.nfe:4}  {''.join(self.texts())}"

    def texts(self) -> list[str]:
        """What stands in each slot of the answer. A character that several tokens spell stands in the first one's slot."""
        ids, found = self.ids[self.s.prompt_length :], []
        while len(found) < len(ids):
            at = len(found)
            spelled = ((self.text(ids[at : at + n]), n) for n in (1, 2, 3, 4))
            text, n = next(
                (pair for pair in spelled if "\ufffd" not in pair[0]),
                (self.text(ids[at : at + 1]), 1),
            )
            found += [text] + [""] * (n - 1)
        return found

    def text(self, ids: list[int]) -> str:
        if ids[0] in (self.s.mask_id, self.s.eos_id):
            return MASKED if ids[0] == self.s.mask_id else ENDED
        if self.s.mask_id in ids:
            return "\ufffd"
        return printable(
            self.tokenizer.decode(ids, skip_special_tokens=False)
            .replace("\n", NEWLINE)
            .replace("\t", " ")
        )

    def style(self, slot: int) -> Style:
        """Colour says confidence; reversed is written now, reversed and underlined is taken back now."""
        changed = slot in (written for written, _ in self.writes)
        taken = slot in (taken for taken, _ in self.unwrites)
        if slot not in self.confidence:
            return FAINT
        colour = "rgb({},{},{})".format(*shade(self.confidence[slot]))
        return Style.parse(f"{colour}{' bold reverse' * changed}{' underline reverse' * taken}")

    def picture(self, sentence: str = "") -> "Picture":
        s, step, P = self.s, self.step, self.s.prompt_length
        written = self.holes - self.ids.count(s.mask_id)
        counters = [
            f"forward {step.nfe}",
            f"rows {step.rows}, {self.rows} in all",
            f"written {written} of {self.holes}",
            f"{self.seconds:.2f} s",
        ]
        below = [[text + "   " for text in counters], [word + " " for word in sentence.split()]]
        cells = [(text, self.style(slot)) for slot, text in enumerate(self.texts(), start=P)]
        k = s.block_length if s.block_length > 1 else len(cells)
        blocks = [cells[i : i + k] for i in range(0, len(cells), k)]
        return Picture(
            blocks, range((step.window.start - P) // k, (step.window.end - 1 - P) // k + 1), below
        )


@dataclass(frozen=True)
class Picture:
    """An answer to draw at whatever size the terminal has then."""

    blocks: list[list[tuple[str, Style]]]
    open: range  # which blocks are
    below: list[list[str]]  # lines of words

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Every block with its number and a border on its left. Of what is too high, the part around the open blocks."""
        width = options.max_width
        below = [
            line
            for words in self.below
            if words
            for line in fold([(word, Style()) for word in words], width)
        ]
        lines, first = [], 0
        for number, cells in enumerate(self.blocks):
            if number == self.open.start:
                first = len(lines)
            lines += self.bordered(number, cells, width)
        if options.height:
            room = max(options.height - len(below), 1)
            first = max(min(first - room // 4, len(lines) - room), 0)
            lines = lines[first : first + room]
        yield from lines + below

    def bordered(self, number: int, cells: list[tuple[str, Style]], width: int) -> list[Text]:
        margin, style = (
            len(str(len(self.blocks))),
            Style(bold=True) if number in self.open else FAINT,
        )
        label = str(number + 1).rjust(margin)
        folded = fold(cells, max(width - margin - 1, 2))
        labels = [label] + [" " * margin] * (len(folded) - 1)
        return [
            Text.assemble((label + BORDER, style), line, no_wrap=True, overflow="crop")
            for label, line in zip(labels, folded)
        ]


def fold(cells: list[tuple[str, Style]], width: int) -> list[Text]:
    """Cells on as many lines as they take, a line at most `width` columns wide. A cell is cut only if it is wider than that."""
    lines = [Text(no_wrap=True, overflow="crop")]
    for text, style in cells:
        for piece in chop_cells(text, width) if cell_len(text) > width else [text]:
            if lines[-1].cell_len + cell_len(piece.rstrip()) > width:
                lines.append(Text(no_wrap=True, overflow="crop"))
            lines[-1].append(piece, style)
    return lines


def shade(confidence: float) -> tuple[int, ...]:
    """The colour of a confidence, 0 to 1."""
    low, high, part = (
        (ORANGE, GREY, 2 * confidence) if confidence < 0.5 else (GREY, BLUE, 2 * confidence - 1)
    )
    return tuple(round(a + (b - a) * part) for a, b in zip(low, high))
