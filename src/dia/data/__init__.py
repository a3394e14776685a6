"""Images in: what is read, known, generated and checked. Knows nothing of models."""
