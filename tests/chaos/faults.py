"""The faults by name, each with the words that stand for it on the page, in its order."""

from __future__ import annotations

FAULTS = {
    "draft_killed": "`kill -9` of the only draft worker",
    "one_of_two_targets_killed": "`kill -9` of one of two target workers",
    "target_killed": "`kill -9` of the only target worker",
    "one_of_two_drafts_killed": "`kill -9` of one of two draft workers",
    "redis_killed": "`kill -9` of Redis (Valkey)",
    "planner_killed": "`kill -9` of the planner",
    "coordinator_killed": "`kill -9` of the coordinator; clients ask again",
    "target_paused": "target worker paused for 10 s",
    "draft_paused": "draft worker paused for 10 s",
    "slow_network": "200 ms more on every round trip to both workers, for 10 s",
    "full_kv_cache": "KV cache of the target too small for all requests",
    "client_that_does_not_read": "clients that do not read their streams",
    "flood_of_clients": "200 clients at once, against a limit of 32 requests",
    "plans_pushed": "another plan every 50 ms, for 10 s",
    "target_added": "a second target worker added",
    "target_drained": "SIGTERM to one of two target workers",
    "rolling_restart": "everything restarted, one process after another",
    "graceful_shutdown": "SIGTERM to every role in turn",
}
