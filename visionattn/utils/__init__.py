"""Files, downloads and progress: what every room may use."""
