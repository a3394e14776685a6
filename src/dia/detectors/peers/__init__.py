"""The other methods of the paper's table: five of our own code, eight of anomalib's."""
