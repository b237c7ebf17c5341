"""The tasks, their checkers, and the tokenizer of the tiny model."""

import hashlib
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.tasks import LIMIT, TABLE, TASKS, Problem, check, is_held_out, problems
from lab.tokenizer import SPECIAL, chat, save_tokenizer
from load_weights import load_tokenizer

each_task = pytest.mark.parametrize("task", TASKS)


def some(task: str | None, count: int, seed: str = "tests", held_out: bool = False) -> list[Problem]:
    return list(islice(problems(seed, task, held_out), count))


ONE_OF_EACH = [problem for task in TASKS for problem in some(task, 1)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


# ---- Checkers


@each_task
def test_the_taught_answer_is_right(task):
    """A generator and a checker that disagree: a story whose chain is not what its sentences say, a division with a rest."""
    assert all(check(problem, problem.answer) for problem in some(task, 200))


@each_task
def test_an_answer_with_one_character_changed_is_wrong(task):
    """A checker that looks at the final number only, or that reads numbers and skips the words and stops between them."""
    for problem in some(task, 8):
        for i, old in enumerate(problem.answer):
            for new in "0123456789 .+*/-=<>x":
                wrong = problem.answer[:i] + new + problem.answer[i + 1 :]
                assert new == old or not check(problem, wrong), (problem, wrong)


@each_task
def test_an_answer_with_one_character_missing_or_added_is_wrong(task):
    """A pattern that is searched for and not matched in full; leading zeros."""
    for problem in some(task, 8):
        for i in range(len(problem.answer) + 1):
            assert not check(problem, problem.answer[:i] + problem.answer[i + 1 :]) or i == len(problem.answer)
            assert not any(check(problem, problem.answer[:i] + new + problem.answer[i:]) for new in " 0x.\n")


PROMPT = "Tom has 12 apples. He buys 7 more and gives away 5. How many apples does Tom have?"
TOM = Problem("two-step", PROMPT, "12 + 7 = 19. 19 - 5 = 14. The answer is 14.")


@pytest.mark.parametrize(
    "text, right",
    {
        "12 + 7 = 19. 19 - 5 = 14. The answer is 14.": True,
        "7 + 12 = 19. 19 - 5 = 14. The answer is 14.": True,
        "7 - 5 = 2. 12 + 2 = 14. The answer is 14.": False,
        "The answer is 14.": False,
        "12 + 7 = 19. The answer is 14.": False,
        "12 + 7 = 18. 19 - 5 = 14. The answer is 14.": False,
        "12 + 7 = 19. 19 - 4 = 15. The answer is 15.": False,
        "12 + 7 = 19. 19 - 5 = 14. The answer is 15.": False,
        "12 + 7 = 19. 18 - 4 = 14. The answer is 14.": False,
        "12 + 7 = 19. 19 - 5 = 14. 14 + 5 = 19. The answer is 19.": False,
        "12 + 7 = 19. 7 + 7 = 14. The answer is 14.": False,
        "12 + 7 = 19. 5 - 19 = 14. The answer is 14.": False,
        "07 + 12 = 19. 19 - 5 = 14. The answer is 14.": False,
        "12 + 7 = 19. 19 - 5 = 14. The answer is 14. ": False,
        "": False,
    }.items(),
)
def test_what_counts_as_right(text, right):
    """A checker that accepts a right number after wrong steps, or steps that are true but do not follow from the story."""
    assert check(TOM, text) == right


@given(st.lists(st.sampled_from([*"0123456789 .+*/-=<>x", " = ", "The answer is", "\n", "٣"]), max_size=30).map("".join))
@example("1 / 0 = 1. 1 / 0 = 1. The answer is 1.")
def test_any_text_can_be_checked(text):
    """A checker that raises on nonsense ends a bench at its last line."""
    assert all(check(problem, text) in (True, False) for problem in ONE_OF_EACH)


# ---- Data


@each_task
def test_training_and_held_out_problems_share_neither_prompt_nor_solution(task):
    """A split by index or by object identity, with which held-out accuracy measures memory."""
    train, held = some(task, 300), some(task, 300, held_out=True)
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert not {p.answer for p in train} & {p.answer for p in held}
    assert all(is_held_out(p.answer) for p in held) and not any(is_held_out(p.answer) for p in train)


def test_the_split_holds_out_a_tenth():
    """A comparison of the hash that is off by a factor of 256."""
    assert 0.09 < sum(is_held_out(f"The answer is {n}.") for n in range(20_000)) / 20_000 < 0.11


@pytest.mark.parametrize("polish", [False, True])
def test_tasks_come_in_their_shares(polish):
    """Shares that belong to other tasks, or a polish that is like all before it."""
    counts = Counter(problem.task for problem in islice(problems("shares", polish=polish), 3000))
    for name, task in TASKS.items():
        assert abs(counts[name] / 30 - (task.polish if polish else task.share)) < 2.5, name


def test_the_same_seed_gives_the_same_data_on_every_machine():
    """Python's salted hash(), set order or the global generator in a story; a change of words, after which the tokenizer must be rebuilt."""
    text = "\n".join(f"{p.task}|{p.prompt}|{p.answer}" for p in some(None, 2000, "digest"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3aabfca81aff27f9"
    assert text != "\n".join(f"{p.task}|{p.prompt}|{p.answer}" for p in some(None, 2000, "another"))


@pytest.mark.parametrize("steps, task", list(enumerate(["one-step", "two-step", "three-step", "four-step"], 1)))
def test_a_story_takes_the_steps_it_is_named_for(steps, task):
    """A question that adds a step to a full story, with which "two-step" accuracy measures something else."""
    for problem in some(task, 200):
        assert problem.answer.count(" = ") == steps
        assert max(map(int, re.findall(r"\d+", problem.prompt))) <= LIMIT
        for left, sign, right, result in re.findall(r"(\d+) ([*/]) (\d+) = (\d+)", problem.answer):
            assert int(right) <= TABLE and int(left if sign == "*" else result) <= TABLE


# ---- Tokenizer


@given(st.text())
@example("Zürich  has\t3 Äpfel\n\n\n\r\n 漢字 😀 x_y ٣ don't \u00a0 ")
@example("<|mdm_mask|> 12<|endoftext|>x")
def test_any_text_survives_the_tokenizer(tokenizer, text):
    """A character that is dropped or becomes an unknown token; a space that moves."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < tokenizer.encoder.get_vocab_size() for i in ids)


def test_a_domain_word_and_a_number_are_one_token_each(tokenizer):
    """Pieces of words or numbers, which would be written out of order by confidence; a number within another, longer one."""
    for text in (p.prompt + " " + p.answer for p in some(None, 300)):
        numbers = [
            tokenizer.encoder.decode([i]).strip() for i in tokenizer.encode(text) if tokenizer.encoder.decode([i]).strip().isdecimal()
        ]
        assert numbers == re.findall(r"\d+", text)
    assert len(tokenizer.encode(TOM.answer)) == 17 and len(tokenizer.encode(TOM.prompt)) == 21
    assert [tokenizer.encoder.decode([i]) for i in tokenizer.encode(" 1234 ")] == [" 1", "2", "3", "4", " "]


def test_the_words_of_the_tasks_are_in_the_list(tokenizer):
    """A new phrase whose words are not in words.txt, and are spelled in bytes, as invented words are."""
    counts = Counter(piece for p in some(None, 4000) for piece in re.findall(r"[A-Za-z]+", p.prompt + " " + p.answer))
    assert not {word for word, count in counts.items() if count >= 8 and len(tokenizer.encode(" " + word)) > 1}


def test_the_chat_template_renders_what_training_used(tokenizer):
    """A newline that jinja strips: the model would be asked in a form that it was never trained on."""
    rendered = tokenizer.encode_chat([{"role": "user", "content": f" {TOM.prompt}\n"}])
    assert rendered == tokenizer.encode(chat(TOM.prompt))
    assert tokenizer.decode(rendered, skip_special_tokens=False).endswith("assistant<|end_header_id|>\n\n")
    assert rendered[0] == tokenizer.encoder.token_to_id("<|startoftext|>") and len(rendered) == 21 + 10


def test_special_tokens_come_first_and_are_one_token_each(tokenizer):
    """A mask or an EOS that is spelled in bytes."""
    assert [tokenizer.encode(token) for token in SPECIAL] == [[i] for i in range(len(SPECIAL))]
