"""The documents say what the program does: their commands run, their code runs, their links lead somewhere, their tables are derived."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest

from conftest import random_filter
from course import __main__ as course
from course import rank
from course.grade import sft_loss
from lab import bench, calibrate, command_line, contenders, filter, gallery, likelihood, trace, train
from strategies import STRATEGIES, options
from test_course import SOLUTIONS, solution
from test_goldens import BASELINES, CASES, DREAM, RELATED, SOURCES
from test_tries import first_command, page_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "course" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, line.strip())
    for page in [*PAGES, *sorted((ROOT / "course").glob("[0-9]*.py"))]
    for line in page.read_text().splitlines()
    if re.match(r" *(echo .* \| )?(python|python3) ", line)
]
TRIED = {first_command(page_of(name)) for name in STRATEGIES}  # by test_tries.py, which looks at what they say, too
ONCE = {command: (page, command) for page, command in reversed(COMMANDS) if command not in TRIED}  # several pages have the same


def strategies_table() -> str:
    """README's table, from the builders: name and page, what it is, settings with their defaults."""
    rows = ["| strategy | what it does | settings |", "|---|---|---|"]
    for name, builder in STRATEGIES.items():
        paper, what = re.fullmatch(r"(.*?): (.*)\.", command_line.summary(builder)).groups()
        settings = ", ".join(f"`{o.name}` {command_line.shown(o.default)}" for o in options(builder).values())
        rows.append(f"| [{name}](docs/{name}.md) | {paper}: {what} | {settings} |")
    return "\n".join(rows) + "\n"


