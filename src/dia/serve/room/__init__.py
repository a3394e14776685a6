"""The reading room: a page to look at scans, correct, teach and train in."""
