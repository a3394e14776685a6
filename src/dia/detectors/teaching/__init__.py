"""What a reader's marks teach a model: a probe beside the score, and normals that it took for anomalies.

`probe.py` fits the probe, `lesson.py` decides whether an update is kept and calibrates it anew, `taught.py`
is the part of the model, and `order.py` says which images are worth marking next. Knows vectors, distances
and labels; knows no images, files or readers.
"""
