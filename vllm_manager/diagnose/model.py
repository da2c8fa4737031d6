"""Causes in the model's files, and in the way to them."""

from vllm_manager.diagnose.cause import permanent

MODEL = (
    permanent(
        "model-missing",
        r"Repo id must .*: '(?P<model>[^'\n]+)'",
        "there is no model or tokenizer at $model",
        "correct `model`, or in `args` what names $model (`tokenizer`, say): it is no directory here "
        "(in a container: not mounted) and no Hugging Face id",
    ),
    permanent(
        "model-config-missing",
        r"Invalid repository ID or local directory specified: '(?P<model>[^'\n]+)'",
        "$model holds no model",
        "correct `model`, or in `args` what names $model (`hf-config-path`, `generation-config`): "
        "its directory needs a config.json (or params.json), an id must exist on the hub",
    ),
    permanent(
        "model-not-downloaded",
        r"Cannot find an appropriate cached snapshot folder|outgoing traffic has been disabled",
        "the model isn't downloaded, and downloading is switched off",
        'download it first with `hf download`, or set `env: {HF_HUB_OFFLINE: "0"}`',
    ),
    permanent(
        "model-gated",
        r"gated repo\.?\s+Make sure to have access to it at (?P<url>https?://\S+?)\.?$",
        "the model is gated, and the hub refused access",
        "accept its licence at $url and set HF_TOKEN to a token of that account",
    ),
    permanent(
        "model-gated",
        r"GatedRepoError|access a gated repo\b|Cannot access gated repo",
        "the model is gated, and the hub refused access",
        "accept its licence on its page of the hub and set HF_TOKEN to a token of that account",
    ),
    permanent(
        "model-not-on-hub",
        r"RepositoryNotFoundError|404 Client Error",
        "the hub has no such model, or hides it",
        "check `model` (and `tokenizer` in `args`) for a typing error; a private one needs HF_TOKEN",
    ),
    permanent(
        "model-forbidden",
        r"(?P<status>40[13]) Client Error",
        "the hub refused access to the model ($status)",
        "set HF_TOKEN to a valid token that may read it",
    ),
    permanent(
        "architecture-unsupported",
        r"Model architectures \[(?P<names>[^\]\n]*)\] are not supported",
        "this vLLM doesn't support the architecture $names",
        "name a newer vLLM with `engine: {version: ...}`: it must know $names",
    ),
    permanent(
        "transformers-too-old",
        r"model type `(?P<type>[^`\n]+)` but Transformers does not recognize",
        "the engine's transformers library doesn't know the model type $type",
        "name a newer vLLM with `engine: {version: ...}`, or upgrade transformers in its environment",
    ),
    permanent(
        "remote-code",
        r"repository (?P<model>\S+) contains custom code which must be executed",
        "$model brings code of its own, which vLLM runs only when told to",
        "read that code, then set `args: {trust-remote-code: true}`",
    ),
    permanent(
        "tokenizer-missing",
        r"Couldn't instantiate the backend tokenizer from one of",
        "the model has no tokenizer that vLLM can load",
        "add tokenizer.json to the model's directory, or set `args: {tokenizer: ...}` to one that fits",
    ),
    permanent(
        "weights-missing",
        r"Cannot find any model weights with `(?P<path>[^`\n]+)`",
        "there are no weights in $path",
        "put the *.safetensors files into $path (an interrupted download leaves none)",
    ),
    permanent(
        "weights-corrupt",
        r"Error while deserializing header: (?P<reason>.+)",
        "a weights file is damaged: $reason",
        "download the model again: a *.safetensors file is cut short or overwritten",
    ),
    permanent(
        "weights-shape",
        r"start \((?P<start>\d+)\) \+ length \((?P<length>\d+)\) exceeds dimension size \((?P<size>\d+)\)",
        "the weights don't have the shape that config.json says ($start + $length of $size)",
        "take config.json and the weights from the same revision of the model",
    ),
)
