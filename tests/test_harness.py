"""The adapter of lm-evaluation-harness, where that is installed: it answers as the decoder does, and serves no other decoder's answers."""

# ruff: noqa: E402
import json
import os
import shlex
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ |= OFFLINE  # which the harness's libraries read when they are first loaded

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from dllm import generate
from lab import harness
from lab.command_line import TINY
from lab.likelihood import chain, monte_carlo
from lab.tasks import problems
from load_weights import load_model, load_tokenizer
from test_docs import COMMANDS

TASK = """task: stories
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/test.jsonl, train: {folder}/shots.jsonl}}
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: "\\n"
generation_kwargs: {{until: ["Question:"], max_gen_toks: 50}}
filter_list:
  - name: last-number
    filter:
      - {{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}}
      - {{function: take_first}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: ["(?s).* ", "\\\\.$"]
"""


@pytest.fixture
def task(tmp_path, monkeypatch) -> Path:
    """A folder with a task of 20 held-out stories and two solved ones; what the harness keeps stays in it."""
    for name, count in (("test", 20), ("shots", 2)):
        drawn = islice(problems(1234, "two-step", held_out=name == "test"), count)
        lines = [json.dumps({"question": p.prompt, "answer": p.answer}) + "\n" for p in drawn]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "stories.yaml").write_text(TASK.format(folder=tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    own = partial(TaskManager, include_defaults=False)  # to read the thousands that it brings takes seconds in each run
    monkeypatch.setattr("lm_eval.tasks.TaskManager", own)
    monkeypatch.setattr("sys.argv", ["lab.harness"])
    return tmp_path


def run(capsys, task: Path, decoder: str, *arguments) -> tuple[list[dict], float, str, int]:
    """The harness's samples in the order of the problems, the score, stderr, exit code."""
    code, out = 0, task / "results"
    words = ["--model", "dllm", "--model_args", f"decoder={decoder}", "--tasks", "stories", "--include_path", task]
    try:
        harness.main([*map(str, [*words, "--output_path", out, "--log_samples", *arguments])])
    except SystemExit as exit:
        code = exit.code
    err = capsys.readouterr().err
    if code:
        return [], 0.0, err.splitlines()[-1], code
    newest = lambda pattern: max(out.rglob(pattern), key=lambda file: file.stat().st_mtime_ns).read_text()
    samples = sorted(map(json.loads, newest("samples_*.jsonl").splitlines()), key=lambda sample: sample["doc_id"])
    results = json.loads(newest("results_*.json"))
    assert results["config"]["decoder"]["contender"] == decoder.partition(",")[0]
    return samples, results["results"]["stories"]["exact_match,last-number"], err, code


def prompts(samples: list[dict]) -> list[str]:
    return [sample["arguments"]["gen_args_0"]["arg_0"] for sample in samples]


def test_its_answers_are_those_of_generate_and_a_second_run_is_served(capsys, task, monkeypatch):
    """Would catch another prompt, length or setting than the decoder's own, answers under another problem's number (they are decoded in
    batches, the short ones first), and a cache that is not read. And a line of statistics for each request."""
    line = ["--apply_chat_template", "--batch_size", "4", "--use_cache", task / "cache"]
    samples, score, _, _ = run(capsys, task, f"fast-dllm:cache=dual,stats={task}/stats.jsonl", *line)
    model, tokenizer = load_model(TINY, device="cpu"), load_tokenizer(TINY)
    lines = {line["doc"]: line for line in map(json.loads, (task / "stats.jsonl").read_text().splitlines())}
    assert len(samples) == len(lines) == 20 and score >= 0.8
    for sample in samples:
        ids = tokenizer.encode_chat([{"role": "user", "content": sample["doc"]["question"]}])
        assert tokenizer.encode(prompts([sample])[0]) == ids
        result = generate(model, ids, "fast-dllm", cache="dual", gen_length=64)  # max_gen_toks 50, in whole blocks
        took = lines[sample["doc_id"]]
        assert sample["resps"] == [[tokenizer.decode(result.answer())]]
        assert (took["tokens"], took["forwards"], took["task"]) == (result.lengths[0], result.nfe, "stories") and took["rows"] > 0
    monkeypatch.setattr(harness, "answer", lambda *_, **own: pytest.fail("decoded again"))
    again, same, _, _ = run(capsys, task, "fast-dllm:cache=dual", *line)
    assert same == score and [s["resps"] for s in again] == [s["resps"] for s in samples]


def test_answers_of_another_decoder_are_refused(capsys, task):
    """Would catch the harness's key, which is the request alone: one decoder's answers served as another's."""
    line = ["--limit", "1", "--use_cache", task / "cache"]
    assert run(capsys, task, "streaming:threshold=0.9", *line)[3] == 0
    for decoder, differs in (("streaming:threshold=0.8", "contender"), (f"streaming:threshold=0.9,model={TINY}", "model")):
        _, _, message, code = run(capsys, task, decoder, *line)
        assert code == 2 and message == f"lab.harness: --use_cache holds answers of another {differs}: give another name"
    assert run(capsys, task, "streaming:threshold=0.9", *line)[3] == 0


def test_the_chat_template_in_three_ways(capsys, task):
    """Would catch shots that are turns where they should be text, or the other way round, and a template around raw text."""
    two = ["--num_fewshot", "2", "--limit", "1"]
    texts = {
        "one": prompts(run(capsys, task, "streaming", *two, "--apply_chat_template", "--fewshot_as_multiturn", "false")[0])[0],
        "many": prompts(run(capsys, task, "streaming", *two, "--apply_chat_template")[0])[0],
        "raw": prompts(run(capsys, task, "streaming", *two)[0])[0],
    }
    turns = {way: (text.count("<|start_header_id|>user"), text.count("<|start_header_id|>assistant")) for way, text in texts.items()}
    assert turns == {"one": (1, 1), "many": (3, 3), "raw": (0, 0)}
    shots = [json.loads(line)["answer"] for line in (task / "shots.jsonl").read_text().splitlines()]
    assert all(shot in text for shot in shots for text in texts.values()) and "<|" not in texts["raw"]


@pytest.fixture
def decoder():
    return lambda **given: harness.Decoder(**{"decoder": "streaming", "device": "cuda:0"} | given)


def asked(kind: str, *arguments) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", 7, 1))


CHAT = "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat is {}?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def test_what_an_answer_takes_and_where_it_ends(decoder):
    """Would catch a length of the task that beats the decoder's own, one that is no whole block, `until` that is not cut at, a temperature
    that nobody asked for, and a prefix that is left out."""
    own = decoder()
    settings = lambda model, **task: {name: model.settings_for(task).get(name) for name in ("gen_length", "temperature")}
    assert settings(own, max_gen_toks=70) == {"gen_length": 96, "temperature": None} and settings(own)["gen_length"] == 256
    assert settings(decoder(decoder="streaming:gen_length=32"), max_gen_toks=70)["gen_length"] == 32
    assert settings(decoder(decoder="llada:block-length=8"), max_gen_toks=70)["gen_length"] == 72
    assert (
        settings(own, do_sample=True, temperature=0.7)["temperature"] == 0.7
        and settings(own, do_sample=False, temperature=0.7)["temperature"] is None
    )
    sums = [
        asked("generate_until", CHAT.format(text), {"until": until, "max_gen_toks": 32})
        for text, until in (("25 + 17", []), ("2 + 3", ["The", "."]))
    ]
    assert own.generate_until(sums) == ["25 + 17 = 42. The answer is 42.", "2 + 3 = 5"]
    assert decoder(prefix="<|startoftext|>").item(sums[0], 0).prompt == "<|startoftext|>" + CHAT.format("25 + 17")


def test_likelihoods_are_those_of_the_module(decoder, tmp_path):
    """Would catch a context that loses its last space, another order or number of samples, and greedy answers that are not."""
    own, model, tokenizer = decoder(stats=str(tmp_path / "stats.jsonl")), load_model(TINY, device="cpu"), load_tokenizer(TINY)
    requests = [asked("loglikelihood", CHAT.format("25 + 17").rstrip(), f"\n\n25 + 17 = {n}.") for n in (42, 43)]
    right, wrong = own.loglikelihood(requests)
    ids = tokenizer.encode(CHAT.format("25 + 17")[:-2]), tokenizer.encode("\n\n25 + 17 = 42.")
    assert ids[0] + ids[1] == tokenizer.encode(CHAT.format("25 + 17") + "25 + 17 = 42.")
    assert right == pytest.approx(chain(model, *ids)) and right[0] > wrong[0] + 3 and not wrong[1]
    spaced = [asked("loglikelihood", CHAT.format("25 + 17"), "25 + 17 = 42.")]
    assert own.loglikelihood(spaced)[0] == pytest.approx(right)
    drawn = decoder(likelihood="monte-carlo", samples="16").loglikelihood(requests[:1])
    assert drawn == [(pytest.approx(monte_carlo(model, *ids, 16)), False)]
    begin = tokenizer.encode("<|startoftext|>")
    assert own.loglikelihood_rolling([asked("loglikelihood_rolling", "2 + 3 = 5.")]) == [
        pytest.approx(chain(model, begin, tokenizer.encode("2 + 3 = 5."))[0])
    ]
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["loglikelihood"] * 3 + ["loglikelihood_rolling"]
    assert lines[0]["forwards"] == len(ids[1]) and lines[0]["rows"] == len(ids[1]) * len(ids[0] + ids[1])


def test_a_turn_that_is_begun_goes_on(decoder):
    """Would catch an end of turn behind the words with which a task begins the answer."""
    turns = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "2 + 3 ="}]
    text = decoder().apply_chat_template(turns, add_generation_prompt=False)
    assert text == CHAT.format("2 + 3") + "2 + 3 ="


