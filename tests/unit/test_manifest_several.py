"""Several deployments: in one file, in several files, in directories; and what they may not share."""

from pathlib import Path

import pytest

from vllm_manager.errors import (
    ManifestConflictError,
    ManifestError,
    ManifestErrors,
    ManifestFieldError,
    ManifestSyntaxError,
    ManifestUnreadable,
)
from vllm_manager.manifest.load import load_manifest, load_manifests

BASE = "name: tiny\nmodel: owner/repo\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="m.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text: load_manifest(write(text), {})


@pytest.fixture
def deployments(load):
    return lambda text: [loaded.deployment for loaded in load(text)]


@pytest.fixture
def refused(load):
    def refused(text, kind=ManifestError):
        with pytest.raises(kind) as caught:
            load(text)
        return caught.value

    return refused


def place(error):
    return error.field, error.line, error.column


def places(error):
    return [place(inner) for inner in error.errors]


def named(*names):
    return "".join(f"  - {{name: {name}, model: o/r}}\n" for name in names)


# --- YAML documents -----------------------------------------------------------------------------------


def test_documents_are_deployments_and_empty_ones_are_none(deployments):
    text = "---\nname: a\nmodel: o/r\n---\n# nothing\n---\nname: b\nmodel: o/r\n---\n"
    assert [each.name for each in deployments(text)] == ["a", "b"]


def test_a_document_may_hold_a_list_of_deployments(deployments):
    text = f"{BASE}---\ndefaults: {{dtype: float16}}\ndeployments:\n{named('b')}"
    assert [(each.name, each.dtype) for each in deployments(text)] == [("tiny", None), ("b", "float16")]


def test_the_errors_of_all_documents_come_together(refused):
    documents = ["name: A\nmodel: o/r\n", "name: b\nmodel: o/r\nport: x\nhost: no\n", "- c\n", "name: !x d\n"]
    text = "---\n".join(documents)
    error = refused(text, ManifestErrors)
    assert places(error) == [("name", 1, 7), ("port", 6, 7), (None, 7, 7), (None, 9, 1), (None, 11, 7)]


# --- a list with defaults -----------------------------------------------------------------------------


def test_what_a_deployment_says_wins_over_the_defaults(deployments):
    a, b = deployments(
        "defaults: {model: o/r, dtype: float16, aliases: [x, y]}\n"
        "deployments:\n  - {name: a}\n  - {name: b, model: o/other, dtype: null, aliases: [z]}\n"
    )
    assert (a.model, a.dtype, a.aliases) == ("o/r", "float16", ("x", "y"))
    assert (b.model, b.dtype, b.aliases) == ("o/other", None, ("z",))


@pytest.mark.parametrize(
    ("field", "default", "own", "merged"),
    [
        ("args", "{a1: 1, b1: 2}", "{b1: 3}", {"a1": 1, "b1": 3}),
        ("args", "{max_num_seqs: 1}", "{max-num-seqs: 2}", {"max-num-seqs": 2}),
        ("args", "{a1: {x: 1, y: 2}}", "{a1: {x: 3}}", {"a1": {"x": 3}}),
        ("args", "{a1: {x: 1}}", "{a1: {x: null}}", {"a1": {"x": None}}),
        ("env", "{A: x, B: y}", "{B: z}", {"A": "x", "B": "z"}),
        ("lora_modules", "{my-sql: o/x}", "{my_sql: o/y}", {"my-sql": "o/x", "my_sql": "o/y"}),
    ],
)
def test_mappings_are_merged_by_key(deployments, field, default, own, merged):
    (deployment,) = deployments(
        f"defaults: {{{field}: {default}}}\ndeployments:\n  - {{name: a, model: o/r, {field}: {own}}}\n"
    )
    assert getattr(deployment, field) == merged


def test_all_sections_are_merged_by_key(deployments):
    (deployment,) = deployments(
        "defaults:\n"
        "  gpus: {memory: 5GiB, name: '*A100*'}\n"
        '  engine: {version: "0.32.0"}\n'
        "  readiness: {timeout: 5m, stall: 1m}\n"
        "  liveness: {after: 5m}\n"
        "  restart: {max_restarts: 3}\n"
        "  stop: {drain: 0}\n"
        "deployments:\n"
        "  - name: a\n"
        "    model: o/r\n"
        "    gpus: {memory: 6GiB}\n"
        "    engine: {version: null, python: /ve}\n"
        "    readiness: {stall: 2m}\n"
        "    liveness: {timeout: 1m}\n"
        "    restart: {policy: never}\n"
        "    stop: {grace: 1m}\n"
    )
    assert (deployment.gpus.memory, deployment.gpus.name) == (6 * 2**30, "*A100*")
    assert (deployment.engine.version, deployment.engine.python) == (None, "/ve")
    assert (deployment.readiness.timeout, deployment.readiness.stall) == (300, 120)
    assert (deployment.liveness.after, deployment.liveness.timeout) == (300, 60)
    assert (deployment.restart.max_restarts, deployment.restart.policy) == (3, "never")
    assert (deployment.stop.drain, deployment.stop.grace) == (0, 60)


