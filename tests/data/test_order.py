from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vpt.data.order as order
from vpt.data.order import BatchOrder, seed_of


def batches(made: BatchOrder, epoch: int = 0) -> list[list[tuple[int, int]]]:
    made.set_epoch(epoch)
    return list(made)


def test_an_epoch_shows_each_picture_once_in_an_order_of_its_own():
    made = BatchOrder(12, 4, seed=1)
    first, again, second = batches(made), batches(made), batches(made, 1)
    assert first == again
    assert sorted(i for batch in first for _, i in batch) == list(range(12))
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]
    assert {e for b in second for e, _ in b} == {1}
    assert first != batches(BatchOrder(12, 4, seed=2))
    assert made.sampler is made  # where Lightning looks for set_epoch


def test_short_batch_only_when_it_is_alone():
    assert [len(b) for b in BatchOrder(11, 4, 0)] == [4, 4]
    assert [len(b) for b in BatchOrder(3, 4, 0)] == [3]
    assert len(BatchOrder(11, 4, 0)) == 2


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_shares_of_all_processes_make_the_global_batch(size, per, world, epoch):
    if size < world:
        return
    whole = batches(BatchOrder(size, per * world, 3), epoch)
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(world):
            patch.setattr(order, "process", lambda rank=rank: (rank, world))
            shares.append(batches(BatchOrder(size, per * world, 3), epoch))
    assert {len(share) for share in shares} == {len(whole)}
    for n, batch in enumerate(whole):
        even = len(batch) - len(batch) % world
        assert [share[n] for share in shares] == [batch[:even][rank::world] for rank in range(world)]
        assert len({len(share[n]) for share in shares}) == 1


def test_what_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(order, "process", lambda: (0, 2))
    with pytest.raises(ValueError, match=r"the batch size 5 counts all processes: .*multiple of 2"):
        iter(BatchOrder(20, 5, 0))
    with pytest.raises(ValueError, match="at least 2 pictures"):
        iter(BatchOrder(1, 4, 0))


@given(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_resumed_iterator_goes_on_where_the_state_was_taken(epoch, done, more):
    made = BatchOrder(20, 4, seed=7)
    made.set_epoch(epoch)
    unbroken = [batch for e in (epoch, epoch + 1) for batch in batches(made, e)]
    made.set_epoch(epoch)
    broken = iter(made)
    for _ in range(done):
        next(broken)
    fresh = BatchOrder(20, 4, seed=7)
    resumed = iter(fresh)
    resumed.load_state_dict(broken.state_dict())  # type: ignore[attr-defined]
    rest = [next(resumed) for _ in range(min(more, 5 - done % 5))]
    assert rest == unbroken[done : done + len(rest)]
    assert fresh.epoch == epoch + (done == 5)


def test_epoch_may_be_set_after_the_iterator_is_made():
    made = BatchOrder(8, 4, seed=0)
    waiting = iter(made)
    made.set_epoch(5)
    assert list(waiting) == batches(BatchOrder(8, 4, seed=0), 5)


def test_weights_draw_in_proportion():
    size, epochs = 400, 50
    rare = [1.0 if i < 40 else 1 / 9 for i in range(size)]  # 40 of one class, 360 of the other
    made = BatchOrder(size, 40, 0, weights=rare)
    drawn = Counter(i < 40 for e in range(epochs) for i in made.order(e).tolist())
    assert abs(drawn[True] / (size * epochs) - 0.5) < 4 * 0.5 / (size * epochs) ** 0.5  # four standard errors
    one = Counter(i for e in range(epochs) for i in made.order(e).tolist() if i < 40)
    assert len(one) == 40  # each of the rare ones
    assert made.order(3).tolist() == BatchOrder(size, 40, 0, weights=rare).order(3).tolist()


def test_seeds_differ_by_every_part_and_are_fixed():
    assert seed_of("view", 1, 2, "a") == 58737742467066764
    assert len({seed_of(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a1",)]}) == 5
