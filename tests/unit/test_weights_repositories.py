import pytest

from vllm_manager.manifest.model import Deployment
from vllm_manager.weights.repositories import need_of, needs
from vllm_manager.weights.wanted import Need, Part

ENVIRONMENT = {"HF_HUB_CACHE": "/cache"}


def found(environment=ENVIRONMENT, **fields):
    return needs(Deployment.model_validate({"name": "a", "model": "org/name", **fields}), environment)


def need(repository="org/name", **options):
    return Need(repository=repository, **{"cache_dir": "/cache", **options})


def test_a_model_of_the_hub_is_needed_at_its_revision():
    assert found() == (need(),)
    assert found(revision="v2") == (need(revision="v2"),)


def test_names_without_an_owner_and_with_a_quantization():
    assert found(model="gpt2") == (need("gpt2"),)
    assert found(model="org/name-GGUF:Q4_K_M") == (need("org/name-GGUF", quant="Q4_K_M"),)


@pytest.mark.parametrize("model", ["/models/llama", "s3://bucket/llama"])
def test_paths_and_urls_need_nothing(model):
    assert found(model=model) == ()


def test_another_hub_is_asked_by_vllm_itself():
    assert found(ENVIRONMENT | {"VLLM_USE_MODELSCOPE": "True"}) == ()


def test_the_load_format_and_ignored_patterns_are_handed_on():
    assert found(args={"load-format": "DUMMY"}) == (need(load_format="dummy"),)
    assert found(args={"ignore-patterns": ["a*", "b*"]}) == (need(ignore=("a*", "b*")),)
    assert found(args={"ignore-patterns": "a*"}) == (need(ignore=("a*",)),)


def test_a_tokenizer_of_its_own_needs_no_weights():
    args = {"tokenizer": "org/tokenizer", "tokenizer-revision": "v1"}
    assert found(args=args) == (need(), need("org/tokenizer", revision="v1", part=Part.PLAIN))
    assert found(args={"tokenizer": "/tokenizers/one"}) == (need(),)


def test_a_configuration_of_its_own_needs_no_weights():
    assert found(args={"hf-config-path": "org/config"}) == (need(), need("org/config", part=Part.PLAIN))


def test_lora_adapters_of_the_hub_are_needed_whole():
    modules = {"sql": "org/sql-lora", "local": "/adapters/one"}
    assert found(lora_modules=modules) == (need(), need("org/sql-lora", part=Part.ALL))


@pytest.mark.parametrize(
    "config", [{"model": "org/draft", "revision": "v3"}, '{"model": "org/draft", "revision": "v3"}']
)
def test_a_draft_model_is_a_model(config):
    assert found(args={"speculative-config": config}) == (need(), need("org/draft", revision="v3"))


@pytest.mark.parametrize("config", [{"method": "ngram", "model": "ngram"}, {"method": "mtp"}, "not json"])
def test_speculation_without_a_model_needs_none(config):
    assert found(args={"speculative-config": config}) == (need(),)


def test_the_same_repository_is_needed_once():
    assert found(args={"speculative-config": {"model": "org/name"}}) == (need(),)


def test_a_download_dir_gets_the_weights_and_the_hub_s_cache_the_rest():
    expected = (need(part=Part.PLAIN), need(part=Part.WEIGHTS, cache_dir="/big"))
    assert found(args={"download-dir": "/big"}) == expected
    assert found(args={"download-dir": "/big", "load-format": "dummy"}) == expected[:1]


def test_a_download_dir_that_is_not_ours_to_fill_is_left_alone():
    docker = {"launcher": "docker", "image": "vllm/vllm-openai:v0.32.0"}
    assert found(args={"download-dir": "/big"}, engine=docker) == (need(part=Part.PLAIN),)
    assert found(args={"download-dir": "models"}) == (need(part=Part.PLAIN),)


def test_a_container_needs_the_same_as_a_process():
    assert found(engine={"launcher": "docker", "image": "vllm/vllm-openai:v0.32.0"}) == (need(),)


def test_the_manifest_s_environment_wins():
    assert found(env={"HF_HUB_CACHE": "/mine"}) == (need(cache_dir="/mine"),)


def test_names_on_the_command_line():
    assert need_of("org/name", ENVIRONMENT) == need()
    assert need_of("org/name@v1", ENVIRONMENT) == need(revision="v1")
    assert need_of("org/name:Q4@v1", ENVIRONMENT) == need(revision="v1", quant="Q4")


@pytest.mark.parametrize("name", ["", "a b", "org/name/more", "s3://bucket", "@v1"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="no name"):
        need_of(name, ENVIRONMENT)