@pytest.mark.parametrize(
    ("default", "own", "count"), [("{memory: 5GiB}", "none", 0), ("none", "{count: 1}", 1)]
)
def test_other_values_replace_the_default(deployments, default, own, count):
    (deployment,) = deployments(
        f"defaults: {{gpus: {default}}}\ndeployments:\n  - {{name: a, model: o/r, gpus: {own}}}\n"
    )
    assert (deployment.request.count, deployment.gpus.memory) == (count, None)


@pytest.mark.parametrize(
    ("field", "default", "own", "left"),
    [
        ("args", "{a1: 1, b1: 2}", "{a1: null}", {"b1": 2}),
        ("args", "{max_num_seqs: 1}", "{max-num-seqs: null, b1: 2}", {"b1": 2}),
        ("args", "{a1: 1}", "null", {}),
        ("env", "{A: x, B: y}", "{A: null}", {"B": "y"}),
        ("env", "{A: x}", "", {}),
        ("lora_modules", "{sql: o/x, json: o/y}", "{json: null}", {"sql": "o/x"}),
        ("lora_modules", "{sql: o/x}", "null", {}),
    ],
)
def test_null_takes_a_default_back(deployments, field, default, own, left):
    a, b = deployments(
        f"defaults: {{{field}: {default}}}\ndeployments:\n"
        f"  - {{name: a, model: o/r, {field}: {own}}}\n  - {{name: b, model: o/r}}\n"
    )
    assert getattr(a, field) == left
    assert getattr(b, field) != left


def test_null_takes_the_default_of_a_section_back(deployments):
    (deployment,) = deployments(
        "defaults:\n  readiness: {timeout: 5m, stall: 1m}\n  liveness: {after: 5m}\n  gpus: none\n"
        '  engine: {launcher: docker, image: x, version: "0.32.0"}\n'
        "deployments:\n  - name: a\n    model: o/r\n    readiness: {timeout: null}\n    liveness: null\n"
        "    gpus:\n    engine: {launcher: null, image: null}\n"
    )
    assert (deployment.readiness.timeout, deployment.readiness.stall) == (1200, 60)
    assert (deployment.liveness.after, deployment.request.count) == (60, 1)
    assert (deployment.engine.launcher, deployment.engine.version) == ("process", "0.32.0")


@pytest.mark.parametrize(
    ("defaults", "own", "expected"),
    [
        ("{}", "readiness: {timeout: null}", ("readiness.timeout", 3, 48)),
        ("{readiness: {stall: 1m}}", "readiness: {timeout: null}", ("readiness.timeout", 3, 48)),
        ("{}", "readiness: null", ("readiness", 3, 38)),
        ("{env: {A: x}}", "env: {B: null}", ("env.B", 3, 36)),
        ("{host: 127.0.0.2}", "host: null", ("host", 3, 33)),
    ],
)
def test_null_is_no_value_where_it_takes_nothing_back(refused, defaults, own, expected):
    error = refused(f"defaults: {defaults}\ndeployments:\n  - {{name: a, model: o/r, {own}}}\n")
    assert place(error) == expected
    assert "got nothing" in error.cause


def test_a_null_argument_without_a_default_is_left_to_the_flag_check(deployments):
    (deployment,) = deployments(
        "defaults: {args: {b1: 1}}\ndeployments:\n" + ("  - {name: a, model: o/r, args: {a1: null}}\n")
    )
    assert deployment.args == {"a1": None, "b1": 1}


def test_an_unset_variable_of_the_defaults_is_located_there(refused):
    error = refused("defaults: {dtype: '${GONE}'}\ndeployments:\n" + named("a"))
    assert place(error) == ("defaults.dtype", 1, 19)


def test_a_key_replaces_the_default_one(deployments):
    (deployment,) = deployments(
        "defaults: {api_key: {env: A}}\ndeployments:\n  - {name: a, model: o/r, api_key: {file: /key}}\n"
    )
    assert deployment.api_key.file == "/key"


