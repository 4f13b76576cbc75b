"""Reading of audio and computation of features."""
