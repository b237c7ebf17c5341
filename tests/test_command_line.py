"""`python dllm.py` as a person and a pipe see it: the answer on stdout, all else on stderr, mistakes in one line with exit code 2."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm
import load_weights
import program
from conftest import random_model
from families import PREFIX
from lab import command_line, files
from strategies import STRATEGIES, options

ROOT = Path(__file__).parent.parent
SHORT = ["--gen-length", "16", "--block-length", "8"]


def run(capsys, *arguments) -> tuple[str, str, int]:
    """Run the program in this process: stdout, stderr, exit code."""
    try:
        command_line.main([str(a) for a in arguments])
        code = 0
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return out, err, code


def test_the_answer_is_on_stdout_and_the_counters_are_on_stderr(saved, capsys):
    """Would catch counters in a pipe, and a missing one."""
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--strategy", "llada", *SHORT)
    assert code == 0 and err.count("\n") == 1
    model, tokenizer = load_weights.load_model(saved), load_weights.load_tokenizer(saved)
    ids = tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    assert out == tokenizer.decode(dllm.generate(model, ids, "llada", gen_length=16, block_length=8).answer()) + "\n"
    for counter in ("forwards 16", "rows", "tokens", "tokens_per_forward", "seconds", "tokens_per_second", "peak_memory_mb", "seed 0"):
        assert counter in err


def test_json_counters_are_one_object(saved, capsys):
    """Would catch counters that no program can read."""
    out, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--json", "--strategy", "fast-dllm", "--threshold", "0.4", *SHORT)
    counters = json.loads(err)
    assert counters["strategy"] == "fast-dllm" and counters["seed"] == 0 and 2 <= counters["forwards"] <= 16
    assert counters["rows"] >= counters["forwards"] * 8


def test_int8_and_offline_are_passed_on(saved, capsys, monkeypatch):
    """Would catch a flag that does nothing: the model must be in int8, and the hub's library told to stay off the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    loaded = []
    monkeypatch.setattr(command_line, "load_model", lambda *a: loaded.append(load_weights.load_model(*a)) or loaded[0])
    _, _, code = run(capsys, "--model", saved, "--prompt", "hello", "--int8", "--offline", *SHORT)
    assert code == 0 and loaded[0].ff_out.weight.dtype == torch.int8 and command_line.os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("spelling", [("--gen-length", "--block-length"), ("--gen_length", "--block_length")])
def test_both_spellings_of_a_flag_are_taken(saved, capsys, spelling):
    """Would catch a flag that only one ecosystem's users guess."""
    _, err, code = run(capsys, "--model", saved, "--prompt", "hello", "--strategy", "llada", spelling[0], "8", spelling[1], "4")
    assert code == 0 and "forwards 8 " in err


def test_the_prompt_comes_from_standard_input(saved, capsys, monkeypatch):
    """Would catch a dash taken for the prompt."""
    direct = run(capsys, "--model", saved, "--prompt", "a story", *SHORT)[0]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a story")))
    assert run(capsys, "--model", saved, "--prompt", "-", *SHORT)[0] == direct


def test_show_prompt_prints_what_the_model_sees(saved, capsys):
    """Would catch a prompt shown without its template."""
    assert run(capsys, "--model", saved, "--prompt", "hello", "--show-prompt", *SHORT)[0].startswith("hello? \n")
    assert run(capsys, "--model", saved, "--prompt", "hello", "--show-prompt", "--raw", *SHORT)[0].startswith("hello\n")


def test_list_explains_every_strategy_and_setting(capsys):
    """Would catch a strategy that --strategy list leaves out."""
    out, err, code = run(capsys, "--strategy", "list")
    assert code == 0 and err == ""
    for name, builder in STRATEGIES.items():
        assert f"\n{name}\n" in "\n" + out
        for option in options(builder):
            assert "--" + option.replace("_", "-") + " " in out


def test_a_default_stands_in_one_place(saved, capsys):
    """Would catch a flag with a default of its own, which could differ from the builder's."""
    arguments = vars(command_line.command_line().parse_args(["--prompt", "a"]))
    assert not set(arguments) & set(arguments["flags"])


