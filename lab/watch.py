"""Watching a decode in the terminal: `--watch` redraws the answer in place, `--explain` says in
words what each forward did.

Both write to stderr. Where that is no terminal, or one that cannot redraw, watching is a plain line
a forward. Left out on purpose: the prompt, and every row of a batch but the first.
"""

import operator
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from rich.color import Color, ColorTriplet, blend_rgb
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.style import Style
from rich.text import Text

from dllm import Canvas, Step
from lab.files import printable
from lab.trace import Recorder

# of confidence 0, 1/2 and 1: legible on black and on white, told apart by all
ORANGE, GREY, BLUE = map(ColorTriplet, (214, 135, 0), (95, 135, 135), (0, 135, 215))
MASKED, ENDED, NEWLINE, BORDER = "\u00b7", "\u220e", "\u21b5", "\u2502"
FAINT = Style(dim=True)


def watch(
    steps: Iterator[Step], s: Canvas, tokenizer, own: dict, seconds: float | None, explain: bool
) -> Iterator[Step]:
    """Pass on the steps of canvas `s`, and show what they do to the first row.

    own: the strategy's own settings
    seconds: how long each forward stays on the screen at least; None draws nothing
    """
    console, observer = Console(stderr=True), Observer(s, tokenizer, own)
    redraws = seconds is not None and console.is_interactive and console.file.isatty()
    sentences: list[str] = []
    # a screen of its own survives a change of the window's size; Live draws it four times a second
    with Live(console=console, screen=True) if redraws else nullcontext() as live:
        for step in steps:
            if observer.see(step):
                sentences += [observer.sentence()] * explain
                if live:
                    live.update(observer.picture(*sentences[-1:]), refresh=True)
                    time.sleep(seconds)
                else:
                    lines = [] if seconds is None else [observer.line()]
                    print(*sentences[-1:], *lines, sep="\n", file=sys.stderr)
            yield step
    if redraws:
        print(*sentences, sep="\n", end="\n" * explain, file=sys.stderr)
        console.print(observer.picture())


