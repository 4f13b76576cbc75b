"""Exported models in ONNX Runtime; nothing here imports torch."""
