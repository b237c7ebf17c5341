"""FlashDLM's builder: its settings are those of the parts that test_guides.py tests."""

from conftest import random_model
from shared import refused, run, same
from strategies.guides import Reader, left_to_right

ONE = {"block_length": 1}


def test_its_settings_are_those_of_its_parts():
    """Would catch a setting that is ignored, or another default than the paper's."""
    guide = random_model(9)
    for seed in range(4):
        for own, parts in (({}, (5, 0, 32)), ({"top": 20, "recompute": 3, "lookahead": 4}, (20, 3, 4))):
            top, *cache = parts
            mine = left_to_right(Reader(guide, 0.0, top, correct=True), *cache)
            assert same(run(seed, "guided", guide=guide, **own, **ONE), run(seed, mine, **ONE))


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    model = random_model(0)
    refused(model, "guided", "top is 0, expected at least 1", guide=model, top=0)
    refused(model, "guided", "lookahead is 0, expected at least 1", guide=model, lookahead=0)
    refused(model, "guided", "block_length is 8, expected 1", guide=model)
