"""Files, downloads and progress, for the whole package."""