def test_the_readme_has_the_table_of_the_builders():
    """Would catch a strategy, a setting or a default that the README tells otherwise. To mend it, paste what this test expects."""
    table = re.search(r"<!-- strategies: .*? -->\n(.*?)<!-- end -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table and table[1] == strategies_table()


def sources_table() -> str:
    """docs/sources.md's table, from the goldens: system, whose code, how many cases."""
    rows = ["| strategy | whose code, at which commit, which function | cases |", "|---|---|---:|"]
    for name in STRATEGIES:
        counts = Counter(PAPERS for cases in CASES.values() for case in cases if case["strategy"] == name)
        counts += Counter(case["source"] for case in RELATED + BASELINES if case["strategy"] == name)
        counts += Counter(SOURCES[case["source"]] for cases in DREAM.values() for case in cases if case["strategy"] == name)
        rows += [f"| [{name}]({name}.md) | {source} | {count} |" for source, count in counts.items()]
    return "\n".join(rows) + "\n"


PAPERS = "the paper's rules, by a slow implementation that was compared with its authors' code (below)"


def test_the_page_of_sources_says_what_is_pinned():
    """Would catch a claim that no golden stands for, and a system that is in neither list. To mend it, paste what this test expects."""
    page = (ROOT / "docs" / "sources.md").read_text()
    table = re.search(r"<!-- sources: .*? -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert table and table[1] == sources_table()
    alone = set(re.findall(r"^\* \[([\w-]+)\]", page.split("<!-- end -->")[1], re.MULTILINE))
    assert alone == {name for name in STRATEGIES if f"[{name}]" not in table[1]}


def test_every_strategy_has_a_page_that_names_its_paper():
    """Would catch a strategy without documentation."""
    for name, builder in STRATEGIES.items():
        page = " ".join((ROOT / "docs" / f"{name}.md").read_text().split())
        assert all(paper in page for paper in re.findall(r"arXiv [\d.]+\d", builder.__doc__))


def test_the_readme_has_exactly_two_set_up_commands_and_ci_runs_both():
    """Would catch a set-up that needs a third step, and a CI that tests something else than the README says."""
    setup = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(setup) == 2 and all("pip install -r requirements.txt" in line for line in setup)
    assert setup[1].endswith(".venv/bin/python -m pytest")
    for script, command in zip(("pythons", "run"), setup):
        pattern = re.search(r"grep -m 1 '(.*)' README.md", (ROOT / ".ci" / script).read_text())[1]
        assert [line for line in setup if re.search(pattern, line)] == [command]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Would catch a page that was renamed, or a heading."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        other = page.parent / file if file else page
        assert other.exists(), target
        titles = (
            [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)]
            if heading
            else []
        )
        assert not heading or heading in titles, target


def test_there_are_commands_to_run():
    """Would catch a pattern that no longer finds the commands, with which the test below passes by running nothing."""
    assert len(COMMANDS) >= 10 and len(TRIED) == len(STRATEGIES) and len(ONCE) > 100
    assert TRIED < {command for _, command in COMMANDS}


@pytest.mark.parametrize("page, command", [*reversed(ONCE.values())], ids=lambda value: value[:60])
def test_commands_in_the_documents_run(page, command, capsys, monkeypatch, tmp_path):
    """Would catch a flag that was renamed. Set-up is left to CI, and what needs 8B weights runs with the embedded model."""
    monkeypatch.chdir(tmp_path)  # where a command may leave its files
    text, _, command = command.rpartition(" | ")
    words = shlex.split(command.rpartition(" && ")[2])
    if words[1:3] == ["-m", "pytest"]:
        pytest.skip("this is it")
    if words[1:3] == ["-m", "lab.harness"]:
        return plan_decoder(harness_args(words))
    if text:
        (tmp_path / "in").write_text(shlex.split(text)[1])
        words[words.index("--prompt") + 1] = (tmp_path / "in").read_text()
    for flag in ("--model", "--adapter"):
        if flag in words and not words[words.index(flag) + 1].startswith("oracle:"):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", words[words.index(flag) + 1])
            del words[words.index(flag) : words.index(flag) + 2]
    if words[1] == "dllm.py" and "--strategy" in words and not command_line.has_weights(words[words.index("--strategy") + 1]):
        words += ["--model", str(command_line.TINY)]
        words += ["--guide", str(command_line.TINY)] if command_line.guide_for(words[words.index("--strategy") + 1]) else []
        if words[words.index("--strategy") + 1] == "learn2pd":
            words += ["--filter", random_filter(32)]
    for flag in [word for word in words if word == "--start"]:  # what an earlier command has left
        at = words.index(flag) + 1
        words[at] = re.sub("^runs/.*", str(command_line.TINY), words[at])
    words = [re.sub(r"model=runs/[\w/]+", f"model={command_line.TINY}", word) for word in words]
    if "--plot" in words:
        pytest.importorskip("matplotlib")
        words[words.index("--plot") + 1] = str(tmp_path / "plot.png")
    if "--prompts" in words:
        Path("prompts.jsonl").write_text(re.search(r'`({"id".*?})`', (ROOT / "docs" / page).read_text())[1] + "\n")
        command_line.main(words[2:])
        assert '"answer": ' in Path("answers.jsonl").read_text()
        return
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is 2 + 3?\n")))  # for a conversation
    words = [word.replace("docs/my_rule.py", f"{ROOT}/docs/my_rule.py") for word in words]
    words = [re.sub("^course/(solutions/)?(?=[0-9])", f"{SOLUTIONS}/", word) for word in words]
    if words[1] == "dllm.py":
        command_line.main(words[2:])
    elif words[2].partition(".")[0] == "course":
        return course_command(words[2:], monkeypatch)
    elif words[1:3] == ["-m", "lab.bench"]:
        small = {"oracle": ["--limit", "20"]}
        small["speed"] = ["--shapes", "tiny", "--caches", "dual", "--batch", "1", "--rounds", "1", "--dtype", "float32"]
        small["compare"] = small["delayed"] = ["--limit", "1", "--gen-length", "32", "--task", "add"]
        if words[3] in ("results", "gpu"):
            return  # which tests/test_compare.py and tests/test_gpu.py run
        if "--data" in words:
            furnish_data(words)
            small["compare"] = ["--limit", "1", "--gen-length", "32"]
        bench.main([word for word in words[3:] if word != "--compile"] + small[words[3]])
    elif words[1:3] == ["-m", "lab.likelihood"]:
        likelihood.main(words[3:])
    elif words[1:3] == ["-m", "lab.trace"]:
        for name in words[3:-2]:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "docs" / "gallery" / "llada.jsonl", name)
        trace.main(words[3:])
    elif words[1:3] == ["-m", "lab.calibrate"]:
        return calibrate.main([*words[3:], "--limit", "1", "--nodes", "2"])
    elif words[1:3] == ["-m", "lab.gallery"]:
        if gallery.BROWSER is None:
            pytest.skip("needs a chromium binary on the PATH")
        monkeypatch.setattr(gallery, "FOLDER", tmp_path / "gallery")
        gallery.main()
    else:
        assert words[1:3] == ["-m", "lab.train"], command
        asked = []
        monkeypatch.setattr(train, "carry_out", asked.append)  # which tests/test_train.py and test_filter.py run
        monkeypatch.setattr(filter, "carry_out", asked.append)
        monkeypatch.chdir(ROOT)  # where a teacher is
        train.main(words[3:])
        assert Path(asked[0].out).parts[0] == "runs" or asked[0].replace
        return
    assert capsys.readouterr().out  # a line at least: the tiny model may have nothing to say to what 8B weights are asked


