"""The size of things: width of lines, length of functions, numbers of parameters, and of lines in a file; tests/ is not measured."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WIDTH, LENGTH, PARAMETERS = 100, 40, 8  # columns; lines of a function without its docstring; of a signature, without self
FILES = [file for file in ROOT.rglob("*.py") if not {"tests", "venv", ".venv"} & set(file.relative_to(ROOT).parts)]

# several systems' parts, or a search; layers of the network run in a way of their own; a pipeline with a cache of its own
LARGER = {
    "drafts": 150,
    "guides": 160,
    "prism": 177,
    "smoothing": 115,
    "sparse": 85,
    "dllm_cache": 106,  # with intervals of each layer, which mars sets
    "s2d2": 100,
    "pc": 65,
    "wedlm": 65,
    "d3llm": 70,
}
PAPERS = ("llada", "fast_dllm", "localleap", "streaming", "d2f", "ar")
# files, and the number of lines that they stay below, together
BUDGETS = {
    "the decoder, five papers and ar": (
        ["dllm.py", "checks.py", "model.py", "kernels.py", "load_weights.py", "strategies/__init__.py", *(f"strategies/{p}.py" for p in PAPERS)], 2280,
    ),
    "lab": ([str(file.relative_to(ROOT)) for file in ROOT.glob("lab/**/*.py")], 6900),
    **{
        str(file.relative_to(ROOT)): ([str(file.relative_to(ROOT))], LARGER.get(file.stem, 60))
        for file in sorted((ROOT / "strategies").glob("[a-z]*.py"))
        if file.stem not in PAPERS
    },
}  # fmt: skip


@functools.cache
def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def functions():
    """Every function of the project, by what it is called: (name, node)."""
    for file in FILES:
        for node in ast.walk(ast.parse("\n".join(lines(file)))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def length(node: ast.FunctionDef) -> int:
    """Its lines from `def` to the last, the docstring and what decorates it left out."""
    first, docstring = node.body[0], 0
    if ast.get_docstring(node) is not None:
        docstring = first.end_lineno - first.lineno + 1
    return node.end_lineno - node.lineno + 1 - docstring


def parameters(node: ast.FunctionDef) -> int:
    arguments = node.args
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg not in ("self", "cls")]
    return len(named) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def is_builder(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Call) and ast.unparse(mark.func) == "named" for mark in node.decorator_list)


def test_it_can_measure():
    """Negative control: what is measured here is found in a function that is too long, too wide and has too many parameters."""
    docstring = '"""Two\n    lines."""'
    text = f"@mark\ndef f(self, {', '.join('abcdefgh')}, *i):\n    {docstring}\n    return (\n{'        1 +' * 50}\n        1)\n"
    node = ast.parse(text).body[0]
    assert (length(node), parameters(node), is_builder(node)) == (4, 9, False)
    assert is_builder(ast.parse("@named('f')\ndef f(): pass").body[0])
    assert len(FILES) > 40 and sum(1 for _ in functions()) > 300


def test_no_line_is_wider_than_a_page():
    """Would catch a line that wraps in a browser, beside a diff or on paper."""
    wide = [f"{file.relative_to(ROOT)}:{i}" for file in FILES for i, line in enumerate(lines(file), 1) if len(line) > WIDTH]
    assert not wide


def test_no_function_is_longer_than_a_screen():
    """Would catch a function that does several things."""
    assert not [f"{name}: {length(node)} lines" for name, node in functions() if length(node) > LENGTH]


def test_no_signature_is_longer_than_a_hand_can_count_twice():
    """Would catch a function that must be told everything. Builders declare the settings, one a parameter."""
    assert not [f"{name}: {parameters(node)}" for name, node in functions() if parameters(node) > PARAMETERS and not is_builder(node)]


@pytest.mark.parametrize("what", BUDGETS)
def test_budgets_are_kept(what):
    """Would catch a part that grows where nobody looks."""
    files, budget = BUDGETS[what]
    sizes = {file: len(lines(ROOT / file)) for file in files if (ROOT / file).exists()}
    assert sum(sizes.values()) < budget, sizes
    assert not what.startswith("the decoder") or f"below {budget:,} lines" in (ROOT / "README.md").read_text()
