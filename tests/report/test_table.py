"""Tables for the terminal say what they know, and nothing else."""

from io import StringIO

from rich.console import Console

from comparisons import MIB, entry
from penstock.report.table import comparison, leaderboard


def printed(table):
    console = Console(width=200, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_a_run_that_failed_has_the_budget_that_was_asked_for():
    runs = [
        entry("swap", 0.6, 11.0, on="run here"),
        entry("chen", 0.6, 12.0, on="run here", budget=601 * MIB),
        entry("poet", 0.6, on="run here", budget=0, problem="its process ended with code 3"),
    ]
    lines = [line for line in printed(comparison(runs)).splitlines() if "│" in line]
    assert [line.replace("│", " ").split()[:3] for line in lines] == [
        ["600", "MiB", "swap"],
        ["601", "MiB", "chen"],
        ["60%", "poet", "its"],
    ]
    assert "├" not in printed(comparison(runs))  # one share, one section
    assert "1 problems, of which 1 are fitted" in printed(leaderboard(runs))
