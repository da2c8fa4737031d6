"""The YAML reader: values as they look, and everything else an error with its place."""

import json

import pytest
import yaml

from vllm_manager.manifest import yaml_nodes
from vllm_manager.manifest.document import Document
from vllm_manager.manifest.source import Source
from vllm_manager.manifest.yaml_nodes import read


@pytest.fixture(autouse=True, params=["CSafeLoader", "SafeLoader"])
def loader(request, monkeypatch):
    monkeypatch.setattr(yaml_nodes, "LOADER", getattr(yaml, request.param))


def parse(text):
    trees, problems = read(Source(path="m.yaml", text=text))
    return trees, problems


def document(text):
    (tree,), problems = parse(text)
    assert problems == []
    return Document(source=Source(path="m.yaml", text=text), root=tree)


def refused(text):
    trees, (problem,) = parse(text)
    assert trees == []
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("abc", "abc"), ("'no'", "no"), ('"1:30"', "1:30"), ("", None), ("~", None), ("null", None),
        ("true", True), ("False", False), ("0", 0), ("-12", -12), ("+3", 3), ("1.5", 1.5), (".5", 0.5),
        ("1e3", 1000.0), ("0.32.0", "0.32.0"), ("127.0.0.1", "127.0.0.1"), ("2024-01-02", "2024-01-02"),
        ("::1", "::1"), ("[a, 1]", ["a", 1]), ("{x: {y: z}}", {"x": {"y": "z"}}), ("y", "y"),
        ("|\n  text\n", "text\n"),
    ],
)  # fmt: skip
def test_scalars_are_what_they_look_like(text, value):
    data = document(f"k: {text}").data()
    assert data == {"k": value}
    assert type(data["k"]) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "Yes", "on", "OFF", "1:30", "1:30:00", "0777", "-012", "0x1F", "0o17", "0b1", "1_000", ".inf",
     "-.INF", ".nan", "1e999", "9" * 30, "9" * 5000, "00.5"],
)  # fmt: skip
def test_surprises_are_errors_at_their_place(text):
    _, (problem,) = parse(f"a: 1\nk:  {text}")
    assert (problem.line, problem.column) == (2, 5)
    assert "quote it" in problem.hint


def test_a_duplicate_key_names_the_first():
    _, (problem,) = parse("a: 1\nb: {c: 1,\n  c: 2}\n")
    assert (problem.line, problem.column) == (3, 3)
    assert "line 2" in problem.cause


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("a: b: c", 1, "mapping values"),
        ("a: 1\n\tb: 2", 2, None),
        ("a: [1, 2", 1, None),
        ("a: 'x", 1, None),
        ("a: !!python/object/apply:os.system [x]", 1, "tags"),
        ("a: !!str 1", 1, "tags"),
        ("a: !x 1", 1, "tags"),
        ("a: *nowhere", 1, "alias"),
        ("a: &x [*x]", 1, "alias"),
        ("a: &x {b: 1}\nc:\n  <<: *x", 3, "merge"),
        ("? [a]\n: b", 1, "key"),
        ("? {a: b}\n: b", 1, "key"),
        ('a: "x\\0y"', 1, "NUL"),
        ("a: " + "[" * 100, 1, "deeper"),
        ("a: " + "[" * 100_000, 1, "deeper"),
        ("{a: " * 5000, 1, "deeper"),
        ("- " * 5000, 1, "deeper"),
        ("a: [" + "1," * 20_000 + "]", 1, "more than 10,000"),
    ],
)
def test_what_a_manifest_may_not_hold(text, line, cause):
    error = refused(text)
    assert cause is None or cause in error.cause
    assert error.line is not None
    assert error.line >= line
    assert len(error.source or "") < 200


def test_a_billion_laughs_are_cut_short():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    assert "more than 10,000" in refused(text).cause


def test_aliases_cannot_pile_up_depth():
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
    assert "deeper" in refused(text).cause


def test_tabs_get_a_hint():
    assert "spaces" in refused("a:\n\tb: 1\n").hint


def test_flow_collections_take_no_dollar_brace():
    assert "{env: NAME}" in refused("gpus: {count: ${GPUS}}").hint


# --- several documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("---\n", 0),
        ("# x\n", 0),
        ("a: 1", 1),
        ("a: 1\n---\n", 1),
        ("---\n---\na: 1\n...\n---\nb: 2\n", 2),
    ],
)
def test_empty_documents_do_not_count(text, count):
    trees, problems = parse(text)
    assert len(trees) == count
    assert problems == []


def test_what_is_wrong_in_one_document_does_not_hide_the_others():
    trees, problems = parse(
        "a: !x 1\nb: [[2]]\n---\nc: 3\n---\nd: no\n---\ne: " + "[" * 40 + "]" * 40 + "\n---\nf: [\n"
    )
    assert [list(tree.value) for tree in trees] == [["c"], ["d"]]
    assert [problem.line for problem in problems] == [1, 6, 8, 11]


def test_an_anchor_is_known_in_its_own_document_only():
    trees, (problem,) = parse("a: &x 1\n---\nb: *x\n")
    assert len(trees) == 1
    assert (problem.line, problem.column) == (3, 4)


def test_the_size_is_that_of_the_whole_file():
    _, problems = parse("---\na: [1, 2]\n" * 5000)
    assert ["more than 10,000" in problem.cause for problem in problems] == [True]


# --- places ---------------------------------------------------------------------------------------------


def test_places_of_keys_values_and_missing_fields():
    tree = document("a: 1\nb:\n  c: [x, y]\n")
    assert at(tree, "b", "c", 1) == (3, 10)
    assert at(tree, "b", "c", 2) == (3, 6)
    assert at(tree, "b", "c", key=True) == (3, 3)
    assert at(tree, "b", "gone") == (3, 3)
    assert at(tree, "b", "gone", "a") == (3, 3)
    assert at(tree, "gone") == (1, 1)


def at(tree, *path, key=False):
    error = tree.error(path, "x", at_key=key)
    return error.line, error.column


def test_lines_are_counted_as_yaml_counts_them():
    error = document("a: 1\r\nb: \x85c: 2\u2028d: 3\n").error(("d",), "x")
    assert error.source == "d: 3"


@pytest.mark.parametrize(
    "text",
    [
        "api_key: s3cret words: x",
        "{api_key: s3cret, a: [}",
        json.dumps({"api_key": "s3cret"})[:-1] + " ]",
        "api_key:\n  s3cret: : x",
        "api_key: | # x\n\ts3cret",
        "env:\n  HF_TOKEN: s3cret: x",
        "api_key: s3cret\napi_key: s3cret",
    ],
)
def test_a_secret_is_not_quoted(text):
    _, (error,) = parse(text)
    assert "s3cret" not in str(error.payload())
