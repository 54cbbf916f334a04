"""Models and training steps to try things on: small definitions of classic networks, real steps.

Everything is built from configurations with random weights; nothing is downloaded.
"""

from penstock.zoo.workloads import Size, Workload, names, workload

__all__ = ["Size", "Workload", "names", "workload"]
