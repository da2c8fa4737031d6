from vllm_manager.engines.known_values import known_values


def package(directory, loader, quantization):
    for path, text in (
        ("model_executor/model_loader/__init__.py", loader),
        ("model_executor/layers/quantization/__init__.py", quantization),
    ):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    return directory


def test_the_values_are_read_without_importing(tmp_path):
    vllm = package(
        tmp_path,
        'import nope\nOther = Literal["x"]\nLoadFormats = Literal[\n    "auto",\n    "dummy",\n]\n',
        'QuantizationMethods = Literal["awq"]\nMETHODS: list[str] = list(get_args(QuantizationMethods))\n',
    )
    assert known_values(vllm) == {"load-format": ("auto", "dummy"), "quantization": ("awq",)}


def test_what_cannot_be_read_is_left_out(tmp_path):
    assert known_values(tmp_path) == {}
    vllm = package(tmp_path, "LoadFormats = list(formats)\n", "def broken(:\n")
    assert known_values(vllm) == {}
