"""Images that a session holds, at their own size and as the model sees them."""
