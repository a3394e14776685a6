"""The tools of every folder: errors, settings, files, training, processes. Knows no image and no method."""
