"""What a checkpoint holds beside weights: tokenizer, template and end tokens, and every way in which they can be wrong or do harm."""

import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CHARACTERS, EOS, MASK, edit, random_model
from lab.save import save_model
from load_weights import load_config, load_model, load_tokenizer

ASKED = [{"role": "user", "content": "a"}]


def with_template(checkpoint, template, **settings):
    """The tokenizer of a checkpoint that has this template, in the file where most have it."""
    edit(checkpoint / "tokenizer_config.json", lambda c: c.update(settings, chat_template=template))
    return load_tokenizer(checkpoint)


# --- text and tokens -----------------------------------------------------------------------------------------------------------------


@given(st.text(CHARACTERS, min_size=1))
def test_text_survives_the_tokenizer(saved, text):
    """Would catch a token added in front or behind, or one that is dropped."""
    tokenizer = load_tokenizer(saved)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and tokenizer.decode(ids) == text


def test_the_chat_template_is_rendered_and_special_tokens_are_hidden(checkpoint):
    """Would catch a template that is ignored, one in its newer file, and EOS shown as text."""
    message = [{"role": "user", "content": " ab "}]
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.decode(tokenizer.encode_chat(message)) == "ab? "
    assert tokenizer.decode([0, EOS, 1, MASK]) == "ab"
    assert tokenizer.decode([0, EOS], skip_special_tokens=False) == "a<eos>"
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0].content }}.{{ eos_token }}")
    assert load_tokenizer(checkpoint).encode_chat(message)[-2:] == [CHARACTERS.index("."), EOS]


def test_tokens_are_not_drawn_by_chance(checkpoint):
    """Would catch the dropout of a tokenizer that was saved in training: each prompt would be cut up another way each time."""
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3, "d": 4, "cd": 5}, "merges": [["a", "b"], ["c", "d"]], "dropout": 0.99}
    edit(checkpoint / "tokenizer.json", lambda c: c.update(model=bpe, pre_tokenizer=None))
    assert load_tokenizer(checkpoint).encode("abcdab") == [2, 5, 2]


def test_half_a_character_is_the_texts_fault(checkpoint):
    """Would catch a message by which a tokenizer is broken that is not."""
    with pytest.raises(ValueError, match="tokenizer.json cannot encode this text"):
        load_tokenizer(checkpoint).encode("\ud800")


def test_what_a_file_asks_for_is_not_done_to_a_text(checkpoint):
    """Would catch a prompt that is cut to four tokens or padded to fifty without a word, because the file was saved in training."""
    cut = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    pad = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    edit(checkpoint / "tokenizer.json", lambda c: c.update(truncation=cut, padding=pad))
    assert len(load_tokenizer(checkpoint).encode("abcdefgh")) == 8


def test_a_broken_tokenizer_is_one_line(checkpoint):
    """Would catch the bare Exception of the tokenizers library."""
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        load_tokenizer(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer.json is missing"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}},
        {"model": "x" * 3000},
        {"version": "\x1b[31m"},
    ],
)
def test_a_tokenizer_that_panics_is_one_line(checkpoint, capfd, change):
    """Would catch a panic of Rust, which is no Exception and prints its own lines before it is raised, and a message without end."""
    edit(checkpoint / "tokenizer.json", lambda c: c.update(change))
    try:
        assert load_tokenizer(checkpoint).encode("abc") == [0, 1, 2]  # a stride of what is not cut harms nothing
    except ValueError as error:
        assert "tokenizer.json is not a tokenizer: " in str(error) or "tokenizer.json cannot " in str(error)
        assert str(error).isprintable() and len(str(error)) < 600
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": NaN}', "\x00", '"\x1b[31m"'])
def test_json_that_cannot_be_read_is_one_line_with_its_file(checkpoint, name, text):
    """Would catch a RecursionError, a limit on digits, and a file that is skipped because it is broken."""
    (checkpoint / name).write_text(text)
    if text.startswith('{"a": 1') and getattr(sys, "get_int_max_str_digits", int)() == 0:
        pytest.skip("this Python reads any number of digits")
    with pytest.raises(ValueError) as error:
        load_tokenizer(checkpoint)
    assert name in str(error.value) and str(error.value).isprintable()


# --- the template --------------------------------------------------------------------------------------------------------------------


def test_the_chat_template_is_told_to_begin_the_answer(checkpoint):
    """Would catch a prompt that ends before the header of the assistant's answer, which LLaDA's own template adds on demand."""
    settings = {"chat_template": "{{ messages[0]['content'] }}{% if add_generation_prompt %}?{% endif %}"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.encode_chat([{"role": "user", "content": "ab"}]) == tokenizer.encode("ab?")


RENDERED = {
    "the generation tag": ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}.", "a."),
    "break": ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    "continue": ("{% for i in range(4) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "013"),
    "JSON as it is, in its order": ("{{ {'b': 'x < y & \\'z\\'', 'a': 1} | tojson }}", """{"b": "x < y & 'z'", "a": 1}"""),
    "JSON with letters": ("{{ 'é' | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}", '"é""\\u00e9"'),
    "JSON in lines": ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
    "no tools": ("{% if tools is none and documents is none %}a{% endif %}", "a"),
    "a line of a block": ("  {% if true %}\nab\n  {% endif %}\n", "ab\n"),
    "a token's name": ("{{ eos_token }}", "<eos>"),
}


@pytest.mark.parametrize("what", RENDERED)
def test_templates_find_what_they_are_written_for(checkpoint, what):
    """Would catch a prompt that differs from the one that the model was trained on, or a template that fails here alone."""
    template, text = RENDERED[what]
    assert with_template(checkpoint, template).render(ASKED, True) == text


def test_a_template_can_ask_for_the_day(checkpoint):
    """Would catch the templates that begin with today's date."""
    assert re.fullmatch(r"\d{4}-\d\d", with_template(checkpoint, "{{ strftime_now('%Y-%m') }}").render(ASKED, True))


def test_special_tokens_come_from_the_older_file_too(checkpoint):
    """Would catch a prompt that silently has no BOS, and an older file that wins."""
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "b"}, "eos_token": "c"}))
    tokenizer = with_template(checkpoint, "{{ bos_token }}{{ eos_token }}", bos_token=None, add_bos_token=True)
    assert tokenizer.render(ASKED, True) == "b<eos>" and tokenizer.names == {"bos_token": "b", "eos_token": "<eos>"}


