"""A commit rule of one's own: `--strategy docs/my_rule.py:rule`. docs/idea.md says how."""


def rule(scores, candidates, window):
    """Every token that is sure, or whose second choice is far behind."""
    return (scores.confidence >= 0.9) | (scores.margin >= 0.8)
