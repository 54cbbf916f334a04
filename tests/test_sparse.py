"""Sparse tensors: their indices and values leave and come back as other values do."""

import pytest
import torch

from runs import apart, by_sparse


@pytest.fixture(scope="module", params=[torch.sparse_coo, torch.sparse_csr], ids=["coo", "csr"])
def layout(request: pytest.FixtureRequest) -> torch.layout:
    found: torch.layout = request.param
    return found


@pytest.fixture(scope="module")
def plain(layout: torch.layout) -> list[str]:
    digests: list[str]
    digests, _ = apart(by_sparse, layout, None, "")
    return digests


@pytest.mark.parametrize("policy", ["auto", "swap-all", "dtr"])
def test_a_graph_network_with_sparse_gradients_has_the_same_bits(
    layout: torch.layout, plain: list[str], policy: str
) -> None:
    digests, reports = apart(by_sparse, layout, "70%", policy)
    assert digests == plain
    assert [report.mode for report in reports].count("planned") >= 4
    if policy == "swap-all":
        assert all(sum(report.traffic.values()) for report in reports if report.mode == "planned")
