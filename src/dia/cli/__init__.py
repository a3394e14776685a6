"""The command line `dia`."""
