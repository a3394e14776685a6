"""Frozen networks and their weights: what looks at images. Knows no normals, no score and no detector."""
