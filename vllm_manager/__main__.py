"""``python -m vllm_manager`` is the command line."""

from vllm_manager.cli import main

main()
