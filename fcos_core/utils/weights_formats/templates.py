"""Translating names in both directions with one rule for each kind of layer.

A rule is a pair of templates for the same tensor, one in our names and one in theirs. A field in braces stands for a
number, or for the name of a parameter if it is ``{p}``; ``{i+1}``, ``{3*n}`` and ``{3*n+1}`` say how a number differs
between the two sides::

    ("backbone.body.layer{i}.{j}.conv{k}.{p}", "backbone.bottom_up.res{i+1}.{j}.conv{k}.{p}")
"""

import re

_FIELD = re.compile(r"\{(?:(\d+)\*)?([a-z])(?:\+(\d+))?\}")
_PARAMETER = "p"


class Template(object):
    """One side of a rule.

    Args:
        text (str): see the module.
    """

    def __init__(self, text):
        self._text = text
        self._fields = [(int(factor or 1), name, int(shift or 0)) for factor, name, shift in _FIELD.findall(text)]
        literals = _FIELD.split(text)[::4]  # split also returns the three groups of each field
        pattern = re.escape(literals[0])
        for (_, name, _), literal in zip(self._fields, literals[1:]):
            pattern += ("([a-z_]+)" if name == _PARAMETER else r"(\d+)") + re.escape(literal)
        self._pattern = re.compile(pattern + "$")

    def parse(self, name):
        """Values of the fields in a name as a dict, or None if the name does not fit."""
        match = self._pattern.match(name)
        if not match:
            return None
        values = {}
        for (factor, field, shift), text in zip(self._fields, match.groups()):
            if field == _PARAMETER:
                values[field] = text
                continue
            value, rest = divmod(int(text) - shift, factor)
            if rest or value < 0:
                return None
            values[field] = value
        return values

    def fill(self, values):
        """The name with these values."""

        def text_of(field):
            factor, name, shift = field.groups()
            value = values[name]
            return value if name == _PARAMETER else str(int(factor or 1) * value + int(shift or 0))

        return _FIELD.sub(text_of, self._text)


class Renaming(object):
    """A list of rules; the first one that fits a name counts.

    Args:
        rules (sequence[(str, str)]): pairs (template of ours, template of theirs).
    """

    def __init__(self, rules):
        self._rules = [(Template(ours), Template(theirs)) for ours, theirs in rules]

    def to_ours(self, name):
        """Our name for one of theirs, or None."""
        return self._translate(name, 1, 0)

    def to_theirs(self, name):
        """Their name for one of ours, or None."""
        return self._translate(name, 0, 1)

    def _translate(self, name, source, target):
        for rule in self._rules:
            values = rule[source].parse(name)
            if values is not None:
                return rule[target].fill(values)
        return None
