"""Traces: they replay to the run they recorded, survive a kill, and refuse what they cannot read or write before any work."""

import copy
import dataclasses
import json
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dllm
import program
from conftest import EOS, MASK, random_filter, random_model, random_prompt
from lab import command_line
from lab import trace as traces
from shared import DRAFTING, GUIDED, LENGTHS, REVISING, SEARCHING, one_canvas, seeds
from strategies import STRATEGIES, options
from test_command_line import SHORT, run


class Letters:
    """A tokenizer for the random models: as far as a trace is concerned, ids are texts."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(f"<{i}>" for i in ids)


def model_with_ends(*ids: int):
    """A random model with further end tokens."""
    model = copy.copy(random_model(0))
    model.config = dataclasses.replace(model.config, end_token_ids=ids)
    return model


def recorded(stream, canvas, path, row=0) -> list[dict]:
    """Drain the steps through a trace, and read it back."""
    for _ in traces.trace(stream, canvas, Letters(), str(path), "a name", {"threshold": 0.5}, row):
        pass
    return traces.read(path)


@given(seeds, one_canvas, st.sampled_from([None, "stop", "defer"]), st.sampled_from([0.0, 0.8]), st.integers(0, 1))
def test_a_trace_replays_to_the_tokens_of_the_run(tmp_path_factory, seed, case, eos, temperature, row):
    """Would catch a write that is missing from the record (an EOS that fills the rest), a wrong slot, and a trace that changes the run."""
    strategy, settings = case
    settings = LENGTHS | {"eos": eos, "temperature": temperature} | settings
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    canvas = dllm.prepare(random_model(seed), prompts, strategy, settings)
    plain = dllm.generate(random_model(seed), prompts, strategy, **settings)
    path = tmp_path_factory.mktemp("traces") / "run.jsonl"
    result = dllm.finish(canvas, traces.trace(dllm.stream(canvas), canvas, Letters(), str(path), strategy, row=row))
    records = traces.read(path)
    assert result.tokens.equal(plain.tokens) and (result.nfe, result.rows, result.forwards) == (plain.nfe, plain.rows, plain.forwards)
    assert list(traces.replay(records))[-1] == plain.tokens[row].tolist()
    assert records[0]["padding"] == (3 if row else 0) and (strategy in REVISING or not any(r["unwrites"] for r in records[1:]))
    assert (strategy in DRAFTING or len(records) - 1 <= plain.nfe) and records[-1]["nfe"] <= plain.nfe


@given(seeds, one_canvas)
def test_a_record_says_what_the_step_said(tmp_path_factory, seed, case):
    """Would catch a record whose rows, ranges, candidates, confidences or likeliest tokens are those of another step or slot."""
    strategy, settings = case
    path = tmp_path_factory.mktemp("traces") / "run.jsonl"
    canvas = dllm.prepare(random_model(seed), random_prompt(seed, 7), strategy, LENGTHS | settings)
    told: dict[str, str] = {}
    for step in traces.trace(dllm.stream(canvas), canvas, Letters(), str(path), strategy):
        header, *_, record = map(json.loads, path.read_text().splitlines())
        told |= header["tokens"] | record["tokens"]
        queried = dllm.LLaDA.indices(canvas.model, step.at.query).tolist()
        assert (record["nfe"], record["rows"]) == (step.nfe, step.rows)
        assert step.rows % len(queried) == 0 or step.at.cost is not None or strategy in GUIDED
        assert [i for start, end in record["query"] for i in range(start, end)] == queried
        assert record["window"] == [step.window.start, step.window.end]
        assert [c[0] - step.window.start for c in record["candidates"]] == step.candidates[0].nonzero()[:, 0].tolist()
        for slot, token, confidence, top in record["candidates"]:
            at = slot - step.window.start
            assert (token, confidence) == (step.scores.token[0, at].item(), pytest.approx(step.scores.confidence[0, at].item(), rel=1e-8))
            probabilities = step.logits[0, at].softmax(-1)
            assert [p for _, p in top] == pytest.approx(probabilities.sort(descending=True).values[: len(top)].tolist(), rel=1e-3)
            assert all(probabilities[i].item() == pytest.approx(p, rel=1e-3) for i, p in top) and MASK not in [i for i, _ in top]
            assert {str(i) for i, _ in top} | {str(token)} <= set(told)
        assert {slot for slot, _ in record["writes"] + record["unwrites"]} >= {
            c + step.window.start for c in step.commit[0].nonzero()[:, 0].tolist()
        }


def take_back(canvas, seed: int):
    """The steps of a canvas, behind each of which a token of the answer may be masked again, or changed: what no strategy does yet."""
    generator = torch.Generator().manual_seed(seed)
    for step in dllm.stream(canvas):
        written = (step.x[0, canvas.prompt_length :] != MASK).nonzero()[:, 0] + canvas.prompt_length
        slot = written[torch.randint(len(written), (), generator=generator)]
        other = torch.randint(EOS, (), generator=generator)
        changed = step.x.clone()
        changed[0, slot] = MASK if step.nfe % 2 else other
        yield dataclasses.replace(step, x=changed)


@given(seeds)
def test_what_is_taken_back_is_on_the_record(tmp_path_factory, seed):
    """Would catch a writer that trusts `commit`: a later strategy takes tokens back, and the trace must still replay to the run."""
    canvas = dllm.prepare(random_model(seed), random_prompt(seed, 7), "fast-dllm", LENGTHS | {"threshold": 0.5})
    seen = []

    def watched():
        for step in take_back(canvas, seed):
            seen.append(step.x[0].tolist())
            yield step

    records = recorded(watched(), canvas, tmp_path_factory.mktemp("traces") / "run.jsonl")
    assert list(traces.replay(records)) == seen
    assert any(token == MASK for record in records for _, token in record.get("unwrites", []))


def test_changes_tell_a_mask_from_a_token():
    """Would catch a token that is masked again and counts as written."""
    assert traces.changes([1, 0, 0, 4, 5], [1, 2, 0, 0, 6], mask_id=0) == ([[1, 2]], [[3, 0], [4, 6]])


def test_ranges_are_half_open_and_joined():
    """Would catch an end that is off by one, and a view with a hole (Streaming-dLLM's last slot)."""
    assert traces.ranges(slice(3, 7)) == [[3, 7]]
    assert traces.ranges(torch.tensor([0, 1, 2, 7])) == [[0, 3], [7, 8]]


def test_the_header_says_what_was_run(saved, capsys, tmp_path):
    """Would catch a trace that nobody can repeat: a default that is not told, a version, a special token."""
    path = tmp_path / "run.jsonl"
    out, _, code = run(capsys, "--model", saved, "--prompt", "hello", "--threshold", "0.4", "--trace", path, *SHORT)
    header, *forwards = traces.read(path)
    assert code == 0 and header["strategy"] == {
        "name": "fast-dllm",
        "settings": {"cache": "prefix", "threshold": 0.4, "factor": None, "prefix_look": None, "after_look": None},
        "exact": False,
    }
    assert header["settings"]["gen_length"] == 16 and header["settings"]["eos"] == "fill"
    assert header["special"] == {"mask": 39, "eos": 38, "ends": [38]} and header["question"] == "hello"
    assert forwards[-1]["answer"] + "\n" == out and not any("answer" in record for record in forwards[:-1])
    assert set(header["settings"]) == set(options(dllm.Settings)) and header["versions"]["torch"] == torch.__version__
    assert "".join(header["tokens"][str(i)] for i in header["prompt"]) == "hello? "
    assert len(forwards) <= 16 and all(record["ms"] > 0 for record in forwards)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in SEARCHING])
