import pytest

from tests.vllm_flags import vllm_0_32
from vllm_manager.command import arguments, environment, inherited, notes
from vllm_manager.manifest.model import Deployment
from vllm_manager.types import Engine, PlacedGpu, Placement

GIB = 1 << 30
ENGINE = Engine(name="e", executable="/opt/e/bin/vllm")
CPU = Placement()


def deployment(**fields):
    return Deployment.from_json({"name": "tiny", "model": "org/tiny", "gpus": {"count": 0}} | fields)


def two_gpus(first=30 * GIB, second=30 * GIB):
    return Placement(
        gpus=(
            PlacedGpu(index=1, uuid="GPU-1", memory=first, memory_total=40 * GIB),
            PlacedGpu(index=3, uuid="GPU-3", memory=second, memory_total=40 * GIB),
        )
    )


def environment_of(spec, placement=CPU, api_key=None, base=None):
    return environment(
        spec, engine=ENGINE, placement=placement, api_key=api_key, base=base or {}, tmp="/t", title="vm-x"
    )


def test_the_model_comes_first_and_every_name_is_served():
    found = arguments(deployment(served_model_name=["a", "b"], aliases=["c", "a"]), CPU, 8000)
    assert found == (
        "serve",
        "org/tiny",
        "--host",
        "127.0.0.1",
        "--port",
        "8000",
        "--served-model-name",
        "a",
        "b",
        "c",
    )


def test_sizes_are_rendered_when_they_say_something():
    found = arguments(deployment(tensor_parallel_size=2, gpus={"count": 2}), two_gpus(), 1)
    assert found[found.index("--tensor-parallel-size") + 1] == "2"
    assert "--pipeline-parallel-size" not in found


def test_the_smallest_share_is_what_vllm_gets():
    """One --gpu-memory-utilization holds for all GPUs: a larger one would break the smaller lease."""
    found = arguments(deployment(tensor_parallel_size=2, gpus={"count": 2}), two_gpus(30 * GIB, 20 * GIB), 1)
    assert found[found.index("--gpu-memory-utilization") + 1] == "0.5"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, ["--x-y"]),
        (False, ["--no-x-y"]),
        (None, []),
        (3, ["--x-y", "3"]),
        (0.5, ["--x-y", "0.5"]),
        ("text", ["--x-y", "text"]),
        ([1, 2], ["--x-y", "1", "2"]),
        (["a=/p", {"k": 1}], ["--x-y", "a=/p", '{"k": 1}']),
        ({"mode": 3, "on": True}, ["--x-y", '{"mode": 3, "on": true}']),
    ],
)
def test_args_are_rendered_as_vllm_reads_them(value, expected):
    found = list(arguments(deployment(args={"x-y": value}), CPU, 1))
    assert found[found.index("--served-model-name") + 3 :] == expected


def test_args_are_rendered_as_that_engine_reads_them():
    args = {"asc": 2, "allowed-origins": ["*"], "middleware": ["a", "b"], "seed": -1, "cc.mode": 3}
    found = arguments(deployment(args=args), CPU, 1, vllm_0_32())
    assert found[found.index("--api-server-count") :] == (
        "--api-server-count", "2", "--allowed-origins", '["*"]', "--middleware", "a", "--middleware", "b",
        "--seed=-1", "--compilation-config.mode", "3",
    )  # fmt: skip


def test_the_fields_of_vllm_become_flags():
    fields = {
        "revision": "main",
        "runner": "pooling",
        "convert": "embed",
        "dtype": "half",
        "quantization": "awq",
    }
    found = arguments(deployment(**fields, max_model_len="auto"), CPU, 1)
    for name, value in {**fields, "max-model-len": "auto"}.items():
        assert found[found.index(f"--{name}") + 1] == value


def test_adapters_are_json_where_a_comma_or_an_equals_sign_would_split_them():
    modules = {"a": "/p/q=1", "b": "/p,q", "c": "org/c"}
    found = arguments(deployment().model_copy(update={"lora_modules": modules}), CPU, 1)
    at = found.index("--lora-modules")
    assert "--enable-lora" in found
    assert found[at + 1 : at + 4] == ("a=/p/q=1", '{"name": "b", "path": "/p,q"}', "c=org/c")


def test_no_secret_is_on_the_command_line():
    spec = deployment(api_key="given")
    assert "hunter22" not in arguments(spec, CPU, 1)
    assert environment_of(spec, api_key="hunter22")["VLLM_API_KEY"] == "hunter22"


def test_without_a_key_none_is_inherited():
    assert "VLLM_API_KEY" not in environment_of(deployment(), base=inherited({"VLLM_API_KEY": "other"}))


def test_gpus_are_given_as_indices_in_nvmls_order():
    found = environment_of(deployment(), two_gpus())
    assert found["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_cpu_instance_sees_no_gpu():
    assert environment_of(deployment())["CUDA_VISIBLE_DEVICES"] == ""


def test_the_manifests_env_wins_and_the_engines_programs_come_first():
    spec = deployment(env={"OMP_NUM_THREADS": "2", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "7"})
    found = environment_of(spec, base={"OMP_NUM_THREADS": "1", "PATH": "/bin"})
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "7"
    assert found["PATH"] == "/opt/e/bin:/bin"


def test_what_must_be_private_is():
    found = environment_of(deployment(), base=inherited({"TMPDIR": "/tmp", "VLLM_RPC_BASE_PATH": "/tmp"}))
    assert found["TMPDIR"] == found["VLLM_RPC_BASE_PATH"] == "/t"
    assert found["VLLM_PROCESS_NAME_PREFIX"] == "vm-x"


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "HF_TOKEN", "https_proxy", "NCCL_DEBUG", "VLLM_LOGGING_LEVEL", "LC_ALL"]
)
def test_inherited(name):
    assert inherited({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_PORT",
        "VLLM_HOST_IP",
        "VLLM_API_KEY",
        "VLLM_MANAGER_SOCKET",
        "VLLM_SERVER_DEV_MODE",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "CUDA_VISIBLE_DEVICES",
        "NOTIFY_SOCKET",
        "TMPDIR",
    ],
)
def test_not_inherited(name):
    assert inherited({name: "x"}) == {}


def test_dummy_weights_are_told():
    assert "gibberish" in notes(deployment(args={"load-format": "dummy"}))[0]
    assert notes(deployment()) == ()
