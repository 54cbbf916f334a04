"""What other tools recorded, as traces: CUDA memory snapshots and execution traces."""
