"""Brings a model's files from the Hugging Face hub onto the disk before an engine starts."""
