"""Host architectures for mechanisms."""
