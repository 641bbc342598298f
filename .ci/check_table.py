"""Check the default study's table: every run finished, all samplers, several kinds of target, several ranks."""

import sys

import pyarrow.parquet as pq

table = pq.read_table(sys.argv[1])
rows = table.to_pylist()
unfinished = [
    f"{r['target_id']}/{r['run_id']}: {r['status']}, {r['reason']}" for r in rows if r["status"] != "finished"
]
assert not unfinished, "\n".join(unfinished)
assert len(rows) >= 32, len(rows)
assert len({r["target_kind"] for r in rows}) >= 3
assert {r["sampler"] for r in rows} == {"sgld", "hmc", "mclmc"}
assert len({(r["pack_id"], r["rank"]) for r in rows}) >= 2
assert all(r["llc_mean"] is not None and r["llc_std_error"] > 0 for r in rows)
print(f"{len(rows)} runs, every one finished, with an estimate and its error")
