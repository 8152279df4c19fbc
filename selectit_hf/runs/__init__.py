"""Runs: rating a dataset so that no work is lost, on one machine or with any engine.

A shard depends only on the plan and its number, so workers need not know of each other::

    run = runs.plan(dataset, source, scorers, "RUN")    # plan.json, written once
    runs.pending(run)                                   # shards without a whole sidecar
    runs.rate_shard(run, slug, 7, dataset, scorer)      # the table, then the sidecar
    runs.finish(run, dataset)                           # scores, selection, summary

`rate` rates the shards of one rank; `open_run` and `inputs` open everything again from a path or a
URL. An engine only decides who rates which pending shard; `datatrove_steps` gives the same steps to
datatrove's executors.
"""

from selectit_hf.runs.engines import local
from selectit_hf.runs.engines.datatrove_launch import Launch, datatrove_steps
from selectit_hf.runs.engines.launcher_rank import Rank
from selectit_hf.runs.rate_shards import (
    Progress,
    pending,
    prepare,
    rate,
    rate_shard,
    wait_and_take_over,
)
from selectit_hf.runs.results import finish, ranking_column, ratings_of
from selectit_hf.runs.run import (
    CHECK,
    RESULTS,
    Run,
    check_folder,
    open_results,
    open_run,
    plan,
)
from selectit_hf.runs.run_inputs import (
    inputs,
    is_streamed,
    model_folder,
    remember_inputs,
    rows_of,
)
from selectit_hf.runs.run_status import status
from selectit_hf.runs.shards import Shards
from selectit_hf.runs.store import Store, is_url, open_store
from selectit_hf.runs.streamed_rows import spool
from selectit_hf.runs.trackers import Trackers, tracking

__all__ = [
    "CHECK",
    "RESULTS",
    "Launch",
    "Progress",
    "Rank",
    "Run",
    "Shards",
    "Store",
    "Trackers",
    "check_folder",
    "datatrove_steps",
    "finish",
    "inputs",
    "is_streamed",
    "is_url",
    "local",
    "model_folder",
    "open_results",
    "open_run",
    "open_store",
    "pending",
    "plan",
    "prepare",
    "ranking_column",
    "rate",
    "rate_shard",
    "ratings_of",
    "remember_inputs",
    "rows_of",
    "spool",
    "status",
    "tracking",
    "wait_and_take_over",
]
