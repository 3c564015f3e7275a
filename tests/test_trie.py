"""Sequences that share beginnings: who stands where and sees whom."""

from devil.trie import ROOT, TokenTrie


def test_beginnings_stand_once() -> None:
    trie = TokenTrie()
    assert trie.add([5, 6, 7]) == [ROOT, 0, 1, 2]
    assert trie.add([5, 8]) == [ROOT, 0, 3]
    assert trie.add([6]) == [ROOT, 4]
    assert trie.add([5, 6]) == [ROOT, 0, 1]
    assert trie.add([]) == [ROOT]
    assert trie.ids == [5, 6, 7, 8, 6]
    assert trie.positions(3).tolist() == [3, 4, 5, 4, 3]


def test_a_node_sees_the_prefix_and_what_leads_to_it() -> None:
    trie = TokenTrie()
    trie.add([5, 6])
    trie.add([5, 8])
    trie.add([9])
    assert trie.mask(2).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
