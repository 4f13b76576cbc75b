"""Reading sound and making features of it; knows nothing of text."""