class Observer:
    """What the first row of a canvas looks like after a step, and what the step did to it."""

    def __init__(self, s: Canvas, tokenizer, own: dict):
        self.s, self.tokenizer, self.recorder = s, tokenizer, Recorder(s, tokenizer, row=0)
        threshold = own.get("threshold", own.get("skip_threshold"))
        self.threshold = threshold if own.get("factor") is None else None
        strict = "skip_threshold" in own
        self.sign, self.passes = (">", operator.gt) if strict else (">=", operator.ge)
        self.ids = self.recorder.canvas
        self.holes = self.ids.count(s.mask_id)
        self.confidence: dict[int, float] = {}  # by slot: of what was last proposed there
        self.rows, self.seconds = 0, 0.0

    def see(self, step: Step) -> bool:
        """Take in the next step; returns whether it concerns the first row."""
        if 0 not in step.window.live:
            return False
        self.record = self.recorder.forward(step)
        self.ids, self.live = self.recorder.canvas, len(step.window.live)
        self.rows, self.seconds = self.rows + step.rows, self.seconds + step.seconds
        b = step.window.live.tolist().index(0)
        commit = step.candidates[b] & step.commit[b]  # what an early end fills in is none of it
        self.committed = sorted(step.scores.confidence[b, commit].tolist())
        self.proposed = {slot: sure for slot, _, sure, _ in self.record["candidates"]}
        self.confidence |= self.proposed
        return True

    def sentence(self) -> str:
        """In words: "step 7: 5 of 12 masked >= 0.90, committed 5 (0.91 to 1.00); block 2, ..."."""
        record, committed = self.record, self.committed
        parts = [f"step {record['nfe']}: {self.passing()}", f"committed {len(committed)}"]
        if committed:
            low, high = f"{committed[0]:.2f}", f"{committed[-1]:.2f}"
            parts[-1] += f" ({low})" if low == high else f" ({low} to {high})"
        if filled := len(record["writes"]) - len(committed):
            parts.append(f"ended and filled {filled} with EOS")
        if record["unwrites"]:
            parts.append(f"took back {len(record['unwrites'])}")
        first, last = record["blocks"][0] + 1, record["blocks"][1]
        blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
        rows = self.live * self.s.passes * len(self.ids)
        return f"{', '.join(parts)}; {blocks}, rows {record['rows']} of {rows}"

    def passing(self) -> str:
        masked = f"{len(self.proposed)} masked"
        if self.threshold is None:
            return masked
        sure = sum(self.passes(c, self.threshold) for c in self.proposed.values())
        shown = f"{self.threshold:.2f}"  # 0.9 is 0.90, but 0.995 is not 0.99
        shown = shown if float(shown) == self.threshold else f"{self.threshold:g}"
        return f"{sure} of {masked} {self.sign} {shown}"

    def line(self) -> str:
        """The answer so far, on one line."""
        return f"{self.record['nfe']:4}  {''.join(self.texts())}"

    def texts(self) -> list[str]:
        """What stands in each slot of the answer; what several tokens spell, in the first one's."""
        ids, found = self.ids[self.s.prompt_length :], []
        while len(found) < len(ids):
            rest = ids[len(found) :]
            whole = (n for n in (1, 2, 3, 4) if "\ufffd" not in self.text(rest[:n]))
            n = next(whole, 1)  # tokens, of a byte at least; no character has more than 4
            found += [self.text(rest[:n])] + [""] * (n - 1)
        return found

    def text(self, ids: list[int]) -> str:
        if ids[0] in (self.s.mask_id, *self.recorder.ends):
            return MASKED if ids[0] == self.s.mask_id else ENDED
        if self.s.mask_id in ids:
            return "\ufffd"
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return printable(text.replace("\n", NEWLINE).replace("\t", " "))

    def style(self, slot: int) -> Style:
        """Colour says confidence; reversed is written now, underlined as well is taken back."""
        if slot not in self.confidence:
            return FAINT
        style = Style(color=Color.from_triplet(shade(self.confidence[slot])))
        if slot in (written for written, _ in self.record["writes"]):
            style += Style(bold=True, reverse=True)
        if slot in (taken for taken, _ in self.record["unwrites"]):
            style += Style(underline=True, reverse=True)
        return style

    def picture(self, sentence: str = "") -> "Picture":
        s, record = self.s, self.record
        rows = f"rows {record['rows']}, {self.rows} in all"
        written = f"written {self.holes - self.ids.count(s.mask_id)} of {self.holes}"
        counters = [f"forward {record['nfe']}", rows, written, f"{self.seconds:.2f} s"]
        texts = enumerate(self.texts(), start=s.prompt_length)
        cells = [(text, self.style(slot)) for slot, text in texts]
        k = s.block_length if s.block_length > 1 else len(cells)
        blocks = [Text.assemble(*cells[i : i + k]) for i in range(0, len(cells), k)]
        below = Text("   ".join(counters) + "\n" + sentence)
        below.rstrip()
        return Picture(blocks, range(*record["blocks"]), below)


@dataclass(frozen=True)
class Picture:
    """An answer to draw at whatever size the terminal has then."""

    blocks: list[Text]
    open: range  # which blocks are
    below: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Each block with its number and a border; of what is too high, where it is open."""
        margin = len(str(len(self.blocks)))
        lines, first = [], 0
        for number, block in enumerate(self.blocks):
            if number == self.open.start:
                first = len(lines)
            style = Style(bold=True) if number in self.open else FAINT
            label = str(number + 1).rjust(margin)
            for line in block.wrap(console, max(options.max_width - margin - 1, 2)):
                lines.append(Text.assemble((label + BORDER, style), line))
                label = " " * margin
        below = list(self.below.wrap(console, options.max_width))
        if options.height:
            room = max(options.height - len(below), 1)
            first = max(min(first - room // 4, len(lines) - room), 0)
            lines = lines[first : first + room]
        yield from lines + below


def shade(confidence: float) -> ColorTriplet:
    """The colour of a confidence, 0 to 1."""
    if confidence < 0.5:
        return blend_rgb(ORANGE, GREY, 2 * confidence)
    return blend_rgb(GREY, BLUE, 2 * confidence - 1)
