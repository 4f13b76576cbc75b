"""Decoding: searches, rescoring and transcripts of a trained student."""
