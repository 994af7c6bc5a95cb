"""docs/install.md says what the code says: findings, tables, variables."""

import ast
import os
import re

import pytest

from fcos_core.build import findings, hostcc, releases, sources, variables

ROOT = os.path.dirname(sources.PACKAGE_DIR)


@pytest.fixture(scope="module")
def text():
    with open(os.path.join(ROOT, "docs", "install.md"), encoding="utf-8") as stream:
        return stream.read()


def table(text, name):
    """The rows of a table, without its head, as lists of cells."""
    lines = text.split("<!-- table: {} -->\n".format(name))[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_finding_is_explained(text):
    with open(findings.__file__, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [call for call in calls if getattr(call.func, "id", "") == "Finding"]
    names = {ast.literal_eval(call.args[1]) for call in calls if not isinstance(call.args[1], ast.Name)}
    assert len(names) > 35
    names |= {"toolkit-missing", "toolkit-mismatch"}  # one of the two, by what was found
    assert [name for name in sorted(names) if "`{}`".format(name) not in text] == []


def test_every_answer_is_also_in_chinese(text):
    answers = text.split("## By error message")[1].split("## Which versions")[0].split("\n### ")[1:]
    assert len(answers) > 20
    assert [answer.splitlines()[0] for answer in answers if not re.search("[\u4e00-\u9fff]", answer)] == []


def test_table_of_releases(text):
    expected = [
        [
            release.version,
            "3.{} to 3.{}".format(*release.pythons),
            release.cuda,
            " ".join(map(str, release.archs)),
        ]
        for release in releases.RELEASES
    ]
    assert table(text, "releases") == expected


def test_table_of_compilers(text):
    studios = {"2019": 1929, "2022 (17.9)": 1939, "2022": 1949}
    seen = set()
    for versions, gcc, clang, studio in table(text, "compilers"):
        for version in versions.split(", "):
            numbers = tuple(int(part) for part in version.split("."))
            assert hostcc.limits_in_table(numbers) == (int(gcc), int(clang), studios[studio]), version
            seen.add(numbers)
    assert {first for first, _ in hostcc.TABLE} <= seen and max(seen) == hostcc.NEWEST_IN_TABLE


def test_table_of_variables(text):
    assert table(text, "variables") == [["`{}`".format(name), what] for name, what in variables.VARIABLES.items()]


def test_readme_leads_there():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as stream:
        assert "docs/install.md" in stream.read()


def test_links_of_the_page(text):
    headings = {re.sub(r"[^\w -]", "", line[2:].strip().lower()).strip().replace(" ", "-")
                for line in text.splitlines() if line.startswith(("## ", "### "))}  # fmt: skip
    for target in re.findall(r"\]\(#([\w-]+)\)", text):
        assert target in headings
    assert os.path.isfile(os.path.join(ROOT, "docs", "..", "README.md"))


@pytest.mark.parametrize("name", ["test.yml", "wheels.yml"])
def test_workflows_are_readable_and_ask_for_releases_that_exist(name):
    yaml = pytest.importorskip("yaml")
    with open(os.path.join(ROOT, ".github", "workflows", name), encoding="utf-8") as stream:
        jobs = yaml.safe_load(stream)["jobs"]
    known = {release.version: release for release in releases.RELEASES}
    for job in jobs.values():
        for cell in job.get("strategy", {}).get("matrix", {}).get("include", []):
            torch = re.search(r"\d+\.\d+\.\d+", cell["torch"])
            if torch and torch.group(0) in known and "python" in cell:
                first, last = known[torch.group(0)].pythons
                assert first <= int(cell["python"].split(".")[1]) <= last, cell
            if torch and "index" in cell:
                assert "cu" + known[torch.group(0)].cuda.replace(".", "") == cell["index"], cell
