"""One training step becomes a trace."""

from penstock.record.step import Recorder, Recording

__all__ = ["Recorder", "Recording"]
