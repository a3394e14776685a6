"""Results out: how well scores separate, the ledger of runs, the report on one. Knows nothing of models."""
