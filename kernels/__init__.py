"""Triton kernels for the hot path."""