def test_anchors_work_across_the_list(deployments):
    text = (
        "deployments:\n  - &a {name: a, model: o/r, args: &f {x1: 1}}\n  - {name: b, model: o/r, args: *f}\n"
    )
    assert [each.args for each in deployments(text)] == [{"x1": 1}, {"x1": 1}]


@pytest.mark.parametrize(
    ("text", "expected", "cause", "hint"),
    [
        ("deployments: []", ("deployments", 1, 14), "is empty", "- name:"),
        ("deployments:", ("deployments", 1, 13), "expected a list", "- name:"),
        ("deployments: {name: a}", ("deployments", 1, 14), "expected a list", "- name:"),
        ("deployments: [a]", ("deployments", 1, 15), "expected the fields", "- name:"),
        ("defaults: {dtype: x}", ("defaults", 1, 1), "no deployments", "top level"),
        ("deployment:\n" + named("a"), ("deployment", 1, 1), "unknown field", "`deployments`"),
        ("deployments:\n" + named("a") + "port: 80", ("port", 3, 1), "can't stand beside", "defaults"),
        ("defaults: []\ndeployments:\n" + named("a"), ("defaults", 1, 11), "expected a mapping", None),
        ("defaults: {name: x}\ndeployments:\n" + named("a"), ("defaults.name", 1, 12), "can't be", "its own"),
        (
            "defaults: {port: 80}\ndeployments:\n" + named("a"),
            ("defaults.port", 1, 12),
            "can't be",
            "its own",
        ),
    ],
)
def test_a_file_that_is_no_list_of_deployments(refused, text, expected, cause, hint):
    error = refused(text, ManifestFieldError)
    assert place(error) == expected
    assert cause in error.cause
    assert hint is None or hint in error.hint


def test_an_error_is_located_in_its_own_deployment(refused):
    error = refused("deployments:\n" + named("a") + "  - name: b\n    model: o/r\n    gpus: {cuont: 1}\n")
    assert place(error) == ("gpus.cuont", 5, 12)
    assert "`count`" in error.hint


def test_a_missing_field_is_located_at_its_deployment(refused):
    error = refused("defaults: {dtype: float16}\ndeployments:\n  - name: a\n  - model: o/r\n", ManifestErrors)
    assert places(error) == [("model", 3, 5), ("name", 4, 5)]


def test_an_error_in_the_defaults_is_located_there_and_told_once(refused):
    text = "defaults:\n  prot: 1\n  gpus: {count: x}\n  api_key: {}\ndeployments:\n" + named("a", "b", "c")
    error = refused(text, ManifestErrors)
    assert places(error) == [
        ("defaults.prot", 2, 3),
        ("defaults.gpus.count", 3, 17),
        ("defaults.api_key.env", 4, 12),
    ]
    assert not any("deployment of line" in inner.cause for inner in error.errors)


def test_an_error_of_the_defaults_with_some_deployments_says_with_which(refused):
    own = "  - {name: b, model: o/r, gpu_memory_utilization: 0.5}\n"
    error = refused("defaults: {gpus: {memory: 5GiB}}\ndeployments:\n" + named("a") + own)
    assert place(error) == ("defaults.gpus.memory", 1, 27)
    assert "exclude each other (in the deployment of line 4)" in error.cause
    error = refused("defaults: {gpus: {memory: 5GiB}}\ndeployments:\n" + own + own + named("a"))
    assert "(in the deployment of line 3 and 1 more)" in error.cause


def test_a_default_that_everybody_replaces_is_not_looked_at(deployments):
    text = "defaults: {dtype: 16}\ndeployments:\n  - {name: a, model: o/r, dtype: float16}\n"
    assert deployments(text)[0].dtype == "float16"


def test_errors_found_later_are_located_in_the_deployment_or_in_its_defaults(load):
    _, b = load(
        "defaults:\n  args: {max_num_seqs: 1}\n  dtype: float16\ndeployments:\n"
        + named("a")
        + "  - name: b\n    model: o/r\n    args: {block_size: 2}\n"
    )
    assert place(b.error(("args", "max-num-seqs"), "x")) == ("defaults.args.max_num_seqs", 2, 24)
    assert place(b.error(("args", "max-num-seqs"), "x", at_key=True)) == ("defaults.args.max_num_seqs", 2, 10)
    assert place(b.error(("args", "block-size"), "x")) == ("args.block_size", 8, 24)
    assert place(b.error(("args", "other"), "x")) == ("args.other", 8, 11)
    assert place(b.error(("dtype",), "x", "y", at_key=True)) == ("defaults.dtype", 3, 3)
    assert place(b.error(("name",), "x")) == ("name", 6, 11)


