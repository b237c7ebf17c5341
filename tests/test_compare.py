"""Comparisons count what they say, on the same problems for all, and a page of results re-measures itself."""

import json
import shutil
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from dllm import Result
from lab import bench, command_line, compare, contenders, data, figures, report
from lab.command_line import TINY, made_for
from lab.tasks import TASKS
from strategies import STRATEGIES, Share, build, named, require

ONE = ["--limit", "1", "--task", "add", "--gen-length", "32"]


def table(text: str, number: int = 0) -> dict[str, list[str]]:
    """The number-th table of a text: first cell -> the others."""
    lines = [block for block in text.split("\n\n") if block.startswith("|")][number].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows[:1] + rows[2:]}


def test_a_score_is_the_mean_over_problems_with_its_interval():
    """Would catch a wrong interval, means over batches instead of problems, and speed counted over padding."""
    sums = Counter(right=8, problems=10, tokens=200, forwards=100, rows=5000, seconds=4.0)
    found = figures.figures(sums, Counter(problems=10, tokens=200, forwards=640, rows=9000, seconds=20.0))
    assert found["accuracy"] == 0.8 and found["forwards"] == 10 and found["rows"] == 500
    assert found["low"] == pytest.approx(0.490, abs=5e-4) and found["high"] == pytest.approx(0.943, abs=5e-4)  # Wilson, 8 of 10
    nothing = Counter(problems=10, tokens=0, forwards=640, rows=9000, seconds=20.0)  # LLaDA wrote no token before an EOS
    assert "speed_up" not in figures.figures(sums, nothing)
    assert found["tokens_per_forward"] == 2 and found["tokens_per_second"] == 50 and found["speed_up"] == 5


def test_every_strategy_that_has_its_weights_is_compared():
    """Would catch a strategy that is left out. That each decodes is seen where the documents' commands run."""
    ready = [name for name in STRATEGIES if command_line.has_weights(name)]
    assert bench.command_line().parse_args(["compare"]).strategies.split(",") == ready
    assert [contenders.contender(name).strategy for name in ready] == ready


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
            assert found["all"][name][figure] == pytest.approx((found["add"][name][figure] + found["compare"][name][figure]) / 2)


def test_a_guided_strategy_gets_the_embedded_guide(capsys, monkeypatch):
    """Would catch a guide that the bench does not load, also one that a contender names, and another that is taken in its place."""
    monkeypatch.setattr(command_line, "guide_for", lambda strategy: command_line.TINY if strategy == "guided" else None)
    bench.main(["compare", *ONE, "--strategies", "guided:top=2000"])
    assert float(table(capsys.readouterr().out)["guided:top=2000"][2]) <= 4  # forwards
    bench.main(["compare", *ONE, "--strategies", f"guided:guide={TINY},guided:guide={made_for('ar')[0]}"])
    assert [row[0] for row in table(capsys.readouterr().out).values()] == ["right", "0.0%", "100.0%"]


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
    assert contenders.contender("fast-dllm:cache=dual:threshold=none:steps=8").settings == {"cache": "dual", "threshold": None, "steps": 8}
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

    monkeypatch.setattr(contenders, "model_of", load)
    monkeypatch.setattr(compare, "answer", lambda model, *rest, **own: used.append(model) or answer(model, *rest, **own))
    bench.main(["compare", *ONE, "--strategies", f"d2f:adapter=none,d2f,llada:adapter={adapted}"])
    assert [each[:2] for each in loaded[:3]] == [(tiny, None), (tiny, adapted), (tiny, str(adapted))]
    assert len(used) == 3 and all(model is each[2] for model, each in zip(used, loaded))
    assert list(table(capsys.readouterr().out))[1:] == ["d2f:adapter=none", "d2f", f"llada:adapter={adapted}"]


