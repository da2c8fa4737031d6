import pytest

from vllm_manager.weights.wanted import Need, Part, index_file, wanted, weights

PLAIN = (".gitattributes", "README.md", "config.json", "tokenizer.json", "chat_template.jinja", "code.py")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def need(**options):
    return Need(repository="org/name", cache_dir="/cache", **options)


def test_everything_but_weights_and_media_is_needed_beside_the_weights():
    paths = (
        *PLAIN,
        "model.safetensors",
        "sub/config.json",
        "pic.png",
        "onnx/model.onnx",
        "flax_model.msgpack",
    )
    assert wanted(paths, need()) == (*PLAIN, "sub/config.json", "model.safetensors")


def test_the_index_tells_the_shards():
    paths = (*PLAIN, INDEX, *SHARDS, "extra.safetensors", "original/model.safetensors", "pytorch_model.bin")
    assert index_file(paths, need()) == INDEX
    assert weights(paths, need(), SHARDS) == SHARDS


def test_small_files_come_before_weights():
    paths = ("a.safetensors", "config.json")
    assert wanted(paths, need()) == ("config.json", "a.safetensors")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("model.safetensors", "pytorch_model.bin", "old.pt"), ("model.safetensors",)),
        (("pytorch_model.bin", "old.pt"), ("pytorch_model.bin",)),
        (("old.pt",), ("old.pt",)),
        (("tf_model.h5", "model.onnx", "model.gguf", "model.pth"), ()),
    ],
)
def test_the_best_kind_of_weights_that_is_there_is_taken(paths, expected):
    assert weights(paths, need()) == expected


def test_weights_of_the_same_kind_further_below_are_fetched_as_vllm_does():
    paths = ("model.safetensors", "2_Dense/model.safetensors", "onnx/model.onnx", "openvino/model.bin")
    assert weights(paths, need()) == ("model.safetensors", "2_Dense/model.safetensors")


def test_a_kind_at_the_top_wins_over_a_better_one_below():
    assert weights(("2_Dense/model.safetensors", "pytorch_model.bin"), need()) == ("pytorch_model.bin",)


def test_weights_that_are_in_folders_only_are_taken_from_there():
    paths = ("transformer/model.safetensors", "vae/model.safetensors")
    assert weights(paths, need()) == paths


def test_consolidated_files_are_mistral_s_format_which_wins():
    paths = ("params.json", INDEX, *SHARDS, "consolidated.safetensors", "consolidated.safetensors.index.json")
    assert index_file(paths, need()) is None
    assert weights(paths, need()) == ("consolidated.safetensors",)


def test_the_hf_format_leaves_consolidated_files_out():
    paths = (INDEX, *SHARDS, "consolidated.safetensors")
    assert weights(paths, need(load_format="hf"), SHARDS) == SHARDS


@pytest.mark.parametrize(
    ("load_format", "expected"),
    [
        ("safetensors", ("a.safetensors",)),
        ("fastsafetensors", ("a.safetensors",)),
        ("runai_streamer", ("a.safetensors",)),
        ("pt", ("c.pt",)),
        ("npcache", ("b.bin",)),
        ("mistral", ()),
        ("some-plugin", ("a.safetensors",)),
    ],
)
def test_the_load_format_decides(load_format, expected):
    assert weights(("a.safetensors", "b.bin", "c.pt"), need(load_format=load_format)) == expected


@pytest.mark.parametrize("load_format", ["dummy", "tensorizer"])
def test_formats_without_weights_in_the_repository_need_only_the_rest(load_format):
    paths = (*PLAIN, INDEX, *SHARDS)
    wants = need(load_format=load_format)
    assert not wants.weights
    assert index_file(paths, wants) is None
    assert wanted(paths, wants) == (*PLAIN, INDEX)


def test_ignored_patterns_are_left_out():
    paths = ("model.safetensors", "original/a/model.safetensors")
    assert weights(paths, need()) == ("model.safetensors",)
    assert weights(paths, need(ignore=("model.*",))) == ("original/a/model.safetensors",)


def test_a_quantization_of_a_gguf_repository_is_taken_alone():
    paths = ("m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m.Q2_K.gguf")
    assert weights(paths, need(quant="Q4_K_M")) == ("m-Q4_K_M.gguf",)
    assert weights(paths, need(quant="Q8_0")) == paths[1:3]
    assert weights(paths, need(quant="Q2_K")) == ("m.Q2_K.gguf",)
    assert weights(paths, need(quant="Q5_0")) == ()


def test_parts_of_a_repository():
    paths = ("config.json", "adapter.safetensors", "pic.png", "notes.md")
    assert wanted(paths, need(part=Part.ALL)) == paths
    assert wanted(paths, need(part=Part.PLAIN)) == ("config.json", "notes.md")
    assert wanted(paths, need(part=Part.WEIGHTS)) == ("config.json", "adapter.safetensors")
