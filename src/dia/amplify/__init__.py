"""Amplifying: contrastive learning against dissolved copies makes fine features count."""
