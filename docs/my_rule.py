"""Strategies of one's own: `--strategy docs/my_rule.py:rule`. docs/idea.md says how."""


def rule(scores, candidates, window):
    """Every token that is sure, or whose second choice is far behind."""
    return (scores.confidence >= 0.9) | (scores.margin >= 0.8)


def adjustable(threshold=0.9, least=0.8):
    """The same with settings: `--strategy docs/my_rule.py:adjustable --least 0.5`.

    threshold: how sure a token must be
    least: by how much likelier than the second the first choice must be to do as well
    """

    def rule(scores, candidates, window):
        return (scores.confidence >= threshold) | (scores.margin >= least)

    return rule
