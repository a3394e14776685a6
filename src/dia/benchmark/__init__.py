"""Runs and their ledger: grids of runs, workers, ablations, the protocol of confirmations."""
