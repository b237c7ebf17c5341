"""APD's builder: its settings are those of the parts that test_guides.py tests."""

from conftest import random_model
from shared import refused, run, same
from strategies.guides import Reader, left_to_right

ONE = {"block_length": 1}


def test_its_settings_are_those_of_its_parts():
    """Would catch a setting that is ignored, or another default than the paper's."""
    guide = random_model(9)
    for seed in range(4):
        for own, parts in (({}, (0.7, 16, 100)), ({"share": 0.9, "recompute": 2, "lookahead": 5}, (0.9, 2, 5))):
            share, *cache = parts
            mine = left_to_right(Reader(guide, share, 1, correct=False), *cache)
            assert same(run(seed, "apd", guide=guide, **own, **ONE), run(seed, mine, **ONE))


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    model = random_model(0)
    refused(model, "apd", "share is 1.5, expected between 0 and 1", guide=model, share=1.5)
    refused(model, "apd", "guide is 'weights/tiny-ar', expected a value of type LLaDA", guide="weights/tiny-ar")
    refused(model, "apd", "a guide is needed", block_length=1)
