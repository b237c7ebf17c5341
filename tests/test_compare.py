"""Comparisons count what they say, on the same problems for all, and a page of results re-measures itself."""

import json
from collections import Counter

import pytest

from lab import bench, command_line, compare, report
from lab.tasks import TASKS
from strategies import STRATEGIES

ONE = ["--limit", "1", "--task", "add", "--gen-length", "32"]


def table(text: str, number: int = 0) -> dict[str, list[str]]:
    """The number-th table of a text: first cell -> the others."""
    lines = [block for block in text.split("\n\n") if block.startswith("|")][number].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows[:1] + rows[2:]}


def test_a_score_is_the_mean_over_problems_with_its_interval():
    """Would catch a wrong interval, means over batches instead of problems, and speed counted over padding."""
    sums = Counter(right=8, problems=10, tokens=200, forwards=100, rows=5000, seconds=4.0)
    figures = compare.figures(sums, Counter(problems=10, tokens=200, forwards=640, rows=9000, seconds=20.0))
    assert figures["accuracy"] == 0.8 and figures["forwards"] == 10 and figures["rows"] == 500
    assert figures["low"] == pytest.approx(0.490, abs=5e-4) and figures["high"] == pytest.approx(0.943, abs=5e-4)  # Wilson, 8 of 10
    assert figures["tokens_per_forward"] == 2 and figures["tokens_per_second"] == 50 and figures["speed_up"] == 5


def test_every_strategy_that_has_its_weights_is_compared():
    """Would catch a strategy that is left out. That each decodes is seen where the documents' commands run."""
    ready = [name for name in STRATEGIES if command_line.has_weights(name)]
    assert bench.command_line().parse_args(["compare"]).strategies.split(",") == ready
    assert [compare.contender(name).strategy for name in ready] == ready