def test_looking_changes_no_token_and_no_counter(saved, capsys, tmp_path, strategy):
    """Would catch a flag that costs a forward, a draw of the generator, or a word on stdout."""
    lengths = (
        ["--gen-length", 16]
        + ["--block-length", 8] * (strategy not in ("ar", "prophet", "wedlm", *GUIDED))
        + ["--guide", saved] * (strategy in GUIDED)
    )
    own = {"learn2pd": ["--filter", random_filter(8)], "prophet": ["--inner", 8]}.get(strategy, [])
    command = ["--model", saved, "--prompt", "hello", "--strategy", strategy, *own, "--temperature", 0.7, "--json", *lengths]
    plain = run(capsys, *command)
    for flags in (["--trace", tmp_path / "run.jsonl", "--explain"], ["--trace", tmp_path / "run.html", "--watch", 0]):
        out, err, code = run(capsys, *command, *flags)
        one, two = (json.loads(text.splitlines()[-1]) for text in (plain[1], err))
        timed = {"seconds", "tokens_per_second", "peak_memory_mb"}
        assert (out, code) == (plain[0], 0) and {k: one[k] for k in set(one) - timed} == {k: two[k] for k in set(two) - timed}


def test_the_time_of_looking_is_not_the_time_of_decoding():
    """Would catch a tokens per second that falls because somebody watches."""

    def slow(stream):
        for step in stream:
            time.sleep(0.05)
            yield step

    canvas = dllm.prepare(random_model(0), [1, 2, 3], "llada", {"gen_length": 8, "block_length": 8})
    assert dllm.finish(canvas, slow(dllm.stream(canvas))).seconds < 0.05 * 8


