"""How a filter is trained for Learn2PD, and the greedy oracle it learns from. Its rule is in systems/test_learn2pd.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import dllm
from conftest import random_filter, random_model, random_prompt
from dllm import decode
from lab import command_line, contenders, filter, train
from lab.save import save_filter
from shared import CACHES, LENGTHS, committed, seeds
from strategies import Strategy, build
from strategies.learn2pd import load_filter
from strategies.llada import full, serial

# --- the greedy oracle


@settings(max_examples=8)
@given(seeds, st.sampled_from(CACHES), st.sampled_from(["fill", "stop"]))
def test_the_greedy_oracle_is_exact(seed, cache, eos):
    """Would catch a fallback that writes what is wrong, and a reference that is read at the wrong slot of a padded row."""
    prompts = [random_prompt(seed, 7), random_prompt(seed + 1, 4)]
    model, own = random_model(seed), LENGTHS | {"cache": cache, "threshold": None, "eos": eos}
    plain = dllm.generate(model, prompts, "fast-dllm", **own)
    known = contenders.greedy_oracle(model, prompts, "fast-dllm", **own)
    assert known.tokens.equal(plain.tokens)
    assert all(a <= b for a, b in zip(known.forwards, plain.forwards))


def test_the_greedy_oracle_is_fast_and_would_go_wrong_with_the_usual_fallback():
    """Negative control: where nothing is right, writing the surest token loses the reference on some models; and much is right at once."""
    lost, saved = 0, 0
    for seed in range(12):
        reference, known, settings = contenders.with_oracle(random_model(seed), [random_prompt(seed, 6)], "llada", **LENGTHS)

        def usual(scores, candidates, window, final=reference.tokens):
            return scores.token == final[window.live, window.start : window.end]

        model = random_model(seed), [random_prompt(seed, 6)]
        lost += not dllm.generate(*model, Strategy(usual, full, serial), **LENGTHS).tokens.equal(reference.tokens)
        saved += dllm.generate(*model, known, **settings).nfe <= 22
    assert lost >= 6 and saved >= 10


def test_the_greedy_oracle_commits_all_that_is_right():
    """Would catch a commit of something wrong, and a right token that is left."""
    stuck = 0
    for seed in range(4):
        reference, known, settings = contenders.with_oracle(random_model(seed), [random_prompt(seed, 6)], "llada", **LENGTHS)
        for step in decode(random_model(seed), random_prompt(seed, 6), known, **settings):
            final = reference.tokens[:, step.window.start : step.window.end]
            right = step.candidates & (step.scores.token == final)
            stuck += not right.any()
            assert step.commit.equal(right) if right.any() else step.commit.sum() == 1
            assert step.token[step.commit].equal(final[step.commit])
    assert stuck


def test_the_bench_takes_the_oracle_for_a_contender():
    """Would catch an oracle that is another strategy's, or is counted with the forwards that found the reference."""
    oracle = contenders.contender("greedy-oracle:cache=dual")
    assert (oracle.strategy, oracle.label) == ("fast-dllm", "greedy-oracle:cache=dual")
    assert oracle.settings == {"threshold": None, "cache": "dual"} and oracle.generate is contenders.greedy_oracle
    assert contenders.sweep(oracle, 64) == [oracle]


# --- its training


def test_pairs_are_what_the_oracle_came_across():
    """Would catch labels of another step, of written cells, or rows that only wait for others."""
    model, prompts = random_model(1), [random_prompt(1, 6), random_prompt(2, 3)]
    settings = {"threshold": None, "cache": "none", **LENGTHS}
    pairs = filter.observe(model, prompts, settings)
    confidence, masked, right = pairs.unbind(1)
    known = contenders.greedy_oracle(model, prompts, "fast-dllm", **settings)
    assert pairs.shape == (sum(known.forwards), 3, 8) and set(masked.unique().tolist()) == {0, 1}
    assert confidence.min() > 0 and confidence[masked > 0].quantile(0.1) < 0.5 < confidence[masked > 0].quantile(0.9)
    written = [int(((m > 0) & (r > 0)).sum()) or 1 for m, r in zip(masked, right)]
    assert sum(written) == 2 * 24  # each forward writes what is right, or one token
    assert not ((masked > 0) & (right > 0)).any(-1).all()  # and so it does not say what was written