@pytest.mark.parametrize(
    "given, message",
    [
        ({"thinking": 1}, "model dllm has no argument 'thinking': it takes decoder, model,"),
        ({"decoder": "warp"}, "unknown strategy 'warp'"),
        ({"decoder": "streaming:window=3"}, "streaming has no setting window"),
        ({"decoder": "streaming:gen_length=33"}, "gen_length 33 is not a multiple of block_length 32"),
        ({"batch_size": "auto"}, "batch_size is 'auto', expected a whole number of at least 1"),
        ({"likelihood": "exact"}, "likelihood is 'exact', expected chain or monte-carlo"),
        ({"samples": 0}, "samples is 0, expected a whole number of at least 1"),
        ({"dtype": "fp8"}, "dtype is 'fp8', expected one of"),
        ({"model": "./nowhere"}, "no checkpoint at ./nowhere"),
        ({"decoder": "d2f", "model": "./nowhere"}, "its adapter of weights/ was made for another model"),
        ({"stats": "no/such/file"}, "stats no/such/file: there is no folder no/such"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(decoder, monkeypatch, given, message):
    """Would catch a run that ends after an hour, and an argument with a typo that is silently dropped."""
    monkeypatch.setattr("lab.contenders.opened", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError) as error:
        decoder(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_page_has_commands_of_the_harness():
    """Would catch a flag that the harness has not, and an argument that the adapter has not; that decoders are planned tests/test_docs.py
    sees, where nothing is installed."""
    commands = [command for page, command in COMMANDS if " lab.harness " in command]
    assert len(commands) > 30
    for command in commands:
        args = harness.HarnessCLI()._parser.parse_args(["run", *shlex.split(command)[3:]])
        assert args.model_args.keys() <= harness.GIVEN.keys() and args.model == "dllm"


def test_a_mistake_is_one_line_and_exit_code_2(capsys, task):
    """Would catch a traceback of the harness, and a prompt that does not fit found after an hour of others."""
    _, _, line, code = run(capsys, task, "streaming:gen_length=8192", "--limit", "2")
    assert code == 2 and line.startswith("lab.harness: ") and "together more than the model's" in line
