"""Levels, longest paths, ancestors."""

from penstock.ir.text import parse
from penstock.solve.paths import Graph, ancestor, finish_times, graph_of, seconds_to_end_of_forward

# a -> b -> d, a -> c -> d: a diamond, and its backward.
DIAMOND = parse("""
    f a   x:I1M    -> a:A1M! 1s
    f b   a        -> b:A1M! 5s
    f c   a        -> c:A1M! 2s
    f d   b c      -> d:A1M  1s
    b d'  d        -> g:T1M  1s
    b c'  g c      -> h:T1M  2s
    b b'  g b      -> i:T1M  5s
    b a'  h i a    -> j:T1M  1s
""")


def test_a_level_is_the_longest_way_from_where_nothing_is_read():
    graph = graph_of(DIAMOND)
    assert graph.level == [0, 1, 1, 2, 3, 4, 4, 5]
    assert graph.first_backward == 3


def test_the_graph_knows_who_reads():
    graph = graph_of(DIAMOND)
    assert graph.after[0] == [1, 2, 7]
    assert graph.before[7] == (0, 5, 6)


def test_branches_run_beside_each_other_on_the_graphs_clock():
    assert finish_times(DIAMOND) == [1, 6, 3, 7, 8, 10, 13, 14]


def test_the_way_to_the_loss_counts_forward_ops_alone():
    assert seconds_to_end_of_forward(DIAMOND) == [6, 1, 1, 0, 0, 0, 0, 0]


def test_an_ancestor_is_the_latest_on_the_highest_level_allowed():
    graph = graph_of(DIAMOND)
    assert ancestor(graph, 7, above=-1, at_most=4) == 6
    assert ancestor(graph, 7, above=-1, at_most=3) == 4
    assert ancestor(graph, 7, above=-1, at_most=0) == 0
    assert ancestor(graph, 7, above=3, at_most=3) is None
    assert ancestor(graph, 0, above=-1, at_most=9) is None


def test_what_does_not_lead_to_an_op_is_not_its_ancestor():
    """4 reads of 0, past a level on which there are only strangers."""
    before = [(), (0,), (1,), (), (0, 3)]
    graph = Graph([0, 1, 2, 1, 3], before, [[], [], [], [], []], [False] * 5)
    assert ancestor(graph, 4, above=-1, at_most=2) == 3
    assert ancestor(graph, 4, above=-1, at_most=0) == 0
