"""Carries a schedule out inside PyTorch, eagerly, and keeps the budget when the step deviates."""