def test_defaults_cannot_pile_up(refused):
    defaults = "defaults: {args: {" + ", ".join(f"a{n}: 1" for n in range(1000)) + "}}\n"
    error = refused(defaults + "deployments:\n" + named(*(f"d{n}" for n in range(20))))
    assert "more than 10,000 values" in error.cause


# --- several files and directories ---------------------------------------------------------------------


def names(paths):
    return [loaded.deployment.name for loaded in load_manifests(paths, {})]


def test_good_files_load_in_the_order_given(write):
    assert names([write(BASE.replace("tiny", name), f"{name}.yaml") for name in ("b", "a")]) == ["b", "a"]


def test_a_directory_stands_for_the_manifests_in_it(write, tmp_path):
    for name in ("d/b.yaml", "d/a.yml", "d/.hidden.yaml", "d/notes.txt"):
        write(f"name: {Path(name).stem.strip('.')}\nmodel: o/r\n", name)
    (tmp_path / "d" / "sub.yaml").mkdir()
    last = write(BASE, "last.yaml")
    assert names([tmp_path / "d", last]) == ["a", "b", "tiny"]


def test_a_file_counts_once(write, tmp_path, monkeypatch):
    path = write(BASE)
    (tmp_path / "link.yaml").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert names([path, tmp_path, Path("m.yaml"), tmp_path / "link.yaml"]) == ["tiny"]


def test_a_directory_without_manifests(write, tmp_path):
    write("x", "d/notes.txt")
    with pytest.raises(ManifestUnreadable, match="no manifests in it") as caught:
        load_manifests([tmp_path / "d"], {})
    assert caught.value.path == str(tmp_path / "d")
    assert "*.yaml" in caught.value.hint


def test_a_directory_that_cannot_be_read(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)  # a mode would not stop root
    with pytest.raises(ManifestUnreadable, match="can't be read: Permission denied"):
        load_manifests([tmp_path], {})


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop.yaml"])
def test_impossible_file_names(tmp_path, name):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(ManifestUnreadable):
        load_manifests([tmp_path / name], {})


def test_the_errors_of_all_files_come_together(write, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = [write("name: A\nmodel: a/b\n", "one.yaml"), tmp_path / "gone.yaml", write("x: [", "three.yaml")]
    with pytest.raises(ManifestErrors) as caught:
        load_manifests([tmp_path / "empty", *paths, write(BASE, "fine.yaml")], {})
    kinds = [type(error) for error in caught.value.errors]
    assert kinds == [ManifestUnreadable, ManifestFieldError, ManifestUnreadable, ManifestSyntaxError]


# --- conflicts -----------------------------------------------------------------------------------------


def test_two_deployments_of_one_name(write):
    first, second = write(BASE, "one.yaml"), write("# x\n" + BASE, "two.yaml")
    with pytest.raises(ManifestConflictError) as caught:
        load_manifests([first, second], {})
    assert place(caught.value) == ("name", 2, 7)
    assert caught.value.path == str(second)
    assert caught.value.cause == f"the name tiny is taken by {first}:1"
    assert caught.value.source == "name: tiny"


def test_two_deployments_of_one_name_in_one_file(refused):
    error = refused("deployments:\n" + named("a", "b", "a"), ManifestConflictError)
    assert place(error) == ("name", 4, 12)
    assert error.cause.endswith("m.yaml:2")


def test_a_conflict_is_told_beside_other_errors(refused):
    error = refused(BASE + "---\n" + BASE + "---\nname: C\nmodel: o/r\n", ManifestErrors)
    assert {place(inner) for inner in error.errors} == {("name", 4, 7), ("name", 7, 7)}


@pytest.mark.parametrize(
    ("hosts", "conflict"),
    [
        (("127.0.0.1", "127.0.0.1"), True),
        (("localhost", "127.0.0.1"), True),
        (("0.0.0.0", "127.0.0.1"), True),
        (("127.0.0.1", "127.0.0.2"), False),
    ],
)
def test_two_deployments_of_one_port(refused, deployments, hosts, conflict):
    text = "defaults: {api_key: generate}\ndeployments:\n" + "".join(
        f"  - {{name: d{n}, model: o/r, host: {host}, port: 8000}}\n" for n, host in enumerate(hosts)
    )
    if not conflict:
        assert len(deployments(text)) == 2
        return
    error = refused(text, ManifestConflictError)
    assert (error.field, error.line) == ("port", 4)
    assert error.cause.endswith("m.yaml:3")