def test_pairs_are_counted_problem_by_problem(capsys, monkeypatch):
    """Would catch sums that are subtracted, pairs across batches, and a test of one side only."""
    right = iter([True, False, False, True, True, False])  # first and second on two problems, then on one
    monkeypatch.setattr(data, "check", lambda problem, text: next(right))
    small = ["--limit", "3", "--batch-size", "2", "--paired"]
    bench.main(["compare", *ONE, *small, "--strategies", "llada:steps=1,llada:steps=2"])
    rows = table(capsys.readouterr().out)
    assert [rows[f"llada:steps={n}"][-2:] for n in (1, 2)] == [["+0 -0", "1"], ["+1 -2", "1"]]
    assert figures.mcnemar(1, 7) == pytest.approx(0.0703, abs=1e-4)  # 2 * (1 + 8) / 256


def test_a_sweep_varies_the_main_setting_of_each(capsys):
    """Would catch a sweep that measures the same point again and again."""
    bench.main(["compare", *ONE, "--sweep", "--strategies", "llada,fast-dllm:cache=none,saber"])
    rows = table(capsys.readouterr().out)
    assert [rows[f"llada:steps={n}"][2] for n in (32, 16, 8, 4)] == ["32.0", "16.0", "8.0", "4.0"]
    thresholds = [name for name in rows if name.startswith("fast-dllm:cache=none:threshold=")]
    assert len(thresholds) == len(contenders.SWEEPS["fast-dllm"][1]) and "saber" in rows
    for name, (setting, values) in contenders.SWEEPS.items():
        for value in values:
            contenders.contender(f"{name}:{setting}={value}")


def labels(text: str, gen_length: int = 128) -> list[str]:
    return [each.label for each in contenders.sweep(contenders.contender(text), gen_length)]


def test_a_point_of_a_sweep_has_its_setting_once(capsys, tmp_path):
    """Would catch threshold=0.8:threshold=0.99, a contender that is measured twice, steps for another length, a threshold beside the
    factor that replaces it, and a rule of one's own with a setting that nobody varies."""
    assert labels("fast-dllm:threshold=0.8:cache=dual")[0] == "fast-dllm:cache=dual:threshold=0.99"
    assert labels("llada:gen-length=64") == [f"llada:gen-length=64:steps={n}" for n in (64, 32, 16, 8)]
    assert labels("fast-dllm:factor=1") == ["fast-dllm:factor=1"] and labels("saber") == ["saber"]
    assert labels("credit")[0] == "credit:threshold=0.99"
    args = bench.command_line().parse_args(["compare", "--sweep", "--strategies", "fast-dllm:threshold=0.8,fast-dllm"])
    assert [c.label for c in contenders.chosen_contenders(args)[0]] == [f"fast-dllm:threshold={t}" for t in contenders.SURE]

    @named("own.py:rule")
    def builder(least: Share = 0.5):
        """A rule of one's own."""
        return require(least < 0.99, "least", least, "below 0.99") or build("fast-dllm", threshold=least)

    assert labels("own.py:rule")[:2] == ["own.py:rule:least=0.95", "own.py:rule:least=0.9"]
    del STRATEGIES["own.py:rule"]


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
        (["--strategies", "fast-dllm:treshold=0.9"], "fast-dllm has no setting treshold; did you mean threshold?"),
        (["--strategies", "fast-dllm:gen-lenght=64"], "did you mean gen_length?"),
        (["--strategies", "local-leap"], "did you mean localleap?"),
        (["--strategie-s", "llada"], "did you mean --strategies?"),
        (["--strategies", "fast-dllm:threshold=90"], "threshold is 90.0, expected between 0 and 1, or 2 for never"),
        (["--strategies", "d2f,fast-dllm:model=./nowhere"], "no checkpoint at ./nowhere"),
        (["--eos", "never"], "argument --eos: invalid choice: 'never'"),
        (["--strategies", "fast-dllm,fast-dllm:gen-length=8192"], "together more than the model's"),
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


