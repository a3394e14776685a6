"""What every folder uses: errors, settings, files, training, processes. Knows no image and no method."""
