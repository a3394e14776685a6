"""Tables, figures and pages drawn from ledgers and scored sets."""
