"""The list of mutations fits the sources, and a mutant is a copy with one change."""

import os

import pytest

from tools import check_mutations


@pytest.mark.parametrize("mutation", check_mutations.MUTATIONS, ids=lambda m: "{}: {}".format(m.device, m.what))
def test_each_mutation_changes_one_place(mutation):
    with open(os.path.join(check_mutations.ROOT, "csrc", mutation.file), encoding="utf-8") as stream:
        text = stream.read()
    assert text.count(mutation.old) == 1 and mutation.new != mutation.old
    tests = "test_{}.py".format(check_mutations.operator_of(mutation))
    assert os.path.isfile(os.path.join(check_mutations.ROOT, "tests", "layers", tests))


def test_every_operator_is_broken_on_a_gpu():
    csrc = os.path.join(check_mutations.ROOT, "csrc")
    operators = {name for name in os.listdir(csrc) if os.path.isfile(os.path.join(csrc, name, name + "_cuda.cu"))}
    assert {check_mutations.operator_of(m) for m in check_mutations.MUTATIONS if m.device == "cuda"} == operators


def test_a_mutant(tmp_path):
    mutation = check_mutations.MUTATIONS[0]
    check_mutations.make_tree(mutation, str(tmp_path))
    changed = (tmp_path / "csrc" / mutation.file).read_text(encoding="utf-8")
    assert mutation.new in changed and mutation.old not in changed
    with pytest.raises(ValueError, match="expected .* once, found it 0 times"):
        check_mutations.make_tree(mutation._replace(old="not in there"), str(tmp_path / "another"))