@pytest.mark.parametrize(
    "form",
    [{"default": "d{{ eos_token }}", "tool_use": "t"}, [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d<eos>"}]],
)
def test_of_several_templates_the_default_is_taken(checkpoint, form):
    """Would catch a dictionary that is taken for a text, and the first of a list."""
    assert with_template(checkpoint, form).render(ASKED, True) == "d<eos>"


@pytest.mark.parametrize("form", [5, True, [1], ["a"], [{"template": "a"}], {"tool_use": "t"}, {"default": 5}, [[]], "\ud800"])
def test_what_is_no_template_is_one_line(checkpoint, form):
    """Would catch a traceback, which for half a character comes from the encoder."""
    with pytest.raises(ValueError, match="chat_template|template|tokenizer") as error:
        with_template(checkpoint, form).encode_chat(ASKED)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("token", [5, [1], {"id": 3}])
def test_what_is_no_special_token_is_one_line(checkpoint, token):
    """Would catch a number that is put into the prompt, or a traceback."""
    edit(checkpoint / "tokenizer_config.json", lambda c: c.update(bos_token=token))
    with pytest.raises(ValueError, match="tokenizer_config.json: bos_token is .*, expected text"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "this checkpoint has no chat template: give the prompt as raw text (--raw)"),
        ("{% for", "the checkpoint's chat template fails"),
        ("{{ raise_exception('no system prompt') }}", "chat template refuses these messages: no system prompt"),
        ("{{ ''.__class__.__mro__ }}", "the checkpoint's chat template fails"),  # a way out of an open sandbox
        ("{{ messages.append('more') }}", "the checkpoint's chat template fails"),  # a list that is the caller's
        ("{{ raise_exception('two\nlines \x1b[31m') }}", "refuses these messages: two lines \ufffd[31m"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[5].content }}", "UndefinedError"),
        ("{{ messages.a.b.c }}", "UndefinedError"),
        ("{{ strftime_now(1) }}", "TypeError"),
        ("{% include 'a' %}", "TypeError"),
        ("{{ '%d' % 'a' }}", "TypeError"),
        ("{{ {}.items(1) }}", "TypeError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "fails: "),
        ("{{ " + "-" * 5000 + "1 }}", "fails: RecursionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: RecursionError"),
        ("{% for i in range(10**9) %}a{% endfor %}", "fails: OverflowError"),
        (
            "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "TimeoutError, it takes more than 5000000 steps",
        ),
        ("{{ 10 ** (10 ** 10) }}", "OverflowError, a number of thousands of digits"),
        ("{% set n = namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "a number of thousands of digits"),
        ("{% for i in range(3) %}{{ 'é' * 500000 }}{% endfor %}", "makes 1500000 characters of 1, the most is 1000000 more"),
        *[
            pytest.param(large, "fails: MemoryError", marks=pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory"))
            for large in (
                "{{ 'a' * 10**10 }}",
                "{{ 'a' | center(10**10) }}",
                "{{ 'a'.ljust(10**10) }}",
                "{{ '%10000000000d' % 1 }}",
                "{{ [0] * 10**10 }}",
                "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
                "{{ '{:10000000000}'.format(1) }}",
            )
        ],
    ],
)
def test_a_template_that_fails_is_one_line(checkpoint, template, message):
    """Would catch template code that reaches Python, a traceback from it, and one that takes hours or all memory."""
    tokenizer = with_template(checkpoint, template)
    with pytest.raises(ValueError) as error:
        tokenizer.encode_chat(ASKED)
    assert message in str(error.value) and str(error.value).isprintable()


def test_limits_end_with_the_template(checkpoint):
    """Would catch a limit on memory, or a trace, that stays when a template has failed: a debugger's goes on."""
    trace = lambda *_: None
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with_template(checkpoint, "{{ 1 / 0 }}")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    if sys.platform == "linux":
        import resource

        limits = resource.getrlimit(resource.RLIMIT_AS)
        with pytest.raises(ValueError):
            with_template(checkpoint, "{{ 'a' * 10**10 }}").encode_chat(ASKED)
        assert resource.getrlimit(resource.RLIMIT_AS) == limits


# --- end tokens ----------------------------------------------------------------------------------------------------------------------

A, B = 0, 1  # any tokens


@pytest.mark.parametrize(
    "eos, pad, generation, expected",
    [
        (EOS, EOS, None, (EOS,)),
        ([A, EOS], EOS, None, (EOS, A)),
        ([A, EOS], None, None, (A, EOS)),
        ([A, EOS], B, None, (A, EOS)),
        (EOS, EOS, [A, EOS], (EOS, A)),
        (EOS, EOS, A, (EOS, A)),
        (None, EOS, [A, EOS, B], (EOS, A, B)),
        ([EOS, EOS], EOS, None, (EOS,)),
    ],
)
def test_end_tokens_are_those_that_two_files_list(checkpoint, eos, pad, generation, expected):
    """Would catch the second end token that is lost, and holes that are filled with what ends a turn and not with what pads."""
    edit(checkpoint / "config.json", lambda c: c.update(eos_token_id=eos, pad_token_id=pad))
    if generation is not None:
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    config = load_config(checkpoint)
    assert config.ends == expected and config.eos_token_id == expected[0]
    assert load_model(checkpoint, device="cpu").config == config
    assert load_tokenizer(checkpoint).ends == set(expected)
    (checkpoint / "tokenizer.json").unlink()
    assert load_config(checkpoint) == config


TURN = CHARACTERS.index("?")


def with_turn(checkpoint, template: str = "{% for m in messages %}{{ m.content }} ?{% endfor %}"):
    """Make the question mark a token of its own, which the template may write behind a turn."""
    token = {"id": TURN, "content": "?", "special": False, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    edit(checkpoint / "tokenizer.json", lambda c: c["added_tokens"].insert(0, token))
    return with_template(checkpoint, template)


def test_what_the_template_writes_behind_an_answer_is_an_end_token(checkpoint):
    """Would catch LLaDA-Instruct's first end token, which no list of it names: an answer would go on behind it."""
    tokenizer = with_turn(checkpoint)
    assert tokenizer.end_of_turn() == TURN and tokenizer.ends == {EOS, TURN}
    assert load_config(checkpoint).ends == (EOS, TURN)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}?",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}b?{% endfor %}",
        "{{ messages[5].a }}",
        None,
    ],
)
def test_other_templates_have_no_end_of_turn(checkpoint, template):
    """Would catch any token that stands somewhere in a template, and a checkpoint that cannot be loaded for want of an answer in it."""
    assert with_turn(checkpoint, template).end_of_turn() is None and load_config(checkpoint).ends == (EOS,)


def test_end_tokens_are_not_shown(checkpoint):
    """Would catch an end of turn in the text of an answer: not every one is marked as special."""
    tokenizer = with_turn(checkpoint)
    assert tokenizer.decode([A, TURN, B, EOS]) == "ab" and tokenizer.decode([A, TURN], skip_special_tokens=False) == "a?"


def test_end_tokens_survive_saving(checkpoint, tmp_path):
    """Would catch a checkpoint that is saved with one end token of three, or with another one in front."""
    edit(checkpoint / "config.json", lambda c: c.update(eos_token_id=[A, EOS, B]))
    model = load_model(checkpoint, device="cpu")
    assert model.config.ends == (EOS, A, B)
    save_model(model, tmp_path / "copy")
    assert load_config(tmp_path / "copy") == model.config
    save_model(random_model(0), tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["eos_token_id"] == EOS


def test_the_mask_cannot_end_a_turn(checkpoint):
    """Would catch a template by which an answer would end before it begins."""
    with_template(checkpoint, "{% for m in messages %}{{ m.content }}<mask>{% endfor %}")
    with pytest.raises(ValueError, match=f"mask_token_id {MASK} is an end token, too"):
        load_config(checkpoint)
