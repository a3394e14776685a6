"""Rows that train nothing: numbers and pixels of images, and controls on a frozen network or on no image."""