def pairs_of(accept, n: int = 400) -> torch.Tensor:
    """Random pairs in which a masked cell is right where `accept` says so."""
    generator = torch.Generator().manual_seed(0)
    confidence, masked = torch.rand(n, 8, generator=generator), torch.rand(n, 8, generator=generator) < 0.7
    return torch.stack((confidence, masked, accept(confidence)), 1)


def test_a_filter_learns_what_a_threshold_cannot(tmp_path):
    """Would catch labels and inputs that are mixed up, and written cells that are hidden: right is who has a sure left neighbour."""
    pairs = pairs_of(lambda seen: torch.cat((torch.ones(len(seen), 1), seen[:, :-1]), 1) > 0.5)
    network = filter.fit(pairs[:300], filter.Settings(steps=400, block_length=8, adam=1e-2))
    accepted, wrong, plain = filter.judge(network, pairs[300:], 0.5)
    assert 0.4 < accepted < 0.6 and wrong < 0.15 and plain > 0.25
    file = tmp_path / "filter.safetensors"
    save_filter(list(network.parameters()), file)
    rule = build("learn2pd", filter=str(file), tau=0.5).rule
    assert committed(rule, confidence=[0.1, 0.9, 0.2, 0.1, 0.1, 0.95, 0.1, 0.1]) == [0, 2, 5, 6]  # 5 is the surest


def test_one_command_makes_a_file_that_learn2pd_reads(tmp_path, capsys, monkeypatch):
    """Would catch a format that only one of the two knows, half a file, and mistakes that end in a traceback or after the work."""
    file = tmp_path / "filter.safetensors"
    short = [f"--out={file}", "--limit=2", "--steps=20", "--gen-length=8", "--block-length=8", f"--model={command_line.TINY}"]
    train.main(["filter", *short])
    assert f"wrote {file}" in capsys.readouterr().err and [other.name for other in tmp_path.iterdir()] == [file.name]
    assert build("learn2pd", filter=str(file)).block_length == 8
    first = load_file(file)
    train.main(["filter", *short, "--replace"])
    assert all(tensor.equal(first[name]) for name, tensor in load_file(file).items())  # the same seed, the same filter
    capsys.readouterr()
    monkeypatch.setattr(filter, "load_model", lambda source: pytest.fail("worked before it had checked"))
    for flags, message in [
        ([*short, "--limit=0"], "limit is 0, expected at least 1"),
        ([*short, "--adam=nan"], "adam is nan"),
        ([*short, "--cache=triple"], "cache is 'triple', expected one of none, prefix, dual"),
        ([*short, "--gen-length=12"], "gen_length 12 is not a multiple of block_length 8"),
        ([*short, f"--out={file}/filter"], "File exists"),
        ([*short, f"--out={tmp_path}"], "expected a file, not a folder"),
        (short, "is there: give another file, or --replace"),
        (["--width=3"], "unrecognized arguments: --width=3"),
    ]:
        with pytest.raises(SystemExit) as exit:
            train.main(["filter", *flags])
        err = capsys.readouterr().err
        assert exit.value.code == 2 and err.count("\n") == 1 and message in err


def test_without_its_filter_the_strategy_is_not_ready(monkeypatch, tmp_path):
    """Would catch a default comparison that stops at a filter that was never trained."""
    monkeypatch.setattr("strategies.learn2pd.FILTER", tmp_path / "none")
    assert not command_line.has_weights("learn2pd") and command_line.has_weights("llada")
    save_filter(load_filter(random_filter(8)), tmp_path / "none")
    assert command_line.has_weights("learn2pd")


def test_a_file_that_is_no_filter_ends_in_one_line(tmp_path, capsys):
    """Would catch a traceback of the library that reads it."""
    (tmp_path / "bad.safetensors").write_bytes(b"{}")
    for file, message in (
        (str(tmp_path / "bad.safetensors"), "truncated or not a safetensors file"),
        (str(tmp_path), "there is no filter"),
        ("nowhere", "lab.train filter"),
    ):
        with pytest.raises(SystemExit) as exit:
            command_line.main(["--prompt", "a", "--strategy", "learn2pd", "--filter", file])
        err = capsys.readouterr().err
        assert exit.value.code == 2 and err.count("\n") == 1 and message in err
