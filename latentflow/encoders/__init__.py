"""Frozen models that turn records into tensors."""