def test_an_oracle_is_a_model_like_any_other(capsys):
    """Would catch a command line that knows only checkpoints, and a language whose length the canvas misses."""
    out, err, code = run(
        capsys, "--model", "oracle:permutation-5", "--prompt", "go", "--gen-length", 5, "--block-length", 5, "--temperature", 1
    )
    assert code == 0 and sorted(out) == sorted("ABCDE\n") and "forwards 5 " in err
    assert run(capsys, "--model", "oracle:chess-5", "--prompt", "go")[2] == 2
    _, err, code = run(capsys, "--model", "oracle:bits-5", "--prompt", "go", "--dtype", "float16")
    assert (err, code) == ("dllm.py: --dtype is for checkpoints: an oracle has no weights\n", 2)


def test_a_guide_is_a_second_model(saved, capsys, monkeypatch, tmp_path):
    """Would catch a guide that is not loaded, and one that is missing noticed after the model was."""
    command = ["--model", saved, "--prompt", "hello", "--gen-length", "16"]
    alone = run(capsys, *command, "--strategy", "ar")[0]
    assert run(capsys, *command, "--strategy", "guided", "--guide", saved, "--top", "1")[::2] == (alone, 0)
    monkeypatch.setattr(command_line, "guide_for", lambda strategy: tmp_path if strategy in ("apd", "guided") else None)
    monkeypatch.setattr(command_line, "load_model", None)
    needs = "needs a guide: give --guide, or train it by python -m lab.train ar --out weights/tiny-ar"
    assert run(capsys, *command, "--strategy", "apd") == ("", f"dllm.py: apd {needs}\n", 2)
    _, err, code = run(capsys, *command, "--strategy", "llada", "--guide", saved)
    assert (err, code) == ("dllm.py: strategy llada has no setting guide: that is a setting of apd, guided; it takes remasking\n", 2)
    monkeypatch.undo()
    _, err, code = run(capsys, *command, "--strategy", "apd", "--guide", "./nothing")
    assert code == 2 and err.count("\n") == 1 and "no checkpoint at ./nothing" in err


def test_control_characters_never_reach_the_terminal():
    """Would catch a model that writes escape sequences: they could clear the screen or retitle the window."""
    assert files.printable("a\x1b[2Jb\x07\n\tc é 中") == "a\ufffd[2Jb\ufffd\n\tc é 中"


