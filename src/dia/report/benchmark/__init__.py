"""The page of the benchmark: its tables, figures, sentences and pictures."""