def test_all_are_compared_with_one_end(capsys, monkeypatch):
    """Would catch a speed-up that is padding: LLaDA filling its canvas beside another that stops at its EOS."""
    line = [
        "compare",
        "--limit",
        "1",
        "--task",
        "add",
        "--gen-length",
        "64",
        "--strategies",
        "llada:steps=4,streaming,llada:steps=4:eos=fill",
    ]
    forwards = {}
    for eos in ("stop", "own", "fill"):
        bench.main([*line, "--eos", eos])
        text = capsys.readouterr().out
        assert f"eos {eos}" in text
        forwards[eos] = [float(row[2]) for row in list(table(text).values())[1:]]
    assert forwards["stop"][0] == 2 < forwards["stop"][2] == 4  # a contender's own word counts
    assert forwards["own"] == [4, forwards["stop"][1], 4] and forwards["fill"][1] > forwards["own"][1]
    assert bench.command_line().parse_args(["compare"]).eos == "stop"


def test_a_contender_at_its_limit_is_out_and_the_rest_goes_on(capsys):
    """Would catch a traceback that costs the others their figures, and figures over fewer problems than theirs."""
    line = ["compare", "--limit", "3", "--task", "add,compare", "--gen-length", "32"]
    bench.main([*line, "--strategies", "fast-dllm:threshold=2:steps=3,streaming"])
    text = capsys.readouterr().out
    rows = table(text)
    assert rows["fast-dllm:threshold=2:steps=3"] == ["none", *[""] * 7] and rows["streaming"][2] != ""
    assert "fast-dllm:threshold=2:steps=3: steps=3 forwards are spent, " in text and list(table(text, 1)) == ["right", "streaming"]
    bench.main([*line, "--strategies", "fast-dllm:threshold=2:steps=3,streaming", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["without"]) == ["fast-dllm:threshold=2:steps=3"] and list(found["figures"]["all"]) == ["streaming"]
    with pytest.raises(SystemExit) as exit:
        bench.main([*line, "--strategies", "fast-dllm:threshold=2:steps=3"])
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and "steps=3 forwards are spent" in err


def stop_at(monkeypatch, module, name: str, number: int) -> None:
    """Press Ctrl-C in the number-th call of this function."""
    calls, real = [], getattr(module, name)

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, call)


