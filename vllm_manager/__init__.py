"""A local deployment manager that launches and supervises vLLM servers on GPUs."""

__version__ = "0.1.0"