def test_tasks_are_added_up_on_the_same_problems(capsys):
    """Would catch rows that are counted per batch, tasks that are not added up, and a speed-up over something else."""
    names = ["llada", "fast-dllm"]
    bench.main(
        [
            "compare",
            "--strategies",
            ",".join(names),
            "--limit",
            "2",
            "--task",
            "add,compare",
            "--gen-length",
            "32",
            "--batch-size",
            "2",
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)["figures"]
    assert set(found) == {"add", "compare", "all"} and all(list(figures) == names for figures in found.values())
    assert found["add"]["llada"]["forwards"] == 32 and found["add"]["llada"]["speed_up"] == 1 < found["all"]["fast-dllm"]["speed_up"]
    assert 32 * (32 + 64) > found["add"]["llada"]["rows"] > 32 * 32  # forwards times canvas, of a prompt of up to 64
    for name in names:
        for figure in ("accuracy", "rows", "forwards"):
            assert found["all"][name][figure] == (found["add"][name][figure] + found["compare"][name][figure]) / 2


def test_a_guided_strategy_gets_the_embedded_guide(capsys, monkeypatch):
    """Would catch a guide that the bench does not load, and one that a contender names and nobody does."""
    monkeypatch.setattr(command_line, "guide_for", lambda strategy: command_line.TINY if strategy == "guided" else None)
    bench.main(["compare", *ONE, "--strategies", "guided:top=2000"])
    assert float(table(capsys.readouterr().out)["guided:top=2000"][2]) <= 4  # forwards
    with pytest.raises(SystemExit):
        bench.main(["compare", *ONE, "--strategies", "guided:guide=weights/tiny"])
    assert "guide is 'weights/tiny', expected a value of type LLaDA" in capsys.readouterr().err


def test_a_batch_changes_no_count(capsys):
    """Would catch forwards or rows that depend on how many problems are decoded together."""
    counts = []
    for size in ("1", "4"):
        bench.main(
            ["compare", "--limit", "4", "--task", "sort", "--gen-length", "32", "--strategies", "fast-dllm,streaming", "--batch-size", size]
        )
        counts.append([[row[i] for i in (0, 2, 4)] for row in table(capsys.readouterr().out).values()])
    assert counts[0] == counts[1]


def test_a_contender_is_a_strategy_with_settings(capsys):
    """Would catch settings that are read as text, or that do not reach the decoder."""
    assert compare.contender("fast-dllm:cache=dual:threshold=none:steps=8").settings == {"cache": "dual", "threshold": None, "steps": 8}
    bench.main(["compare", *ONE, "--strategies", "llada:steps=4,llada:gen-length=64:block_length=64"])
    rows = table(capsys.readouterr().out)
    assert rows["llada:steps=4"][2] == "4.0" and rows["llada:gen-length=64:block_length=64"][2] == "64.0"


def test_a_contender_names_its_adapter(capsys, monkeypatch):
    """Would catch an adapter that two contenders of one strategy share, and `none` that means the embedded one."""
    tiny, adapted, loaded, used, answer = command_line.TINY, command_line.made_for("d2f")[1], [], [], compare.answer

    def load(source, adapter, *how):
        model = command_line.load_model(source, adapter, *how)
        loaded.append((source, adapter, model))
        return model

    monkeypatch.setattr(compare, "model_of", load)
    monkeypatch.setattr(compare, "answer", lambda model, *rest, **own: used.append(model) or answer(model, *rest, **own))
    bench.main(["compare", *ONE, "--strategies", f"d2f:adapter=none,d2f,llada:adapter={adapted}"])
    assert [each[:2] for each in loaded[:3]] == [(tiny, None), (tiny, adapted), (tiny, str(adapted))]
    assert len(used) == 3 and all(model is each[2] for model, each in zip(used, loaded))
    assert list(table(capsys.readouterr().out))[1:] == ["d2f:adapter=none", "d2f", f"llada:adapter={adapted}"]


def test_pairs_are_counted_problem_by_problem(capsys, monkeypatch):
    """Would catch sums that are subtracted, pairs across batches, and a test of one side only."""
    right = iter([True, False, False, True, True, False])  # first and second on two problems, then on one
    monkeypatch.setattr(compare, "check", lambda problem, text: next(right))
    small = ["--limit", "3", "--batch-size", "2", "--paired"]
    bench.main(["compare", *ONE, *small, "--strategies", "llada:steps=1,llada:steps=2"])
    rows = table(capsys.readouterr().out)
    assert [rows[f"llada:steps={n}"][-2:] for n in (1, 2)] == [["+0 -0", "1"], ["+1 -2", "1"]]
    assert compare.against({"gained": 1, "lost": 7})["by chance"] == "0.07"  # 2 * (1 + 8) / 256


def test_a_sweep_varies_the_main_setting_of_each(capsys):
    """Would catch a sweep that measures the same point again and again."""
    bench.main(["compare", *ONE, "--sweep", "--strategies", "llada,fast-dllm:cache=none,saber"])
    rows = table(capsys.readouterr().out)
    assert [rows[f"llada:steps={n}"][2] for n in (32, 16, 8, 4)] == ["32.0", "16.0", "8.0", "4.0"]
    thresholds = [name for name in rows if name.startswith("fast-dllm:cache=none:threshold=")]
    assert len(thresholds) == len(compare.SWEEPS["fast-dllm"][1]) and "saber" in rows
    for name, (setting, values) in compare.SWEEPS.items():
        for value in values:
            compare.contender(f"{name}:{setting}={value}")


def test_the_plot_shows_every_contender(capsys, tmp_path):
    """Would catch a plot that is not written, and one that loses a line."""
    pytest.importorskip("matplotlib")
    bench.main(["compare", *ONE, "--strategies", "llada,streaming", "--plot", str(tmp_path / "a.svg")])
    drawn = (tmp_path / "a.svg").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["a.svg"]
    assert all(f"<!-- {name} -->" in drawn for name in ("llada", "streaming", "tokens per forward"))


def test_delayed_decoding_counts_tokens_that_are_already_chosen(capsys):
    """Would catch a comparison with the wrong forward: a running total is not known at once, and nearly all of it in the last steps."""
    bench.main(["delayed", "--limit", "4", "--task", "total", "--gen-length", "64", "--batch-size", "4"])
    rows = table(capsys.readouterr().out)
    shares = [float(rows[step][1].rstrip("%")) for step in ("0%", "10%", "25%", "50%", "75%")]
    assert shares[0] + 5 < shares[-1] < 100


def test_a_page_measures_itself_anew(tmp_path):
    """Would catch a table under another table's command, text that is lost, and a command that is not run."""
    page = "Words.\n\n    python -m lab.bench a --b 'c d'\n\n<!-- measured -->\nold\n<!-- end -->\n\nMore.\n\n    python -m lab.bench e\n\n<!-- measured -->\n<!-- end -->\n"
    file = tmp_path / "page.md"
    file.write_text(page)
    report.remeasure([file], "", lambda arguments: print(arguments))
    assert file.read_text() == page.replace("old\n", "['a', '--b', 'c d']\n").replace(
        "<!-- measured -->\n<!-- end", "<!-- measured -->\n['e']\n<!-- end"
    )
    report.remeasure([file], "a --b", lambda arguments: print("new"))
    assert "new\n<!-- end -->\n\nMore" in file.read_text() and "['e']" in file.read_text()
    with pytest.raises(ValueError, match="no command with 'nothing'"):
        report.remeasure([file], "nothing", print)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--strategies", "warp"], "unknown strategy 'warp': choose one of llada"),
        (["--strategies", "llada:threshold=1"], "strategy llada has no setting threshold: that is a setting of fast-dllm"),
        (["--strategies", "fast-dllm:threshold=much"], "threshold is 'much', expected a value of type float"),
        (["--strategies", "fast-dllm:threshold"], "threshold is '', expected a value of type float"),
        (["--strategies", "greedy-oracle:tau=1"], "strategy fast-dllm has no setting tau"),
        (["--strategies", "fast-dllm:cache=triple"], "cache is 'triple', expected one of none, prefix, dual"),
        (["--strategies", "d2f:adapter"], "adapter is '', expected a folder, a Hugging Face id, or none"),
        (["--strategies", "d2f:adapter=./nowhere"], "no checkpoint at ./nowhere"),
        (["--gen-length", "33"], "gen_length 33 is not a multiple of block_length 32: the nearest is 32"),
        (["--task", "chess"], "task is 'chess', expected stories, or of one-step"),
        (["--model", "./nowhere"], "no checkpoint at ./nowhere"),
        (["--plot", "plot.exe"], "plot is 'plot.exe', expected a name that ends in .png or .svg"),
        (["--plot", "no/such/folder.png"], "expected a file in a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Would catch a traceback after minutes of measuring."""
    with pytest.raises(SystemExit) as exit:
        bench.main(["compare", *arguments])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_the_stories_are_tasks():
    """Would catch a name that no longer exists."""
    assert set(compare.STORIES) <= set(TASKS)
