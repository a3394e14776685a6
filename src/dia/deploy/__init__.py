"""A fitted model at work: scoring in bulk, export, the model hub."""