def test_a_killed_run_leaves_whole_lines(saved, tmp_path):
    """Would catch a buffer: what was decoded before a kill must be on disk, whole, and readable as a trace."""
    path = tmp_path / "run.jsonl"
    code = """if True:
        import os, signal
        from lab import command_line
        def step_and_die(steps):
            for step in steps:
                yield step
                if step.nfe == 5: os.kill(os.getpid(), signal.SIGKILL)
        stream = command_line.stream
        command_line.stream = lambda canvas: step_and_die(stream(canvas))"""
    killed = program.run(["--model", saved, "--prompt", "hello", "--strategy", "llada", "--trace", path, *SHORT], code)
    assert killed == -signal.SIGKILL
    assert path.read_bytes().endswith(b"\n") and len(traces.read(path)) == 1 + 5


def test_a_page_appears_only_when_it_is_whole(saved, tmp_path, capsys):
    """Would catch half a page after an interrupted run, and a temporary file that stays."""
    canvas = dllm.prepare(random_model(0), [1, 2, 3], "llada", LENGTHS)
    stream = traces.trace(dllm.stream(canvas), canvas, Letters(), str(tmp_path / "run.html"))
    next(stream)
    stream.close()
    assert list(tmp_path.iterdir()) == []
    assert run(capsys, "--model", saved, "--prompt", "hello", "--trace", tmp_path / "run.html", *SHORT)[2] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["run.html"]


