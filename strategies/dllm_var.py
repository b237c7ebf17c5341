"""dLLM-Var (arXiv 2510.24605): answers of any length, on a canvas that grows block by block."""

from model import Pass
from strategies import Strategy, Sure, Window, named
from strategies.editing import edit_rule, overlapping
from strategies.fast_dllm import threshold_rule
from strategies.llada import serial


def growing(s, window: Window) -> Pass:
    """Nothing stands behind the block yet; what is before it is computed until final, and then no
    more. Beside templates it is computed anew with each block: other rows may have opened one that
    this row, given it whole, would have left out."""
    first = 0 if s.templated and window.age == 0 else window.final
    return Pass(slice(first, window.end), slice(0, window.end))


@named("dllm-var")
def dllm_var(threshold: Sure = 0.9, edit_threshold: Sure | None = None) -> Strategy:
    """dLLM-Var (arXiv 2510.24605): the canvas grows block by block until one holds an EOS; nothing
    is computed behind it.

    threshold: commit every token at least this confident
    edit_threshold: replace a token by one more confident than this, in its own block and in the
        first forward of the next; the authors' 0 takes whatever the model prefers, none edits none
    """
    if edit_threshold is None:
        return Strategy(threshold_rule(threshold), growing, serial, eos="stop")
    return Strategy(edit_rule(threshold, edit_threshold), growing, overlapping, eos="stop")
