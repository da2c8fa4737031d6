"""Launchers: ways to start an instance, find it again, and end it."""
