"""Policies outside of this package: exported by ``export``, run by ``runner`` without torch.

``runner`` needs NumPy and ONNX Runtime alone, and nothing else of this package.
"""
