"""The house: arrows point one way, every system is a file that can be deleted, and nothing is loaded twice (docs/idea.md)."""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = [folder for folder in ("strategies", "lab", "course") if (ROOT / folder).is_dir()]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(file): file for file in [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]}


@functools.cache
def imports(module: str, later: bool = True) -> frozenset[str]:
    """The modules of the project that a module imports, with those that its functions import later; not what it does as a program."""
    tree = ast.parse(FILES[module].read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    found, nodes = set(), [tree]
    for node in nodes:
        inside = later or not isinstance(node, (ast.FunctionDef, ast.Lambda))
        nodes += ast.iter_child_nodes(node) if inside else []
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports name what they import in full"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in found if name in FILES)


# --- arrows


def test_imports_are_seen():
    """Negative control for the tests below: a graph without arrows has no circle."""
    assert imports("dllm") == {"checks", "compiled", "kernels", "load_weights", "model", "padding", "strategies"}
    assert {"model", "strategies", "strategies.fast_dllm", "strategies.llada"} <= imports("strategies.dkv")
    assert any(imports(module) for module in FILES if module.startswith("lab."))


def test_there_is_no_circle():
    """Would catch two modules that import each other, also where one does it in a function. That is allowed in lab/ alone: the command
    line loads the ways to ask, which take from it, when they are asked for."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module, later=layer(module) != "lab")):
                visit(other, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


def layer(module: str) -> str:
    return module.partition(".")[0]


# lab, course -> dllm -> strategies -> model, kernels; what reads its own file takes load_weights along
ALLOWED = {
    "model": {"attention"},
    "kernels": set(),
    "checkpoint": set(),
    "checks": {"model"},
    "families": {"checkpoint"},
    "load_weights": {"model", "checkpoint", "families"},
    "attention": set(),
    "padding": {"model"},
    "compiled": {"attention", "model", "kernels", "padding"},
    "strategies": {"strategies", "checks", "model", "kernels", "load_weights"},
    "dllm": {"strategies", "checks", "compiled", "load_weights", "model", "kernels", "padding"},
}


@pytest.mark.parametrize("module", [module for module in FILES if layer(module) in ALLOWED])
def test_arrows_point_one_way(module):
    """Would catch a system that imports the decoder, and a decoder that has heard of a system or of what surrounds it."""
    assert {layer(other) for other in imports(module)} <= ALLOWED[layer(module)]
    assert layer(module) == "strategies" or not any(other.startswith("strategies.") for other in imports(module))


def test_every_module_has_a_layer():
    """Would catch a new file at the top that the test above does not look at, and what is gone but for its name."""
    assert {layer(module) for module in FILES} <= {*ALLOWED, "lab", "course"}
    assert not any(module in FILES for module in ("options", "related"))


def test_tests_of_a_system_need_no_other_that_may_go():
    """Would catch a test file that fails when another system is deleted: each asks for its own, and for those that others lean on."""
    leaned_on = {other.partition(".")[2] for module in FILES if layer(module) == "strategies" for other in imports(module)}
    files = {f"test_{module.partition('.')[2]}.py" for module in FILES if module.startswith("strategies.")}
    assert {file.name for file in (ROOT / "tests" / "systems").glob("test_*.py")} == files
    for file in [*(ROOT / "tests" / "systems").glob("test_*.py"), ROOT / "tests" / "shared.py", ROOT / "tests" / "conftest.py"]:
        asked = set(re.findall(r"from strategies\.(\w+) import", file.read_text()))
        assert asked <= leaned_on | {file.stem.removeprefix("test_")}, file.name


# --- deletion


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list:
    """What without.py says, run in a copy whose dllm.py says so when its body runs."""
    copy = tmp_path_factory.mktemp("copy")
    for file in FILES.values():
        where = copy / file.relative_to(ROOT)
        where.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, where)
    for folder in ("weights", "tests/goldens"):
        (copy / folder).parent.mkdir(exist_ok=True)
        (copy / folder).symlink_to(ROOT / folder)
    main = (copy / "dllm.py").read_text()
    (copy / "dllm.py").write_text(main.replace("\nimport sys\n", '\nimport sys\n\nprint("the body of dllm.py", file=sys.stderr)\n', 1))
    command = [sys.executable, ROOT / "tests" / "without.py", copy]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def users() -> dict[str, set[str]]:
    """Which systems take a part from each file in strategies/."""
    found = defaultdict(set)
    for module in FILES:
        if module.startswith("strategies."):
            for other in imports(module) - {"strategies"}:
                if other.startswith("strategies."):
                    found[other.partition(".")[2]].add(module.partition(".")[2])
    return found


def builders(file: str) -> list[str]:
    return re.findall(r'^@named\("([\w-]+)"', (ROOT / "strategies" / f"{file}.py").read_text(), re.MULTILINE)


def test_a_system_goes_with_its_file(told):
    """Would catch anything outside its file that knows of a system: in a copy without the file the program lists the others in order,
    one of them decodes, and goldens of those that are left still come out."""
    (nothing, every, error), *rest = told[:-1]
    assert nothing is None and error is None and len(every) >= 24
    alone = [file for file, *_ in rest if not users()[file]]
    assert len(alone) >= 17
    for file, left, error in rest:
        if file in alone:
            assert error is None, f"without {file}: {error}"
            assert left == [name for name in every if name not in builders(file)]


def test_a_file_that_others_lean_on_takes_them_along(told):
    """Negative control for the test above: were deleted files still loaded, nothing would be missed. And would catch a system that takes
    others along that need nothing of it."""
    (_, every, _), *rest = told[:-1]
    for file, left, _ in rest:
        gone = {file}
        while more := {user for one in gone for user in users()[one]} - gone:
            gone |= more
        assert left == [name for name in every if not any(name in builders(one) for one in gone)], file
    assert {file: left for file, left, _ in rest}["llada"] == []


def test_the_program_runs_the_decoder_once(told):
    """Would catch a dllm.py that is loaded again as a module: two registries, two Strategy classes. Without its line for this it is."""
    assert told[-1] == [1, 2]
