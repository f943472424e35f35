"""Architectures that mechanisms are put into."""
