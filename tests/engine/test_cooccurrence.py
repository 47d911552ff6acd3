"""Co-occurrence: known answers, the same model every time, and a file that is whole or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailorbird.engine.baskets import Interactions, training_rows
from tailorbird.engine.cooccurrence import DEFAULTS, train
from tailorbird.engine.errors import CallerError, Damaged
from tailorbird.engine.held_out import ndcg
from tailorbird.engine.item_item import item_item, kind_for
from tailorbird.engine.neighbours_file import Neighbours, open_neighbours, write_neighbours

SEED = 20_250_611
DAY_MS = 86_400_000


def interactions_of(visits: list[tuple[int, int, list[int]]]) -> Interactions:
    """Return the interactions of (group, time, items)."""
    flat = [(group, time, item) for group, time, items in visits for item in items]
    groups, times, items = zip(*flat, strict=True) if flat else ((), (), ())
    return Interactions(np.array(groups, np.int64), np.array(times, np.int64), np.array(items, np.uint32))


def cluster_world(visit_count: int = 600, item_count: int = 40) -> Interactions:
    """Return visits of which each draws its items from one of four clusters of ten."""
    random = np.random.default_rng(SEED)
    visits = []
    for visit in range(visit_count):
        first = 10 * int(random.integers(item_count // 10))
        items = (first + random.permutation(10)[:5]).tolist()
        visits.append((visit % 150, visit * DAY_MS // 4, items))
    return interactions_of(visits)


def row(neighbours: Neighbours, item: int) -> dict[int, float]:
    start, end = neighbours.indptr[item], neighbours.indptr[item + 1]
    return dict(zip(neighbours.items[start:end].tolist(), neighbours.weights[start:end].tolist(), strict=True))


@pytest.mark.parametrize("memory_bytes_max", [2**31, 0], ids=["ease", "cosine"])
def test_neighbours_are_found_in_the_own_cluster(memory_bytes_max: int) -> None:
    # Every group visits once, so that no history mixes the clusters.
    world = cluster_world()
    world = replace(world, groups=world.times)
    model = train(world, 40, memory_bytes_max=memory_bytes_max)
    assert model.kind == ("cosine" if memory_bytes_max == 0 else "ease")
    for item in range(40):
        heaviest = sorted(row(model, item).items(), key=lambda entry: -entry[1])[:9]
        assert {other // 10 for other, _ in heaviest} == {item // 10}


@pytest.mark.parametrize("memory_bytes_max", [2**31, 0], ids=["ease", "cosine"])
def test_rows_ascend_hold_no_item_itself_and_no_weight_of_zero(memory_bytes_max: int) -> None:
    model = train(cluster_world(), 45, neighbour_count=7, memory_bytes_max=memory_bytes_max)
    assert len(model.indptr) == 46
    for item in range(45):
        found = list(row(model, item))
        assert found == sorted(found)
        assert item not in found
        assert len(found) <= 7
    assert not row(model, 44)
    assert (model.weights > 0).all()


def test_ease_equals_its_formula() -> None:
    world = cluster_world(200)
    rows = training_rows(world)
    dense = np.zeros((rows.row_count, 40))
    dense[rows.rows, rows.items] = 1
    gram = dense.T @ dense
    inverse = np.linalg.inv(gram + 3.0 * np.diag(gram).mean() * np.eye(40))
    expected = np.maximum(-inverse / np.diag(inverse), 0)
    np.fill_diagonal(expected, 0)
    indptr, items, weights = item_item(rows, 40, "ease", 3.0, 200)
    found = np.zeros((40, 40))
    found[np.repeat(np.arange(40), np.diff(indptr)), items] = weights
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_cosine_equals_its_formula() -> None:
    rows = training_rows(interactions_of([(1, 0, [0, 1]), (2, 0, [0, 1]), (3, 0, [0, 2])]))
    indptr, items, weights = item_item(rows, 3, "cosine", 10.0, 200)
    assert indptr.tolist() == [0, 2, 3, 4]
    assert items.tolist() == [1, 2, 0, 0]
    together = [(2 / 6**0.5 * 2 / 12) ** 2, (1 / 3**0.5 * 1 / 11) ** 2]
    np.testing.assert_allclose(weights, [together[0], together[1], together[0], together[1]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["ease", "cosine"])
def test_of_equal_neighbours_the_smaller_numbers_stay(kind: str) -> None:
    rows = training_rows(interactions_of([(group, 0, [0, 1, 2, 3, 4]) for group in range(3)]))
    indptr, items, _ = item_item(rows, 5, kind, 1.0, 2)
    assert items[indptr[4] : indptr[5]].tolist() == [0, 1]


def test_the_same_interactions_in_any_order_give_the_same_model() -> None:
    world = cluster_world()
    shuffled = np.random.default_rng(SEED).permutation(len(world))
    # Times differ within a visit, or the order of its items would be part of what was said.
    world = replace(world, times=world.times + np.arange(len(world)))
    other = Interactions(world.groups[shuffled], world.times[shuffled], world.items[shuffled])
    one, two = train(world, 40), train(other, 40)
    assert one.parameters == two.parameters
    assert one.weights.tobytes() == two.weights.tobytes()
    assert one.items.tobytes() == two.items.tobytes()


def test_large_baskets_are_sampled_the_same_way_whatever_came_before() -> None:
    basket = [(7, 0, list(range(500)))]
    rows = training_rows(interactions_of(basket))
    assert rows.row_count == 1
    assert len(rows.items) == 100
    assert len(set(rows.items.tolist())) == 100
    after_another = training_rows(interactions_of([(3, 0, [1, 2]), *basket]))
    assert after_another.items[after_another.rows == 1].tolist() == rows.items.tolist()
    other_group = training_rows(interactions_of([(8, 0, list(range(500)))]))
    assert other_group.items.tolist() != rows.items.tolist()


def test_visits_are_rows_and_so_is_the_history_of_who_came_again() -> None:
    visits = [(1, 0, [0, 1]), (1, 20 * 60_000, [2]), (1, DAY_MS, [3, 0]), (2, 0, [4, 4])]
    rows = training_rows(interactions_of(visits))
    sets = [set(rows.items[rows.rows == number].tolist()) for number in range(rows.row_count)]
    assert sets == [{0, 1, 2}, {0, 3}, {4}, {0, 1, 2, 3}]


def test_too_little_to_fit_on_leaves_the_defaults() -> None:
    model = train(interactions_of([(1, 0, [0, 1]), (2, 5, [1, 2])]), 3)
    assert model.parameters == DEFAULTS["ease"]


def test_fitting_reports_what_held_out_time_said() -> None:
    parameters = train(cluster_world(), 40).parameters
    assert parameters.ndcg_visit > 2 * parameters.ndcg_visit_popularity > 0


@pytest.mark.parametrize("item_count", [0, 3])
def test_no_interactions_give_a_model_without_neighbours(item_count: int, tmp_path: Path) -> None:
    model = train(interactions_of([]), item_count)
    assert model.indptr.tolist() == [0] * (item_count + 1)
    path, _ = write_neighbours(tmp_path, model, 0)
    assert open_neighbours(path)[0].item_count == item_count


def test_an_item_past_the_count_is_refused() -> None:
    with pytest.raises(CallerError, match="expected items below 2, got 2"):
        train(interactions_of([(1, 0, [2])]), 2)


def test_ease_is_used_only_where_its_matrix_fits() -> None:
    assert kind_for(4_000, 2 * 1024**3) == "ease"
    assert kind_for(12_001, 64 * 1024**3) == "cosine"
    assert kind_for(4_000, 128 * 1024**2) == "cosine"


def test_ndcg_of_known_rankings() -> None:
    scores = np.array([0.5, 0.4, 0.4, 0.1])
    assert ndcg(scores, np.array([0], np.uint32)) == 1.0
    assert ndcg(scores, np.array([2], np.uint32)) == pytest.approx(0.5)
    assert ndcg(scores, np.array([0, 9], np.uint32)) == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_a_written_model_is_read_back_mapped_and_read_only(tmp_path: Path) -> None:
    model = train(cluster_world(), 40)
    path, checksum = write_neighbours(tmp_path, model, 12_345)
    assert path.name == "cooccurrence-12345.tbm"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found, built_at, checksum_found = open_neighbours(path)
    assert (built_at, checksum_found) == (12_345, checksum)
    assert (found.kind, found.item_count, found.row_count) == (model.kind, 40, model.row_count)
    for name in ("indptr", "items", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(model, name))
        assert not getattr(found, name).flags.writeable
    assert found.parameters.recency_half_life_ms == pytest.approx(model.parameters.recency_half_life_ms)


@pytest.mark.parametrize("at", [0, 9, 13, 20, 26, 40, 70, 75, 79, 80, 300, -1])
def test_a_flipped_bit_anywhere_is_refused(at: int, tmp_path: Path) -> None:
    path, _ = write_neighbours(tmp_path, train(cluster_world(), 40), 1)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(Damaged, match="DAMAGED_MODEL"):
        open_neighbours(path)


@pytest.mark.parametrize("length", [0, 1, 79, 80, 200, -1])
def test_a_truncated_model_is_refused(length: int, tmp_path: Path) -> None:
    path, _ = write_neighbours(tmp_path, train(cluster_world(), 40), 1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Damaged, match="DAMAGED_MODEL"):
        open_neighbours(path)
