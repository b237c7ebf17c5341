"""Do without one system after the other: `python tests/without.py COPY` in a copy of the repository, as test_layout.py makes it.

Torch is loaded once. Each file of strategies/ in turn is deleted, all modules of the project are forgotten, and it is loaded anew, as in a
fresh process. Prints a line of JSON for each: the file, what is left of STRATEGIES, and what went wrong, or null.
"""

import importlib
import io
import json
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

COPY = Path(sys.argv[1])
sys.path[0] = str(COPY)

import torch  # noqa: E402

torch.set_num_threads(1)
GOLDENS = COPY / "tests" / "goldens" / "b"
CASES = sorted(map(json.loads, (GOLDENS / "cases.jsonl").open()), key=lambda case: -case["nfe"])
SHORTEST = {case["strategy"]: case for case in CASES}.values()


def forget() -> None:
    """Leave no module of the project loaded, nor what the import system remembers of its files."""
    for name, module in list(sys.modules.items()):
        if name != "__main__" and str(getattr(module, "__file__", None)).startswith(str(COPY)):
            del sys.modules[name]
    importlib.invalidate_caches()


def listed() -> list[str]:
    """The strategies that there are once the decoder is loaded."""
    forget()
    import dllm  # noqa: F401
    from strategies import STRATEGIES

    return list(STRATEGIES)


def work(left: list[str]) -> None:
    """Decode by one of these strategies, and of each that has goldens the shortest of one folder; the help must tell of all."""
    from dllm import generate
    from load_weights import load_model

    model = load_model(GOLDENS, device="cpu")
    generate(model, [1, 2, 3], next(name for name in ("dllm-var", "credit", "saber") if name in left), gen_length=8, block_length=8)
    for case in SHORTEST:
        if case["strategy"] in left:
            result = generate(model, case["prompt"], case["strategy"], **case["settings"])
            assert result.tokens[0, : len(case["tokens"])].tolist() == case["tokens"] and result.nfe == case["nfe"], case["settings"]
    told = program("--help")
    assert all(name in told for name in left), "--help does not tell of all strategies"


def program(*flags: str) -> str:
    """What `python dllm.py` says to these flags, on stdout and stderr; but for its own body with the modules that are loaded."""
    sys.argv = ["dllm.py", *flags]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            runpy.run_path(str(COPY / "dllm.py"), run_name="__main__")
        except SystemExit as exit:
            assert not exit.code, said.getvalue()
    return said.getvalue()


def without(file: Path | None) -> tuple[list[str], str | None]:
    text, left = file.read_text() if file else "", []
    try:
        if file:
            file.unlink()
        left = listed()
        work(left)
        return left, None
    except Exception as error:
        return left, f"{type(error).__name__}: {error}"
    finally:
        if file:
            file.write_text(text)


if __name__ == "__main__":
    for file in [None, *sorted((COPY / "strategies").glob("[a-z]*.py"))]:
        left, error = without(file)
        print(json.dumps([file.stem if file else None, left, error]), flush=True)
    forget()
    ran = program("--help").count("the body of dllm.py")
    main = (COPY / "dllm.py").read_text()
    (COPY / "dllm.py").write_text(main.replace('sys.modules["dllm"] = sys.modules[__name__]', "pass"))
    forget()
    print(json.dumps([ran, program("--help").count("the body of dllm.py")]))
