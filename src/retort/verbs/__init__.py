"""Verbs with files of their own, and what all verbs share; like the command line they import torch late."""
