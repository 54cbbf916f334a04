"""Penstock: any PyTorch training step inside the memory budget you name."""
