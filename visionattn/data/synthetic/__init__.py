"""Data sets generated from embedded pictures, with exact labels."""
