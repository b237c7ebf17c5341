"""SDAR: its settings are those of the parts that test_blocks.py tests."""

from conftest import random_model
from shared import refused, run, same
from strategies.blocks import blocks_of, in_blocks


def test_its_settings_are_those_of_its_parts():
    """Would catch a setting that is ignored."""
    for seed in range(4):
        mine = in_blocks(blocks_of("block", 2), 0.4, 0.5)
        assert same(
            run(seed, "sdar", threshold=0.4, sub_blocks=2, block_add_threshold=0.5, block_length=4), run(seed, mine, block_length=4)
        )
        quota = in_blocks(blocks_of("block"), None)
        assert same(run(seed, "sdar", threshold=None, steps=9), run(seed, quota, steps=9))


def test_a_wrong_setting_is_named():
    """Would catch a mistake that surfaces later, or as something else."""
    refused(random_model(0), "sdar", "sub_blocks is 0, expected at least 1", sub_blocks=0)
    refused(random_model(0), "sdar", "cache is 'dual', expected one of none, exact", cache="dual")
    refused(random_model(0), "sdar", "block_add_threshold is 2.0, expected between 0 and 1", block_add_threshold=2.0)
    refused(random_model(0), "sdar", "one block at a time", threshold=None, block_add_threshold=0.5)
