"""Pictures of predictions, samples, curves and tables."""