def harness_args(words: list[str]) -> dict[str, str]:
    """The --model_args of a command of the adapter of lm-evaluation-harness, which need not be installed."""
    assert words[words.index("--model") + 1] == "dllm" and "--tasks" in words
    given = dict(pair.split("=", 1) for pair in words[words.index("--model_args") + 1].split(","))
    assert given.keys() <= {"decoder", "model", "adapter", "prefix", "likelihood", "samples", "stats"}
    return given


def plan_decoder(given: dict[str, str]) -> None:
    """What the adapter does before it loads a model; and with a length of their own nothing is left to the task."""
    args = Namespace(
        strategies=given["decoder"], sweep=False, eos="own", gen_length=256, model=given["model"], adapter=given.get("adapter")
    )
    (chosen,), left_out = contenders.chosen_contenders(args)
    assert not left_out and contenders.planned(args, chosen)[1].gen_length in (256, 512, 1024)


def furnish_data(words: list[str]) -> None:
    """The files that a comparison on data names: problems, shots and a check."""
    line = '{"question": "What is 2 + 3?", "answer": "2 + 3 = 5. #### 5"}\n'
    for flag, text in (("--data", line), ("--few-shot", line), ("--check", "def judge(line, text):\n    return '5' in text\n")):
        if flag in words:
            Path(words[words.index(flag) + 1].partition(":")[0]).write_text(text)


def course_command(words, monkeypatch) -> None:
    """The same of the course, whose exercises are solved: python -m course, course.grade.sft_loss."""
    # what grades in a process of its own, and what is graded, test_course.py looks at
    monkeypatch.setattr(course, "graded", lambda files: [solution(file.stem) for file in files])
    monkeypatch.setattr(rank, "ASKED", rank.ASKED | {"limit": 1})
    if words[0] == "course.grade.sft_loss":
        monkeypatch.setattr(sys, "argv", [*words[:-1], "1"])
        return sft_loss.main()
    if words[1:2] not in (["rank"], ["figures"]):
        words = [word for word in words if word not in ("--watch", "course/solutions")]
        words = [*words, *["--in"] * ("--in" not in words), str(SOLUTIONS)]
        words += ["1"] * (not any(word.isdigit() for word in words))  # all take a minute
    if words[1:] != ["rank", "--measure"]:
        assert course.main(words[1:]) == 0


BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    + re.findall(r"(?:^    (?:from|import) .*\n(?:^    .*\n|^\n)*)", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("page, block", BLOCKS, ids=lambda value: value[:30])
def test_code_in_the_documents_runs(page, block, capsys, monkeypatch):
    """Would catch an interface that has changed."""
    monkeypatch.chdir(ROOT)
    lines = block.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    known = set(STRATEGIES)
    exec("\n".join(line[indent:] for line in lines), {})
    for name in set(STRATEGIES) - known:  # a strategy of one's own
        command_line.main(["--prompt", "What is 2 + 3?", "--strategy", name, "--gen-length", "32"])
        del STRATEGIES[name]
    assert capsys.readouterr().out.strip()


def test_nothing_in_the_repository_is_a_path_of_some_machine():
    """Would catch a document or script that only works where it was written."""
    if not shutil.which("git"):
        pytest.skip("no git here")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.split():
        if (ROOT / name).suffix in (".py", ".md", ".txt", "") and (ROOT / name).is_file() and name != "LICENSE":
            assert not re.search(r"/(home|work|root)/\w", (ROOT / name).read_text(errors="replace")), name
