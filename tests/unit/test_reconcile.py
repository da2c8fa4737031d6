import json

import pytest

from vllm_manager.manifest.model import Deployment
from vllm_manager.reconcile import Known, decide, describe_changes, port_conflict, undeclared, unsupported
from vllm_manager.types import Action, Phase

BASE = {"name": "tiny", "model": "org/tiny"}


def deployment(**fields) -> Deployment:
    # As the manifest layer makes it: from JSON, whose lists are the tuples' texts.
    return Deployment.from_json(json.loads(json.dumps(BASE | fields)))


def known(phase: Phase = Phase.READY, source: str = "/m/tiny.yaml", **fields) -> Known:
    return Known(deployment=deployment(**fields), source=source, phase=phase)


# --- changes, in words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"max_model_len": 4096}, {"max_model_len": 8192}, ["max_model_len: 4096 → 8192"]),
        ({}, {"max_model_len": 8192}, ["max_model_len: added (8192)"]),
        ({"max_model_len": 4096}, {}, ["max_model_len: removed (was 4096)"]),
        ({}, {"args": {"max-num-seqs": 256}}, ["args.max-num-seqs: added (256)"]),
        (
            {"args": {"seed": 1, "enforce-eager": True}},
            {"args": {"enforce-eager": False}},
            ["args.seed: removed (was 1)", "args.enforce-eager: true → false"],
        ),
        ({}, {"args": {"seed": None}}, ["args.seed: added (null)"]),
        ({}, {"args": {"rope-scaling": {"factor": 2}}}, ['args.rope-scaling: added ({"factor": 2})']),
        (
            {"args": {"rope-scaling": {"factor": 2, "x": 1}}},
            {"args": {"rope-scaling": {"factor": 4, "x": 1}}},
            ["args.rope-scaling.factor: 2 → 4"],
        ),
        ({"args": {"lora-dtype": "x" * 60}}, {"args": {"lora-dtype": "y"}}, ["args.lora-dtype: changed"]),
        ({"aliases": ["a"]}, {"aliases": ["a", "b"]}, ["aliases: a → a, b"]),
        ({"gpus": {"memory": 30 << 30}}, {"gpus": {"memory": 3 << 29}}, ["gpus.memory: 30 GiB → 1.5 GiB"]),
        ({"port": 8000}, {"port": 8001, "host": "::1"}, ["host: 127.0.0.1 → ::1", "port: 8000 → 8001"]),
        ({}, {"engine": {"version": "0.32.0"}}, ["engine.version: added (0.32.0)"]),
        (
            {"tensor_parallel_size": 1},
            {"tensor_parallel_size": 2},
            ["tensor_parallel_size: 1 → 2", "gpus.count: 1 → 2"],
        ),
        ({"chat_template": "{% a %}\n{% b %}"}, {"chat_template": "c"}, ["chat_template: changed"]),
    ],
)  # fmt: skip
def test_changes_that_take_a_new_instance(old, new, words):
    assert describe_changes(deployment(**old), deployment(**new)) == (tuple(words), ())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({}, {"readiness": {"timeout": 90.0}}, "readiness.timeout: 1200 s → 90 s"),
        ({}, {"liveness": {"enabled": False}}, "liveness.enabled: true → false"),
        ({}, {"restart": {"policy": "never"}}, "restart.policy: on-failure → never"),
        ({}, {"stop": {"drain": 0.0}}, "stop.drain: 30 s → 0 s"),
        ({}, {"expose_without_key": True}, "expose_without_key: false → true"),
    ],
)  # fmt: skip
def test_changes_that_apply_without_one(old, new, words):
    assert describe_changes(deployment(**old), deployment(**new)) == ((), (words,))


SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"env": {"A": "old"}}, {"env": {"A": SECRET, "B": SECRET}}, ["env.A: changed", "env.B: added"]),
        ({"env": {"A": SECRET}}, {}, ["env.A: removed"]),
        ({"args": {"hub-token": SECRET}}, {"args": {"hub-token": "x"}}, ["args.hub-token: changed"]),
        ({}, {"args": {"hub-token": SECRET}}, ["args.hub-token: added"]),
        ({}, {"api_key": "generate"}, ["api_key: added"]),
        ({"api_key": "generate"}, {"api_key": {"env": "KEY"}}, ["api_key: changed"]),
        ({"api_key": {"file": "/k"}}, {}, ["api_key: removed"]),
    ],
)
def test_what_may_be_secret_is_not_quoted(old, new, words):
    assert describe_changes(deployment(**old), deployment(**new)) == (tuple(words), ())


def test_the_words_name_something_exactly_when_the_fingerprint_differs():
    variants = [
        deployment(),
        deployment(port=81),
        deployment(aliases=["b"]),
        deployment(args={"seed": None}),
        deployment(env={"A": "x"}),
        deployment(readiness={"timeout": 5.0}),
        deployment(lora_modules={"l": "org/lora"}),
    ]
    for one in variants:
        for other in variants:
            restarting, applying = describe_changes(one, other)
            assert bool(restarting) == (one.fingerprint != other.fingerprint)
            assert bool(restarting or applying) == (one != other)


# --- decisions ---------------------------------------------------------------------------------------

RUNNING = [phase for phase in Phase if phase not in (Phase.STOPPED, Phase.FAILED, Phase.BACKOFF)]


def test_what_is_not_known_starts():
    assert decide(deployment(), None).action is Action.START


@pytest.mark.parametrize("phase", RUNNING)
def test_what_runs_is_replaced_only_for_a_reason(phase):
    assert decide(deployment(), known(phase)).action is Action.UNCHANGED
    assert decide(deployment(port=81), known(phase)).action is Action.RESTART
    assert decide(deployment(), known(phase), recreate=True).action is Action.RESTART
    watched = decide(deployment(restart={"policy": "never"}), known(phase))
    assert (watched.action, len(watched.changes), len(watched.applied)) == (Action.UNCHANGED, 0, 1)


@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED, Phase.BACKOFF])
def test_what_does_not_run_runs_again(phase):
    for fields in ({}, {"port": 81}):
        decision = decide(deployment(**fields), known(phase))
        assert decision.action is Action.RESUME
        assert len(decision.changes) == len(fields)


def test_a_new_value_of_the_key_is_a_change_that_is_told_once():
    one = decide(deployment(api_key="given"), known(api_key="given"), key_changed=True)
    assert (one.action, one.changes) == (Action.RESTART, ("api_key: changed",))
    other = decide(deployment(api_key="given"), known(), key_changed=True)
    assert other.changes == ("api_key: added",)


def test_undeclared_is_only_what_the_read_files_declared_before():
    there = {name: known(source=f"/m/{name}.yaml") for name in ("a", "b", "c")}
    assert undeclared(["a"], there, lambda source: source != "/m/c.yaml") == ("b",)


def test_a_pinned_port_belongs_to_one():
    others = {"other": Known(deployment=deployment(name="other", port=81), source="/o", phase=Phase.STOPPED)}
    conflict = port_conflict(deployment(port=81), others)
    assert conflict is not None
    assert conflict.path == "/o"
    assert port_conflict(deployment(port=82), others) is None
    assert port_conflict(deployment(), others) is None
    assert port_conflict(deployment(name="other", port=81), others) is None


def test_what_this_version_cannot_do():
    assert unsupported(deployment()) is None
    found = unsupported(deployment(engine={"launcher": "docker", "image": "vllm/vllm-openai:v0.32.0"}))
    assert found is not None
    assert found[:2] == (("engine", "launcher"), "docker is not supported yet by this version")
    found = unsupported(deployment(replicas=2))
    assert found is not None
    assert found[0] == ("replicas",)