@pytest.mark.parametrize(
    "path, message",
    [
        ("run.txt", "expected a name that ends in .jsonl or .html"),
        ("nowhere/run.jsonl", "there is no folder"),
        ("folder.jsonl", "that is a folder"),
    ],
)
def test_a_trace_that_cannot_be_written_is_refused_before_any_work(saved, tmp_path, capsys, monkeypatch, path, message):
    """Would catch minutes of decoding that end in nothing, and a model that is loaded for it."""
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.setattr(command_line, "load_model", None)
    out, err, code = run(capsys, "--model", saved, "--prompt", "a", "--trace", tmp_path / path)
    assert (out, code) == ("", 2) and err.startswith("dllm.py: --trace ") and err.count("\n") == 1 and message in err
    assert [file.name for file in tmp_path.iterdir()] == ["folder.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(saved, tmp_path, capsys):
    """Would catch a traceback, or an answer that pretends its trace was written."""
    (tmp_path / "run.jsonl").symlink_to("/dev/full")
    out, err, code = run(capsys, "--model", saved, "--prompt", "a", "--trace", tmp_path / "run.jsonl", *SHORT)
    assert (out, code) == ("", 2)
    assert err == f"dllm.py: the trace {tmp_path / 'run.jsonl'} cannot be written: No space left on device\n"


def test_a_disk_that_gets_full_leaves_whole_lines(tmp_path):
    """Would catch half a record: the disk takes the first part of a line without a word, and refuses only the next."""
    canvas = dllm.prepare(random_model(0), [1, 2, 3], "llada", LENGTHS)
    path, seen = tmp_path / "run.jsonl", []
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
        with pytest.raises(OSError, match=f"the trace {path} cannot be written: File too large"):
            for step in traces.trace(dllm.stream(canvas), canvas, Letters(), str(path)):
                seen.append(step.nfe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes().endswith(b"}\n") and len(traces.read(path)) == 1 + len(seen) > 2


def test_a_page_for_which_there_is_no_room_leaves_nothing(saved, written, tmp_path, capsys):
    """Would catch half a page, a temporary file that stays, and a page of before that is gone."""
    (tmp_path / "page.html").write_text("before")
    names = sorted(file.name for file in tmp_path.iterdir())
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
        made = make_page(capsys, written, "--out", tmp_path / "page.html")
        ran = run(capsys, "--model", saved, "--prompt", "a", "--trace", tmp_path / "page.html", *SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    line = f"{tmp_path / 'page.html'} cannot be written: File too large\n"
    assert made == ("", "lab.trace: " + line, 2) and ran == ("", "dllm.py: " + line, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == names and (tmp_path / "page.html").read_text() == "before"


def test_infinity_never_enters_a_trace(tmp_path):
    """Would catch a trace that no browser can read, and one that ends with its first infinite number."""
    canvas = dllm.prepare(random_model(0), [1, 2, 3], "llada", LENGTHS)
    own = {"factor": float("inf"), "guide": random_model(0), "threshold": 0.5, "n": 2, "cache": None}
    for _ in traces.trace(dllm.stream(canvas), canvas, Letters(), str(tmp_path / "run.jsonl"), "a name", own):
        pass
    told = traces.read(tmp_path / "run.jsonl")[0]["strategy"]["settings"]
    assert told == {"factor": "inf", "guide": str(own["guide"]), "threshold": 0.5, "n": 2, "cache": None}
    with pytest.raises(ValueError):
        traces.compact([float("nan")])


def test_an_answer_is_recorded_as_text_once_it_is_full(tmp_path):
    """Would catch a character of several tokens that is spelt by none of them, what stands behind the end, and padding."""
    smile = "🙂".encode()

    class Bytes(Letters):
        def decode(self, ids, skip_special_tokens=True):
            return bytes(smile[i % 4] for i in ids).decode(errors="replace")

    canvas = dllm.prepare(random_model(0), [1, 2, 3], "llada", {"gen_length": 8, "block_length": 8})
    recorder = traces.Recorder(canvas, Bytes(), 0)
    recorder.canvas = [1, 2, 3, 0, 1, 2, 3, EOS, 0, 1, 2]
    assert recorder.answer() == "🙂"
    canvas = dllm.prepare(model_with_ends(7, 9), [1, 2, 3], "llada", {"gen_length": 8, "block_length": 8})
    for _ in traces.trace(dllm.stream(canvas), canvas, Bytes(), str(tmp_path / "run.jsonl"), question="why?"):
        pass
    header, *_, before, record = traces.read(tmp_path / "run.jsonl")
    assert header["special"] == {"mask": MASK, "eos": EOS, "ends": [EOS, 7, 9]} and {"7", "9"} <= set(header["tokens"])
    recorder = traces.Recorder(canvas, Bytes(), 0)
    recorder.canvas = [1, 2, 3, 0, 1, 2, 3, 9, EOS, 0, 1]
    assert recorder.answer() == "🙂"
    assert header["question"] == "why?" and "answer" not in before and "answer" in record


# --- reading, and the page ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path) -> Path:
    """A trace of 24 forwards."""
    canvas = dllm.prepare(random_model(0), [1, 2, 3], "llada", LENGTHS)
    recorded(dllm.stream(canvas), canvas, tmp_path / "run.jsonl")
    return tmp_path / "run.jsonl"


def make_page(capsys, *arguments) -> tuple[str, str, int]:
    try:
        traces.main([str(a) for a in arguments])
        code = 0
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return out, err, code


def test_a_page_holds_its_traces_as_data(written, tmp_path, capsys):
    """Would catch a trace that is changed on its way into the page."""
    assert make_page(capsys, written, written, "--out", tmp_path / "page.html") == (f"{tmp_path / 'page.html'}\n", "", 0)
    page = (tmp_path / "page.html").read_text()
    data = page.split('id="traces">')[1].split("</script>")[0]
    assert json.loads(data) == [traces.read(written)] * 2


def test_text_cannot_end_the_script_element(written, tmp_path, capsys):
    """Would catch a model's answer that becomes markup. In JSON, < stands only in strings, where \\u003c says the same."""
    lines = written.read_text().splitlines()
    lines[0] = lines[0].replace("<1>", "</script><script>alert(1)</script><!--")
    written.write_text("\n".join(lines) + "\n")
    assert make_page(capsys, written, "--out", tmp_path / "page.html")[2] == 0
    template, page = traces.VIEWER.read_text(), (tmp_path / "page.html").read_text()
    assert [page.count(text) for text in ("<", "</script", "<!--")] == [template.count(text) for text in ("<", "</script", "<!--")]


def damaged(lines: list[str], number: int, **fields) -> list[str]:
    return [*lines[:number], json.dumps(json.loads(lines[number]) | fields), *lines[number + 1 :]]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda lines: ["hello"], "is no trace: its first line is not the header of one"),
        (lambda lines: [""], "is no trace: its first line is not the header of one"),
        (lambda lines: ["[" * 100_000], "is no trace: its first line is not the header of one"),
        (lambda lines: lines[1:], "is no trace: its first line is not the header of one"),
        (lambda lines: damaged(lines, 0, version=2), "is a trace of version 2: expected version 1"),
        (lambda lines: [lines[0].replace('"padding":0,', ""), *lines[1:]], "is damaged: line 1 is not a whole record"),
        (lambda lines: [*lines[:5], lines[5][:40]], "is damaged: line 6 is not a whole record"),
        (lambda lines: [*lines[:5], "", *lines[5:]], "is damaged: line 6 is not a whole record"),
        (lambda lines: [*lines[:3], lines[3].replace('"nfe"', '"NFE"'), *lines[4:]], "is damaged: line 4 is not a whole record"),
    ],
)
def test_what_is_no_trace_is_one_line_and_exit_code_2(written, tmp_path, capsys, damage, message):
    """Would catch a traceback, a page that fails in the browser instead, or one that is half written."""
    written.write_text("\n".join(damage(written.read_text().splitlines())) + "\n")
    out, err, code = make_page(capsys, written, "--out", tmp_path / "page.html")
    assert (out, err, code) == ("", f"lab.trace: {written} {message}\n", 2)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("cut", [1, 2, 40, 120])
def test_a_torn_last_line_is_left_out(written, tmp_path, capsys, cut):
    """Would catch a run that cannot be looked at because its end was cut off; of a line that lost only its end nothing is missing."""
    whole = traces.read(written)
    written.write_bytes(written.read_bytes()[:-cut])
    assert traces.read(written) == (whole if cut == 1 else whole[:-1])
    assert make_page(capsys, written, "--out", tmp_path / "page.html")[2] == 0
    for torn in ("null", "[]", "5", '{"nfe": 1e999}'):
        written.write_text("".join(json.dumps(record) + "\n" for record in whole) + torn)
        assert traces.read(written) == whole


WRONG = {  # of which field, in the header and in a record
    0: {
        "prompt": [None, [1], "1,2", [1, 2, "3"], [1, 2, -3], [1, 2, True], {"length": 3}],
        "prompt_length": [0, -1, 4, 3.5, "3", None],
        "gen_length": [0, -8, 10**9, 24.5, "24", [], 10**400],
        "block_length": [0, 25, 10**9, "8", None],
        "padding": [-1, 3, None],
        "special": [None, [], {}, {"mask": 39}, {"mask": "39", "eos": 38}, {"mask": 39, "eos": 38, "ends": 38},
                    {"mask": 39, "eos": 38, "ends": ["a"]}, {"mask": 39, "eos": 38, "ends": {}}],
        "given": [None, 5, {}, [5], [[2, 1]], [[27, 1]], [[4, -1]], [[4]], [[4, 1, 1]], [[5, 1], [4, 1]], [[4, 1], [4, 1]]],
        "strategy": [None, "llada", {}, {"name": 5, "settings": {}, "exact": True}, {"name": "", "settings": [], "exact": True}],
        "settings": [None, [], "a"],
        "model": [None, 5],
        "versions": [[], 5],
        "question": [5, None, []],
        "tokens": [None, [], {"a": "b"}, {"1": 5}, {"-1": "a"}, {"\u0661": "a"}],
        "version": [True, "1", None, [[]], 10**400, 0],
    },
    3: {
        "nfe": [None, -1, 1.5, "2", [], 10**30],
        "window": [None, [], [3], [2, 9], [9, 3], [3, 28], [3, 9, 9], ["3", "9"]],
        "blocks": [None, [0], [-1, 1], [0, 1, 2], "01"],
        "query": [None, 5, [5], [[0]], [[5, 3]], [[0, 28]], [[-1, 5]], [[0, 9], [3, 12]], [[0, 9]] * 9, [[0, 1.5]]],
        "visible": [None, {}, {"a": 1}, [[0, 28]]],
        "candidates": [None, {}, [[4, 1, 0.5]], [[4, 1, 0.5, ""]], [[4, 1, 0.5, {}]],
                       [[2, 1, 0.5, []]], [[4, 1, -0.1, []]], [[4, 1, 1.1, []]], [[4, 1, "1", []]], [[4, 1, 0.5, None]],
                       [[4, 1, 0.5, [[1]]]], [[4, 1, 0.5, [[1, 2]]]], [[4, 1, 0.5, [["a", 0.5]]]],
                       [[4, 1, True, []]], [[5, 1, 0.5, []], [4, 1, 0.5, []]]],
        "writes": [None, [[2, 1]], [[27, 1]], [[4, None]], [[4, 1], [4, 2]], {"4": 1}],
        "unwrites": [None, 0, [[4.5, 1]], [[4, 2**53]]],
        "rows": [None, -1, 0.5],
        "ms": [None, -1, "5", True, 10**400],
        "tokens": [None, {"1": None}],
        "answer": [None, 5, {}],
    },
}  # fmt: skip


def test_the_reader_takes_nothing_on_trust(written):
    """Would catch a field of another type or size, which the page, or whoever works with the records, would stumble over."""
    lines = written.read_text().splitlines()
    for number, fields in WRONG.items():
        for field, values in fields.items():
            for value in values:
                written.write_text("\n".join(damaged(lines, number, **{field: value})) + "\n")
                with pytest.raises(ValueError) as error:
                    traces.read(written)
                version = f"{written} is a trace of version {value if value == 0 and value is not False else 'unknown'}: expected version 1"
                assert str(error.value) == (
                    version if field == "version" else f"{written} is damaged: line {number + 1} is not a whole record"
                ), (field, value)
    written.write_text("\n".join(damaged(lines, 3, note=[{}])) + "\n")  # a field that it does not know
    assert len(traces.read(written)) == 25


def test_old_traces_are_read(written, tmp_path, capsys):
    """Would catch a field that came later and is asked for."""
    header, *forwards = traces.read(written)
    for name in ("question", "given"):
        del header[name]
    del header["special"]["ends"], forwards[-1]["answer"]
    written.write_text("".join(json.dumps(record) + "\n" for record in (header, *forwards)))
    assert traces.read(written) == [header, *forwards] and len(list(traces.replay(traces.read(written)))) == 24


def test_a_field_that_is_nested_too_deep_is_one_line(written, tmp_path, capsys):
    """Would catch a traceback from the writer of the page, for what the reader has just been able to read."""
    lines = written.read_text().splitlines()
    for depth in range(800, 1000, 5):
        written.write_text("\n".join([lines[0][:-1] + ',"note":' + "[" * depth + "]" * depth + "}", *lines[1:]]) + "\n")
        out, err, code = make_page(capsys, written, "--out", tmp_path / "page.html")
        assert (code, err) == (0, "") or (code == 2 and err.count("\n") == 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_name_of_the_page_may_have_nowhere_to_go(written, tmp_path):
    """Would catch a traceback at exit, after the line or instead of it."""
    code = "import sys; from lab import trace; trace.main(sys.argv[1:]); raise SystemExit"
    code = program.run([written, "--out", tmp_path / "page.html"], code, stdout="/dev/full", stderr=tmp_path / "err")
    line = "lab.trace: the name of the page cannot be written: No space left on device\n"
    assert (code, (tmp_path / "err").read_text()) == (2, line)


def test_a_canvas_that_no_page_can_draw_is_refused(written, tmp_path, capsys):
    """Would catch a page that keeps a browser busy for minutes, and a decode whose page is refused when it is done."""
    canvas = dllm.prepare(random_model(0, max_sequence_length=2**15), [1, 2, 3], "llada", {"gen_length": 2**14, "block_length": 2**13})
    with pytest.raises(ValueError, match="^a canvas of 16387 slots: a page draws at most 16384$"):
        next(traces.trace(dllm.stream(canvas), canvas, Letters(), str(tmp_path / "run.html")))
    assert not (tmp_path / "run.html").exists()
    written.write_text(written.read_text().replace('"gen_length":24', f'"gen_length":{2**14}'))
    line = "lab.trace: a canvas of 16387 slots: a page draws at most 16384\n"
    assert make_page(capsys, written, "--out", tmp_path / "p.html") == ("", line, 2) and not (tmp_path / "p.html").exists()


def test_wrong_files_are_one_line_and_exit_code_2(written, tmp_path, capsys):
    """Would catch a missing file, bytes that are no text, a third trace, and a page with nowhere to go."""
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for arguments, message in [
        ([tmp_path / "none", "--out", tmp_path / "p.html"], f"{tmp_path / 'none'} cannot be read: No such file or directory"),
        ([tmp_path / "binary", "--out", tmp_path / "p.html"], f"{tmp_path / 'binary'} is no trace: it is not text"),
        ([written] * 3 + ["--out", tmp_path / "p.html"], "3 traces: expected one, or two to compare"),
        ([written, "--out", tmp_path / "none" / "p.html"], f"{tmp_path / 'none' / 'p.html'} cannot be written: No such file or directory"),
    ]:
        assert make_page(capsys, *arguments) == ("", f"lab.trace: {message}\n", 2)
