"""Results out: metrics and intervals, the ledger, ablations, reports and pictures. Trains only to measure."""
