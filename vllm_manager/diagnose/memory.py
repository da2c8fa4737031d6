"""Causes in GPU memory; ``OUT_OF_MEMORY`` is what is left where vLLM says nothing more precise."""

from vllm_manager.diagnose.cause import passing, permanent

_LESS = (
    "lower `gpu_memory_utilization` or `max-num-seqs` in `args`, or use more GPUs (`tensor_parallel_size`)"
)

MEMORY = (
    permanent(
        "kv-cache-too-small",
        r"model's max seq len \((?P<asked>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is "
        r"larger than the available KV cache memory \((?P<available>[\d.]+) GiB\)\. .*"
        r"estimated maximum model length is (?P<length>\d+)",
        "a context of $asked tokens needs $needed GiB of KV cache, and $available GiB are left",
        "set `max_model_len: $length` or less, or raise `gpu_memory_utilization`",
    ),
    permanent(
        "kv-cache-too-small",
        r"model's max seq len \((?P<asked>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is "
        r"larger than the available KV cache memory \((?P<available>[\d.]+) GiB\)",
        "a context of $asked tokens needs $needed GiB of KV cache, and $available GiB are left",
        "lower `max_model_len` below $asked, or raise `gpu_memory_utilization`",
    ),
    passing(
        "kv-cache-no-memory",
        r"No available memory for the cache blocks",
        "the weights leave no GPU memory for the KV cache",
        "raise `gpu_memory_utilization`, or use more GPUs (`tensor_parallel_size`) or a smaller model",
    ),
    passing(
        "gpu-memory-busy",
        r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
        r"less than desired GPU memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "only $free of $total GiB are free on $device, and $wanted GiB are wanted",
        "free the GPU (`vllm-manager gpus` shows who holds it), or lower `gpu_memory_utilization` "
        "from $share to less than $free/$total",
    ),
    permanent(
        "model-too-large",
        r"Failed to load model - not enough GPU memory",
        "the weights don't fit into the GPU's memory",
        "split the model over more GPUs with `tensor_parallel_size`, or use a smaller or quantized model",
    ),
    permanent(
        "sampler-memory",
        r"CUDA out of memory occurred when warming up sampler with (?P<count>\d+) dummy requests",
        "GPU memory ran out while $count simultaneous requests were tried",
        "lower `max-num-seqs` in `args` below $count, or lower `gpu_memory_utilization`",
    ),
    passing(
        "gpu-memory-released",
        r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+) GiB, current free memory "
        r"(?P<after>[\d.]+) GiB",
        "another program on the GPU released memory while vLLM measured it ($before, then $after GiB free)",
        "start again; where it repeats, `args: {kv-cache-memory-bytes: ...}` spares the measurement",
    ),
)

OUT_OF_MEMORY = (
    passing(
        "gpu-out-of-memory",
        r"CUDA out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        "GPU memory ran out at a request for $size",
        _LESS,
    ),
    passing(
        "gpu-out-of-memory",
        r"OutOfMemoryError|CUDA out of memory",
        "GPU memory ran out",
        _LESS,
    ),
)
