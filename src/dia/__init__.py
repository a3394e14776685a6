"""DIA: Dissolving Is Amplifying. Subtle anomalies in medical images, learned from normal images only."""
