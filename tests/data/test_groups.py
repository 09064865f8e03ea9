"""The order in which training draws batches from groups of items."""

import collections

import numpy as np
import pytest

from jaxop import data
from jaxop.data.groups import check_drawable, draw_batch, groups_of


@pytest.mark.parametrize(("sizes", "batch"), [((12, 4, 9), 4), ((7, 7), 3), ((40, 3), 3)])
def test_an_epoch_uses_every_item_once_and_groups_in_proportion(sizes, batch):
    length = sum(size // batch for size in sizes)
    seen = []
    for epoch in range(3):
        drawn = [draw_batch(sizes, batch, seed=5, step=epoch * length + t) for t in range(length)]
        assert collections.Counter(group for group, _ in drawn) == {g: n // batch for g, n in enumerate(sizes)}
        used = [(group, int(i)) for group, items in drawn for i in items]
        assert len(set(used)) == len(used) == batch * length
        assert all(len(items) == batch for _, items in drawn)
        seen.append([(group, items.tolist()) for group, items in drawn])
    assert seen[0] != seen[1] != seen[2]
    batches = [{(group, frozenset(items)) for group, items in epoch} for epoch in seen]
    assert batches[0] != batches[1] != batches[2]
    groups = [[group for group, _ in epoch] for epoch in seen]
    assert any(groups[0] != other for other in groups[1:])  # the order of the groups is new as well


def test_batches_depend_on_seed_and_step_only():
    first = [draw_batch((8, 4), 4, seed=1, step=t) for t in range(9)]
    again = [draw_batch((8, 4), 4, seed=1, step=t) for t in reversed(range(9))][::-1]
    other = [draw_batch((8, 4), 4, seed=2, step=t) for t in range(9)]
    as_lists = [[(group, items.tolist()) for group, items in drawn] for drawn in (first, again, other)]
    assert as_lists[0] == as_lists[1] != as_lists[2]


def test_one_group_is_drawn_as_a_set_without_groups():
    for t in (0, 3, 11):
        group, items = draw_batch((10,), 3, seed=4, step=t)
        assert group == 0
        np.testing.assert_array_equal(items, data.batch_indices(10, 3, seed=4, step=t))


class Two:
    """Items of two shapes."""

    def __init__(self, *parts):
        self.parts = parts

    def __len__(self):
        return 5

    def __getitem__(self, indices):
        return {"x": np.zeros((len(indices), 1 + int(indices[0]) // 3))}

    def groups(self, batch_size):
        return [data.Group(np.array(part), self.parts[i], f"part {i}") for i, part in enumerate(self.parts)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0, 1, 2], [3]), "train.groups(2) must hold each of the 5 items in one group, got 4 items in 2 groups"),
        (([0, 1, 2], [2, 3, 4]), "got 6 items in 2 groups, 5 of them different"),
        ((), "got 0 items in 0 groups"),
    ],
)
def test_groups_that_miss_items_are_refused(parts, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        groups_of(Two(*parts), 2, "train")


def test_a_group_smaller_than_a_batch_is_refused():
    groups = groups_of(Two([0, 1, 2], [3, 4]), 2, "train")
    check_drawable(groups, 2, "train")
    with pytest.raises(ValueError, match=r"train has a group of 2 items \(part 1\), fewer than batch_size=3"):
        check_drawable(groups, 3, "train")
    one_name = [data.Group(group.indices, group.source, "all") for group in groups]
    source = type("Same", (Two,), {"groups": lambda self, size: one_name})()
    with pytest.raises(ValueError, match=r"train\.groups\(2\) must return groups with different names"):
        groups_of(source, 2, "train")
    with pytest.raises(TypeError, match=r"train\.groups\(1\)\[0\] must be a data\.Group"):
        groups_of(type("Wrong", (Two,), {"groups": lambda self, size: [[0, 1, 2, 3, 4]]})(), 1, "train")
