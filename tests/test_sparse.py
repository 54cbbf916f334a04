"""Sparse tensors: their indices and values leave and come back as other values do."""

from functools import partial

import pytest
import torch

from runs import apart, both, by_sparse


@pytest.mark.parametrize(
    ("layout", "policy"),
    [
        (torch.sparse_coo, "auto"),
        (torch.sparse_csr, "swap-all"),
    ],
)
def test_a_graph_network_with_sparse_gradients_has_the_same_bits(
    layout: torch.layout, policy: str
) -> None:
    plain, found, reports = apart(both, partial(by_sparse, layout), "70%", policy=policy)
    assert found == plain
    assert [report.mode for report in reports].count("planned") >= 2
    if policy == "swap-all":
        assert all(sum(report.traffic.values()) for report in reports if report.mode == "planned")