def test_ctrl_c_shows_what_was_done(capsys, monkeypatch, tmp_path):
    """Would catch a traceback, hours that are lost, a contender with one problem more than the others, and a plot of half a comparison."""
    stop_at(monkeypatch, compare, "answer", 4)
    line = ["compare", "--task", "add", "--limit", "9", "--gen-length", "32", "--strategies", "streaming,llada:steps=4"]
    with pytest.raises(SystemExit) as exit:
        bench.main([*line, "--json", "--plot", str(tmp_path / "half.svg")] if find_spec("matplotlib") else [*line, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert list(tmp_path.iterdir()) == []
    assert exit.value.code == 130 and "Traceback" not in err and found["stopped"] and err.endswith("done till then\n")
    assert {f["accuracy"] for f in found["figures"]["all"].values()} <= {0.0, 1.0}  # of one problem each
    stop_at(monkeypatch, compare, "answer", 1)
    with pytest.raises(SystemExit) as exit:
        bench.main(line)
    assert exit.value.code == 130 and capsys.readouterr().out == ""


def test_a_long_comparison_says_how_it_stands(capsys, monkeypatch):
    """Would catch a quarter of an hour without a word."""
    monkeypatch.setattr(compare, "SHOWN_EVERY", 2)
    line = ["compare", "--task", "add", "--limit", "2", "--gen-length", "32", "--strategies", "streaming,llada:steps=4"]
    bench.main(line)
    out, err = capsys.readouterr()
    assert err.count("So far:") == 2 and "So far" not in out and "| streaming " in err


@pytest.mark.parametrize(
    "contender, message",
    [
        ("learn2pd", "learn2pd: its filter of weights/ was made for another model"),
        ("spiffy", "spiffy: its graph of weights/"),
        ("guided", "guided: its guide of weights/"),
        ("ar", "ar needs a model trained for it, which --model is for the others: give ar:model=FOLDER"),
        ("d2f", "d2f: its adapter of weights/ was made for another model than {own}: give d2f:adapter=FILE, or adapter=none"),
        ("learn2pd:model={own}", "learn2pd:model={own}: its filter of weights/ was made for another model than {own}"),
    ],
)
def test_what_belongs_to_the_embedded_model_judges_no_other(capsys, tmp_path, contender, message):
    """Would catch a model of one's own compared with the embedded model's filter, graph or guide, and a masked model that is asked for the
    next token, which gets 0 %."""
    own = shutil.copytree(TINY, tmp_path / "own")
    model = [] if "model=" in contender else ["--model", str(own)]
    with pytest.raises(SystemExit) as exit:
        bench.main(["compare", *ONE, *model, "--strategies", contender.format(own=own)])
    out, err = capsys.readouterr()
    assert (exit.value.code, out, err.count("\n")) == (2, "", 1) and message.format(own=own) in err
    named = {
        "d2f": "d2f:adapter=none",
        "learn2pd": f"learn2pd:filter={TINY.with_name('tiny-filter.safetensors')}",
        "ar": f"ar:model={TINY.with_name('tiny-ar')}",
    }
    if contender in named:
        bench.main(["compare", *ONE, "--model", str(own), "--strategies", named[contender]])
        assert table(capsys.readouterr().out)[named[contender]][0] == "100.0%"


def test_by_default_a_model_of_ones_own_meets_those_that_need_no_more(capsys, tmp_path):
    """Would catch a default comparison that stops at the first strategy that needs a guide, and one that leaves it out without a word."""
    own = shutil.copytree(TINY, tmp_path / "own")
    args = bench.command_line().parse_args(["compare", "--model", str(own)])
    chosen, left_out = contenders.chosen_contenders(args)
    need = {"ar", "apd", "card", "d2f", "fast-dllm-v2", "guided", "learn2pd", "nbdiff", "pc", "rcd", "s2d2", "spiffy", "wedlm"}
    assert need & set(STRATEGIES) == set(left_out)
    assert [c.label for c in chosen] == [name for name in STRATEGIES if name not in left_out]
    args = bench.command_line().parse_args(["compare", "--model", str(TINY)])
    assert contenders.chosen_contenders(args)[1] == {}


def test_the_stories_are_tasks():
    """Would catch a name that no longer exists."""
    assert set(data.STORIES) <= set(TASKS)


def share(capsys, size: float, strategies: str, *more: str) -> list[str]:
    bench.main(["compare", *ONE, "--limit", "4", "--fragile", str(size), "--strategies", strategies, *more])
    rows = list(table(capsys.readouterr().out).values())
    return [row[rows[0].index("fragile")] for row in rows[1:]]


def test_a_gap_is_to_the_highest_other_logit():
    """Would catch a gap between the two highest where another token is written, and one to the token itself."""
    logits = torch.tensor([[1.0, 3.0, 2.5, -torch.inf]]).expand(4, 4)
    assert compare.gap(logits, torch.arange(4)).tolist() == [2.0, 0.5, 0.5, torch.inf]


def test_what_is_fragile_is_counted_in_the_answer(monkeypatch):
    """Would catch a bound of SIZE instead of twice that, what stands behind the EOS, rows or cells that are mixed up, and a token
    taken back whose first writing still counts."""
    near = {(0, 0): 0.5, (0, 2): 0.7, (0, 3): 0.1, (1, 1): 0.3}  # (row, cell) -> gap; row 0 ends at cell 3
    logits = torch.zeros(2, 4, 3)
    logits[..., 1] = 9.0
    for place, value in near.items():
        logits[place][1] = value
    one = torch.ones(2, 4, dtype=torch.long)
    sure = logits[1:].clone()
    sure[..., 1] = 9.0
    steps = [step(logits, one, [0, 1]), step(logits[1:], 0 * one[1:] + 2, [1]), step(sure, one[1:], [1])]  # 2 is the mask
    canvas = SimpleNamespace(x=torch.zeros(2, 6), strategy=SimpleNamespace(search=None))
    monkeypatch.setattr(compare, "prepare", lambda *rest: canvas)
    monkeypatch.setattr(compare, "stream", lambda canvas: iter(steps))
    result = Result(canvas.x, canvas.x, [3, 4], 2, [1, 2], 8, 1.0, 2)
    monkeypatch.setattr(compare, "finish", lambda canvas, passing: list(passing) and result)
    counts = {size: compare.noted(size, None, [], "").fragile for size in (0, 0.2, 0.25, 0.3, 0.4, 1e9)}
    assert counts == {0: [0, 0], 0.2: [0, 0], 0.25: [0, 0], 0.3: [1, 0], 0.4: [2, 0], 1e9: [3, 4]}


def step(logits, token, live: list[int]) -> SimpleNamespace:
    window = SimpleNamespace(live=torch.tensor(live), start=2)
    return SimpleNamespace(commit=torch.ones_like(token, dtype=torch.bool), token=token, window=window, logits=logits)


def test_nothing_is_fragile_without_noise_and_everything_under_much(capsys):
    """Negative controls, of rules that take back, draft and share out, too. Would catch a forward whose writing is not seen."""
    names = "fast-dllm,wino:block_length=32,p2:steps=16,localleap,ar"
    assert share(capsys, 0, names) == ["0.00%"] * 5
    assert share(capsys, 1e6, names, "--batch-size", "4") == ["100.00%"] * 5


def test_looking_at_what_is_fragile_changes_no_other_figure(capsys):
    """Would catch a decode that is another one when it is looked at."""
    found = []
    for more in ([], ["--fragile", "0.3"]):
        bench.main(["compare", *ONE, "--limit", "4", "--strategies", "fast-dllm,eb", "--json", *more])
        figures = json.loads(capsys.readouterr().out)["figures"]["all"]
        found.append([{k: v for k, v in f.items() if k not in ("fragile", "tokens_per_second", "speed_up")} for f in figures.values()])
    assert found[0] == found[1]


def test_a_file_of_answers_is_of_one_size_of_noise(capsys, tmp_path):
    """Would catch counts of one size that are shown as those of another, and counts that a file does not give back."""
    file = ["--out", str(tmp_path / "out.jsonl")]
    assert share(capsys, 1e6, "fast-dllm", *file) == share(capsys, 1e6, "fast-dllm", *file) == ["100.00%"]
    with pytest.raises(SystemExit) as stop:
        share(capsys, 0, "fast-dllm", *file)
    assert stop.value.code == 2 and "was begun with noise 1000000.0, this is 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["-1", "-0.1", "nan", "inf", "1e999", "much", ""])
def test_a_size_of_noise_is_a_number(capsys, monkeypatch, size):
    """Would catch a share of all or nothing where the size is none, and work before it is looked at."""
    monkeypatch.setattr(bench, "compare", None)
    with pytest.raises(SystemExit) as stop:
        bench.main(["compare", f"--fragile={size}"])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not printed.out and printed.err.count("\n") == 1
    assert f"--fragile: {size!r} is not a finite number of at least 0" in printed.err


def test_what_is_fragile_cannot_be_said_of_every_contender(capsys):
    """Would catch a figure of zero where none was counted."""
    with pytest.raises(SystemExit) as stop:
        share(capsys, 0.3, "greedy-oracle")
    assert stop.value.code == 2 and "--fragile has no meaning for greedy-oracle" in capsys.readouterr().err
    assert share(capsys, 0.3, "fast-dllm,prism")[1] == ""
