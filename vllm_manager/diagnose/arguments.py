"""Causes in the manifest: flags and combinations that vLLM refuses.

The texts are those of vLLM 0.32.0; a flag's name in ``args`` is vLLM's, without the dashes.
"""

from vllm_manager.diagnose.cause import permanent

ARGUMENTS = (
    permanent(
        "flag-task",
        r"error: unrecognized arguments: .*--task\b",
        "this vLLM has no --task",
        "remove `task` from `args`; for an embedding, rerank or reward model set `args: {runner: pooling}`, "
        "for a generative model used as one also `convert: embed` or `convert: classify`",
    ),
    permanent(
        "flag-unknown",
        r"error: unrecognized arguments: (?P<arguments>.+)",
        "this vLLM doesn't know $arguments",
        "remove $arguments from `args`, or name a vLLM that has it with `engine: {version: ...}`",
    ),
    permanent(
        "flag-json",
        r"error: argument (?P<flag>--[\w.-]+)(?:/\S+)?: \d+ validation error.*\n"
        r"\s*Invalid JSON: (?P<reason>[^[\n]+)",
        "the value of $flag isn't JSON: $reason",
        "write the value of $flag in `args` as a YAML mapping or list, not as quoted text",
    ),
    permanent(
        "flag-json",
        r"error: argument (?P<flag>--[\w.-]+)(?:/\S+)?: Value (?P<value>.+) cannot be converted to "
        r"<function loads",
        "the value of $flag isn't JSON: $value",
        "write the value of $flag in `args` as a YAML mapping or list, not as quoted text",
    ),
    permanent(
        "flag-json",
        r"error: Invalid JSON format for (?P<flag>--[\w.-]+): (?P<value>.+)",
        "the value of $flag isn't JSON: $value",
        "write the value of $flag in `args` as a YAML mapping or list, not as quoted text",
    ),
    permanent(
        "flag-value",
        r"error: argument (?P<flag>--[\w.-]+)(?:/\S+)?: invalid choice: (?P<value>.+?) \(choose from "
        r"(?P<known>.+)\)",
        "$flag can't be $value",
        "set $flag to one of: $known",
    ),
    permanent(
        "flag-value",
        r"error: argument (?P<flag>--[\w.-]+)(?:/\S+)?: (?P<reason>.+)",
        "vLLM refuses $flag: $reason",
        "correct the value of $flag in the manifest (its own field, or in `args`)",
    ),
    permanent(
        "tool-parser-missing",
        r"--enable-auto-tool-choice requires --tool-call-parser",
        "automatic tool choice needs a tool parser",
        "set `tool_call_parser` to the one of the model's family, or remove `enable_auto_tool_choice`",
    ),
    permanent(
        "tool-parser-unknown",
        r"invalid tool call parser: (?P<parser>\S+) \(chose from \{(?P<known>[^}]*)\}",
        "this vLLM has no tool parser called $parser",
        "set `tool_call_parser` to one of: $known",
    ),
    permanent(
        "tool-parser-tokenizer",
        r"--tool-call-parser (?P<parser>\S+) cannot be used with the tokenizer of '(?P<model>[^'\n]+)'",
        "the tool parser $parser doesn't fit the tokenizer of $model",
        "set another `tool_call_parser` than $parser: the one of the model's family",
    ),
    permanent(
        "tool-parser-tokenizer",
        r"Error: (?P<parser>[\w .-]+?) could not locate (?:the bot token|tool call start/end tokens)",
        "the tool parser doesn't fit the model's tokenizer ($parser)",
        "set another `tool_call_parser`: the one of the model's family",
    ),
    permanent(
        "reasoning-parser-unknown",
        r"Reasoning parser '(?P<parser>[^'\n]+)' not found\. Available parsers: (?P<known>[\w, .-]+)",
        "this vLLM has no reasoning parser called $parser",
        "set `reasoning_parser` to one of: $known",
    ),
    permanent(
        "reasoning-parser-tokenizer",
        r"(?:Error: )(?P<parser>\w+) reasoning parser could not locate think start/end tokens",
        "$parser doesn't fit the model's tokenizer",
        "set another `reasoning_parser`, or remove it where the model doesn't reason",
    ),
    permanent(
        "log-outputs",
        r"--enable-log-outputs requires --enable-log-requests",
        "enable-log-outputs needs enable-log-requests",
        "add `enable-log-requests: true` to `args`, or remove `enable-log-outputs`",
    ),
    permanent(
        "chat-template-missing",
        r"supplied chat template string \((?P<path>.*)\) appears path-like, but doesn't exist",
        "there is no chat template $path",
        "correct `chat_template`: the file must exist and be readable",
    ),
    permanent(
        "speculative-tokens",
        r"num_speculative_tokens must be provided with speculative model",
        "the speculative configuration lacks num_speculative_tokens",
        "add it: `args: {speculative-config: {num_speculative_tokens: 3, ...}}`",
    ),
    permanent(
        "kv-connector-unknown",
        r"Unsupported connector type: (?P<connector>[\w.]+)",
        "this vLLM has no KV connector called $connector",
        "correct `kv_connector` in `args: {kv-transfer-config: {...}}`; it is $connector now",
    ),
    permanent(
        "sleep-mode-unsupported",
        r"Sleep mode is not supported on current platform",
        "sleep mode doesn't exist on this platform",
        "remove `enable-sleep-mode` from `args`: it needs a GPU",
    ),
    permanent(
        "tls-files",
        r"load_cert_chain\(certfile, keyfile",
        "vLLM can't load its TLS certificate or key",
        "check that the files of `ssl-certfile` and `ssl-keyfile` in `args` exist, are readable and match",
    ),
    permanent(
        "lora-missing",
        r"Loading lora (?P<name>\S+) failed: No adapter found for (?P<path>[^'\"\n]+)",
        "the LoRA adapter $name isn't at $path",
        "correct its path in `args: {lora-modules: ...}`: the directory needs an adapter_config.json",
    ),
    permanent(
        "lora-disabled",
        r"LoRA is not enabled\. Use --enable-lora",
        "LoRA adapters are given, but LoRA is off",
        "add `enable-lora: true` to `args`",
    ),
    permanent(
        "memory-utilization-range",
        r"^gpu_memory_utilization\n\s+Input should be (?P<rule>[^[\n]+)"
        r"\[type=\w+, input_value=(?P<value>[^,\n]+)",
        "gpu_memory_utilization is $value, and must be $rule",
        "set `gpu_memory_utilization` to a share between 0 and 1, such as 0.9",
    ),
    permanent(
        "max-model-len",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\([^=)\n]+=(?P<limit>\d+)",
        "max_model_len $asked is more than the model's $limit",
        "set `max_model_len: $limit` or less; where the model is known to take more, "
        '`env: {VLLM_ALLOW_LONG_MAX_MODEL_LEN: "1"}`',
    ),
    permanent(
        "tensor-parallel-heads",
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
        r"\((?P<size>\d+)\)",
        "$heads attention heads can't be split over $size GPUs",
        "set `tensor_parallel_size` to a divisor of $heads",
    ),
    permanent(
        "world-size",
        r"World size \((?P<size>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "the model is to be split over $size GPUs, and vLLM sees $gpus",
        "set `tensor_parallel_size` (times the pipeline parallel size) to $gpus or less, "
        "or give it `gpus: {count: $size}`",
    ),
    permanent(
        "dtype-unsupported",
        r"Bfloat16 is only supported on GPUs .* Your (?P<gpu>.+?) GPU (?:has|does not)",
        "the $gpu is too old for bfloat16",
        "set `args: {dtype: half}`",
    ),
    permanent(
        "load-format",
        r"Load format `(?P<format>[^`\n]+)` is not supported",
        "this vLLM has no load format called $format",
        "correct `load-format` in `args`: auto (which is the default), safetensors or dummy, say",
    ),
    permanent(
        "quantization-unknown",
        r"Unknown quantization method: (?P<method>.+?)\. Must be one of \[(?P<known>[^\]]*)",
        "this vLLM has no quantization called $method",
        "remove `quantization` from `args` (vLLM reads it from the model), or set it to one of: $known",
    ),
    permanent(
        "quantization-mismatch",
        r"specified in the model config \((?P<model>[^)\n]*)\) does not match the quantization method "
        r"specified in the `quantization` argument \((?P<argument>[^)\n]*)\)",
        "the model is quantized with $model, and the manifest says $argument",
        "remove `quantization` from `args`: vLLM reads $model from the model",
    ),
    permanent(
        "quantization-config-missing",
        r"Cannot find the config file for (?P<method>[\w-]+)",
        "the model isn't quantized with $method",
        "remove `quantization` from `args`, or name a `model` that is quantized with $method",
    ),
    permanent(
        "quantization-gpu",
        r"The quantization method (?P<method>\S+) is not supported for the current GPU\. "
        r"Minimum capability: (?P<needed>\d+)\. Current capability: (?P<has>\d+)",
        "$method needs a GPU of compute capability $needed, and this one has $has",
        "choose a newer GPU with `gpus: {name: ...}`, or another quantization of the model",
    ),
)