def damaged(saved, tmp_path, name, content: bytes) -> str:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(content if file.name == name else file.read_bytes())
    return str(folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompt"], "argument --prompt: expected one argument"),
        ([], "no prompt: give --prompt TEXT, or --prompt - to read standard input"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", " \n"], "the prompt is empty"),
        (["--prompt", "a<mask>b"], "the prompt holds the mask token, id 39"),
        (["--prompt", "a" * 600], "the prompt has 602 tokens, gen_length is 128: together more than the model's 512"),
        (["--prompt", "a\udce9"], "the prompt is not valid UTF-8"),
        (["--prompt", "a", "--strategy", "warp"], "unknown strategy 'warp': choose one of llada, fast-dllm, localleap, streaming, d2f"),
        (["--prompt", "a", "--strategy", "fastdllm"], "; did you mean fast-dllm?"),
        (["--prompt", "a", "--colour", "red"], "unrecognized arguments: --colour red\n"),
        (["--prompt", "a", "--treshold", "0.9"], "unrecognized arguments: --treshold 0.9; did you mean --threshold?"),
        (["--prompt", "a", "--threshold", "90"], "threshold is 90.0, expected between 0 and 1, or 2 for never"),
        (["--prompt", "a", "--col\x1b[31mour"], "unrecognized arguments: --col\ufffd[31mour"),
        (["--prompt", "a", "--radius", "2"], "strategy fast-dllm has no setting radius: that is a setting of localleap"),
        (["--prompt", "a", "--strategy", "localleap", "--radius=-1"], "radius is -1, expected at least 0"),
        (["--prompt", "a", "--strategy", "localleap", "--radius", "-1"], "radius is -1, expected at least 0"),
        (["--prompt", "a", "--strategy", "localleap", "--radius", "two"], "invalid int value: 'two'"),
        (["--prompt", "a", "--strategy", "localleap", "--threshold", "none"], "threshold is None, expected a value of type float"),
        (
            ["--prompt", "a", "--strategy", "localleap", "--relaxed-threshold", "0.95"],
            "relaxed_threshold is 0.95, expected at most threshold=0.9",
        ),
        (["--prompt", "a", "--gen-length", "100"], "gen_length 100 is not a multiple of block_length 32: the nearest is 96"),
        (["--prompt", "a", "--strategy", "llada", "--steps", "30"], "steps 30 do not divide evenly among 4 blocks: the nearest is 32"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan, expected "),
        (["--prompt", "a", "--eos", "never"], "eos is 'never', expected one of fill, stop, suppress, defer"),
        (["--prompt", "a", "--device", "warp"], "unknown device 'warp'"),
        (["--prompt", "a", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--prompt", "a", "--model", "nothing here"], "no checkpoint at nothing here: give a folder or a Hugging Face id"),
        (["--prompt", "a", "--adapter", "./nothing"], "no checkpoint at ./nothing"),
        (["--prompt", "a", "--strategy", "fast-dllm", "--steps", "1"], "steps=1 forwards are spent, "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(saved, tmp_path, capsys, monkeypatch, arguments, message):
    """Would catch a traceback, a usage text of twenty lines, half an answer, or a file left behind."""
    monkeypatch.chdir(tmp_path)
    out, err, code = run(capsys, "--model", saved, *arguments)
    assert (out, code) == ("", 2)
    assert err.startswith("dllm.py: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_message_is_no_longer_than_a_terminal(capsys):
    """Would catch a screen full of what was typed by mistake."""
    _, err, code = run(capsys, "--prompt", "a", "--top", "9" * 5000)
    assert code == 2 and err.startswith("dllm.py: argument --top: invalid int value") and len(err) < 1500


def test_the_command_line_names_no_system():
    """Would catch a system whose weights, say, are known outside its file."""
    text = Path(command_line.__file__).read_text()
    assert not [name for name in STRATEGIES if f'"{name}"' in text]
    assert command_line.made_for("d2f")[1].name == "tiny-d2f" and command_line.made_for("ar")[0].name == "tiny-ar"
    assert command_line.made_for("llada") == (command_line.TINY, None) and command_line.guide_for("apd").name == "tiny-ar"


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("model.safetensors", b"\x80\x02pickled", "is truncated or not a safetensors file"),
        ("config.json", b"{}", "d_model is missing"),
        ("tokenizer.json", b"[]", "is not a tokenizer"),
        ("tokenizer_config.json", b"\xff", "is not readable as JSON"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_and_exit_code_2(saved, tmp_path, capsys, file, content, message):
    """Would catch a file whose reader has a way of failing of its own."""
    out, err, code = run(capsys, "--model", damaged(saved, tmp_path, file, content), "--prompt", "a")
    assert (out, code) == ("", 2) and err.count("\n") == 1 and message in err


def test_nan_weights_are_refused_before_decoding(checkpoint, capsys):
    """Would catch an answer of NaN, which arg-max turns into plausible nonsense."""
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[PREFIX + "wte.weight"][7] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors")
    out, err, code = run(capsys, "--model", checkpoint, "--prompt", "a")
    assert (out, code) == ("", 2) and err.count("\n") == 1 and "holds NaN or infinity" in err


def test_too_little_memory_for_the_canvas_is_refused(monkeypatch):
    """Would catch a cache that is allocated before anybody asked whether it fits."""
    monkeypatch.setattr(load_weights, "free_memory", lambda device: 1e5)
    with pytest.raises(ValueError, match="the cache and logits of 50 rows of 35 tokens need .* GB, but cpu has 0.0001 GB free"):
        dllm.decode(random_model(0), [[1, 2, 3]] * 50, gen_length=32)


def test_bytes_that_are_no_text_are_refused(saved, capsys, monkeypatch):
    """Would catch the decoder's own words, or a traceback, for a binary file in the pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x00")))
    assert run(capsys, "--model", saved, "--prompt", "-") == ("", "dllm.py: the prompt is not valid UTF-8\n", 2)


BENCH = "import sys; from lab import bench; bench.main(sys.argv[1:]); raise SystemExit"
OUTPUTS = [
    (["--prompt", "hello", *SHORT], "", "dllm.py: the answer"),
    (["--strategy", "list"], "", "dllm.py: the list"),
    (["--help"], "", "dllm.py: the help"),
    (["--help"], BENCH, "lab.bench: the help"),
    (["oracle", "--help"], BENCH, "lab.bench oracle: the help"),
    (["oracle", "--limit", "1", "--length", "2"], BENCH, "lab.bench: the table"),
    (
        ["compare", "--limit", "1", "--task", "add", "--gen-length", "32", "--strategies", "streaming", "--json"],
        BENCH,
        "lab.bench: the table",
    ),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments, code, what", OUTPUTS, ids=[f"{what}{i}" for i, (_, _, what) in enumerate(OUTPUTS)])
def test_an_output_that_cannot_be_written_is_one_line(saved, tmp_path, arguments, code, what):
    """Would catch a traceback, at exit, too, or success, when the disk is full."""
    arguments = [*arguments, *(["--model", saved] if "--prompt" in arguments else [])]
    code = program.run(arguments, code, stdout="/dev/full", stderr=tmp_path / "err")
    *_, last = re.split("[\r\n]+", (tmp_path / "err").read_text().strip())  # behind a progress bar
    assert (code, last.strip()) == (2, f"{what} cannot be written: No space left on device")


def test_without_an_output_there_is_no_answer(saved, tmp_path):
    """Would catch success when stdout is closed (`>&-`)."""
    code = program.run(["--model", saved, "--prompt", "hello", *SHORT], "import sys; sys.stdout = None", stderr=tmp_path / "err")
    assert (code, (tmp_path / "err").read_text()) == (2, "dllm.py: the answer cannot be written: there is no standard output\n")


@pytest.mark.parametrize(
    "arguments, code", [(["--strategy", "list"], ""), (["--help"], ""), (["oracle", "--limit", "1", "--length", "2"], BENCH)]
)
def test_a_reader_who_has_enough_ends_it_quietly(tmp_path, arguments, code):
    """Would catch a traceback behind `| head -3`: here the reader is gone before the first line."""
    no_reader = "import os; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1); "
    code = program.run(arguments, no_reader + code, stderr=tmp_path / "err")
    assert (code, (tmp_path / "err").read_text()) == (141, "")


def test_it_runs_as_a_program(saved):
    """Would catch what only a fresh process shows: imports, the exit code; and a start that loads what looks at a decode, for everybody."""
    command = [sys.executable, "-X", "importtime", ROOT / "dllm.py", "--model", saved, "--prompt", "hello", "--strategy", "llada", *SHORT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\n") and "forwards 16" in done.stderr
    loaded = set(re.findall(r"^import time:.* (\S+)$", done.stderr, re.MULTILINE))
    assert "torch" in loaded and {name for name in loaded if name.startswith("lab.")} == {
        "lab.command_line",
        "lab.files",
        "lab.infill",
        "lab.own_rule",
    }
    slow = {"rich", "matplotlib", "huggingface_hub", "torch._dynamo", "torch._inductor", "sympy"}
    assert not loaded & slow  # each a tenth of a second and more


def test_a_mistake_is_one_line_of_a_program(saved, tmp_path):
    """Would catch a traceback behind the line, and an exit code that a shell does not see."""
    code = program.run(["--model", saved, "--prompt", "hello", "--gen-length", "7"], stdout=tmp_path / "out", stderr=tmp_path / "err")
    assert code == 2 and (tmp_path / "out").read_text() == "" and (tmp_path / "err").read_text().count("\n") == 1
