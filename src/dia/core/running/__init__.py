"""How work runs: the loop of a training, the threads it takes, and what is shown of it. Knows no model."""
