"""`tailorbird bench engine`: a decision against bare numpy, a profile against a bare LMDB read, on workload R.

Ours is `Engine.decide` in process, from the request with its string ids and its identifier to the finished `Decision`:
identifier hashing, person, consent, 64 features, bought and served lists, item lookup, eligibility, scores, top 10,
reasons. Whoever is asked about was served 10 items within the window before. The peer is what is left when all of that
has been done for it: it starts from row numbers and a ready vector, gathers the rows from a float32 array (items x 64,
C-contiguous), multiplies, takes the 10 largest by argpartition and sorts them. Every call asks for another person and
other candidates, drawn at random; ids are fresh strings, so that no hash is remembered. Blocks of the two alternate
(measure.py), the first of each only warms up; the state is mapped before, as a service does (`Engine.warm`). What is
served is written between blocks: no decision waits for a write.

`profile_read_over_lmdb_get`: `Engine.get_features` of one identifier, 64 float64, over `get` of a value as large as
the person's record by a ready 16-byte key, in an open read transaction of an LMDB of as many records. `lookup_us`: the
catalogue's id table, per candidate, at 1,000 random ids a call.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from tailorbird.bench import workload
from tailorbird.bench.measure import Paired, Timings, time_blocks, time_paired
from tailorbird.bench.musts import Must
from tailorbird.bench.workload import AT, CONTEXT, DIMENSION, WorkloadR
from tailorbird.engine import DecideRequest, Engine
from tailorbird.engine.configuration import parse_configuration
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.feature_compiler import compile_features
from tailorbird.engine.features import Place
from tailorbird.native.scoring import ItemTable

METHOD = (
    "p50 of whole in-process decisions over p50 of numpy gather + matrix-vector product + argpartition + sort from row "
    "numbers; alternating blocks in one process, another person and other random candidates each call, fresh id strings"
)
MUSTS = (Must("decide_100_over_numpy", at_most=2.5), Must("decide_1000_over_numpy", at_most=1.0))
K = 10
LOOKUPS_PER_CALL = 1_000
_MARK = "workload.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--people", type=int, default=100_000, help="people (default 100,000)")
    parser.add_argument("--items", type=int, default=100_000, help="items (default 100,000)")
    parser.add_argument("--blocks", type=int, default=30, help="timed blocks per measurement (default 30)")
    parser.add_argument("--calls", type=int, default=50, help="calls per block (default 50)")
    parser.add_argument("--seed", type=int, default=64, help="seed of the workload (default 64)")
    parser.add_argument("--quick", action="store_true", help="5,000 people, 2,000 items, 6 blocks")
    parser.add_argument("--data", type=Path, metavar="DIR", help="fill this directory once, and use it again")
    parser.add_argument("--log-decisions", action="store_true", help="keep a decision log, as a service does")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measurements; see the module for each."""
    if args.quick:
        args.people, args.items, args.blocks = 5_000, 2_000, 6
    size = WorkloadR(args.people, args.items, args.seed)
    with directory_of(args.data) as path:
        begin = time.perf_counter()
        with filled(size, path) as engine:
            results: dict[str, object] = {
                "method": METHOD,
                "people": size.people,
                "items": size.items,
                "features": DIMENSION,
                "seed": size.seed,
                "prepare_s": time.perf_counter() - begin,
            }
            engine.warm()
            if args.log_decisions:
                engine.log_decisions()
                results["decisions_logged"] = True
            bench = BenchR(engine, size, args.blocks, args.calls)
            for count in (100, 1_000):
                results.update(_decision_results(count, bench.decide(min(count, size.items // 2))))
            retrieved = bench.decide_retrieved()
            results["decide_retrieved_p50_us"] = retrieved.percentile_us(50)
            results["decide_retrieved_p99_us"] = retrieved.percentile_us(99)
            results.update(_profile_results(bench.read_profile(path)))
            results["lookup_us"] = bench.lookup().percentile_us(50) / LOOKUPS_PER_CALL
    return results


def _decision_results(count: int, paired: Paired) -> dict[str, object]:
    return {
        f"decide_{count}_over_numpy": paired.ratio(),
        f"decide_{count}_over_numpy_by_block": paired.ratio_by_block(),
        f"decide_{count}_p50_us": paired.ours.percentile_us(50),
        f"decide_{count}_p99_us": paired.ours.percentile_us(99),
        f"numpy_{count}_p50_us": paired.peer.percentile_us(50),
        f"numpy_{count}_p99_us": paired.peer.percentile_us(99),
    }


def _profile_results(paired: Paired) -> dict[str, object]:
    return {
        "profile_read_over_lmdb_get": paired.ratio(),
        "profile_read_over_lmdb_get_by_block": paired.ratio_by_block(),
        "profile_read_p50_us": paired.ours.percentile_us(50),
        "profile_read_p99_us": paired.ours.percentile_us(99),
        "lmdb_get_p50_us": paired.peer.percentile_us(50),
    }


class BenchR:
    """The measurements over one filled engine."""

    def __init__(self, engine: Engine, size: WorkloadR, block_count: int, call_count: int) -> None:
        self.engine, self.size = engine, size
        self.block_count, self.call_count = block_count, call_count
        # On a directory used before, others are asked about: who was served in an earlier run has less to rank.
        self.rng = np.random.default_rng([size.seed, 3, engine.position])
        self.embedding__id = size.embedding__id()

    def decide(self, candidate_count: int) -> Paired:
        """Time decisions on given candidates against numpy."""
        rows, k = self.embedding__id, min(K, candidate_count)
        people__bc = self._served_people()

        def numpy_top(given: tuple[NDArray[np.intp], NDArray[np.float32]]) -> object:
            ids, vector = given
            scores = rows[ids] @ vector
            top = np.argpartition(scores, -k)[-k:]
            return top[np.argsort(-scores[top])]

        def inputs_of(block: int) -> tuple[list[DecideRequest], list[tuple[NDArray[np.intp], NDArray[np.float32]]]]:
            requests = [self._request(person, candidate_count) for person in people__bc[block]]
            given = [
                (self._random_items(candidate_count), self.rng.random(DIMENSION, dtype=np.float32)) for _ in requests
            ]
            return requests, given

        return time_paired(
            self.engine.decide, numpy_top, inputs_of, block_count=self.block_count, between=self.engine.flush
        )

    def decide_retrieved(self) -> Timings:
        """Time decisions whose candidates the placement finds itself."""
        people__bc = self._served_people()

        def inputs_of(block: int) -> list[DecideRequest]:
            return [self._request(person, 0) for person in people__bc[block]]

        return time_blocks(self.engine.decide, inputs_of, block_count=self.block_count, between=self.engine.flush)

    def read_profile(self, path: Path) -> Paired:
        """Time reading 64 features of one identifier against a bare get."""
        features = compile_features(parse_configuration(workload.configuration_text()), 1)
        record_bytes = features.layout.packed_bytes_max
        with (
            tempfile.TemporaryDirectory(dir=path, prefix="bare-") as bare,
            _bare_store(Path(bare), self.size.people, record_bytes, self.size.seed) as (transaction, keys),
        ):

            def inputs_of(_: int) -> tuple[list[str], list[bytes]]:
                people, others = self.rng.integers(0, self.size.people, (2, 20 * self.call_count)).tolist()
                return [_user_id(person) for person in people], [keys[other] for other in others]

            get_features = self.engine.get_features
            names = tuple(feature.name for feature in features.kept(Place.HEAD)[:DIMENSION])
            return time_paired(
                lambda person: get_features("user_id", [person], names, at=AT).values,
                transaction.get,
                inputs_of,
                block_count=self.block_count,
            )

    def lookup(self) -> Timings:
        """Time the id table: `LOOKUPS_PER_CALL` ids a call."""
        table = ItemTable(0, 0)
        for index in range(self.size.items):
            table.put(index, workload.item_id(index), True, -1, 0, 0, (), None)

        def inputs_of(_: int) -> list[list[str]]:
            return [_ids(self._random_items(LOOKUPS_PER_CALL)) for _ in range(self.call_count)]

        return time_blocks(table.lookup, inputs_of, block_count=self.block_count)

    def requests(self, candidate_count: int) -> list[DecideRequest]:
        """Return a block of requests of random people on random candidates, each of whom was served 10 items just now."""
        people = self.rng.integers(0, self.size.people, self.call_count).tolist()
        for person in people:
            self.engine.decide(self._request(person, 100))
        self.engine.flush()
        return [self._request(person, candidate_count) for person in people]

    def _served_people(self) -> list[list[int]]:
        """Return the people to ask about, by block, each served 10 items just now, so that there is what to exclude."""
        people = self.rng.integers(0, self.size.people, (self.block_count + 1, self.call_count)).tolist()
        for block in people:
            for person in block:
                self.engine.decide(self._request(person, 100))
            self.engine.flush()
        return list(people)

    def _request(self, person: int, candidate_count: int) -> DecideRequest:
        return DecideRequest(
            placement="ranked" if candidate_count else "retrieved",
            identifiers=_identifier(person),
            context=CONTEXT,
            candidates=tuple(_ids(self._random_items(candidate_count))) if candidate_count else (),
            at=AT,
            k=K,
        )

    def _random_items(self, count: int) -> NDArray[np.intp]:
        """Return random item numbers; a repeat among them (1 in 200 at 1,000 of 100,000) is left in."""
        return self.rng.integers(0, self.size.items, count, dtype=np.intp)


def _identifier(person: int) -> dict[str, str]:
    return {"user_id": _user_id(person)}


def _user_id(person: int) -> str:
    return workload.identifiers(person)["user_id"]


def _ids(items: NDArray[np.intp]) -> list[str]:
    return [workload.item_id(item) for item in items.tolist()]


@contextlib.contextmanager
def _bare_store(
    path: Path, count: int, value_bytes: int, seed: int
) -> Iterator[tuple[lmdb.Transaction[bytes], Sequence[bytes]]]:
    """Yield an open read transaction over `count` values of `value_bytes`, and their random 16-byte keys."""
    drawn = np.random.default_rng([seed, 4]).bytes(16 * count)
    keys = [drawn[place : place + 16] for place in range(0, 16 * count, 16)]
    with lmdb.open(str(path), map_size=8 * 1024**3, lib_version=0, sync=False) as environment:
        with environment.begin(write=True) as transaction:
            for number, key in enumerate(keys):
                transaction.put(key, number.to_bytes(8, "little") * (value_bytes // 8))
        with environment.begin() as transaction:
            yield transaction, keys


@contextlib.contextmanager
def directory_of(given: Path | None) -> Iterator[Path]:
    """Yield the directory given, or one that is gone afterwards."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary:
        yield Path(temporary)


def filled(size: WorkloadR, path: Path) -> Engine:
    """Return an engine holding the workload, filled now or by an earlier run on the same directory."""
    mark = path / _MARK
    held = mark.read_text() if mark.exists() else ""
    if held not in ("", f"{size}\n"):
        raise PreconditionFailed(
            "OTHER_WORKLOAD", f"expected {size} in {path}, got {held.strip()}; remove the directory, or name another"
        )
    engine = Engine.open(path, workload.configuration_text(), clock=lambda: AT)
    if not held:
        size.load(engine)
        engine.train_cooccurrence()
        engine.tick()
        mark.write_text(f"{size}\n")
    return engine
