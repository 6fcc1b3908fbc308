"""What each account should have been charged, from raw runs and requests alone, beside what its ledger says.

python recompute_invoices.py pillion.db [since]      (since: when billing was turned on, seconds since the epoch)
Exact where nothing runs and all is posted; else `open` is what is still to be settled. Exit status 1: they differ.
"""

import sqlite3
import sys
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise

db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
since = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
PRICES = db.execute(
    "SELECT id, kind, item, region, hourly, input, output, effective_ms FROM prices"
).fetchall()


def price(kind, item, region, at_ms):
    """The latest that has taken effect, the region's own first."""
    for where in (region, ""):
        found = [p for p in PRICES if p[1:4] == (kind, item, where) and p[7] <= at_ms]
        if found:
            return max(found, key=lambda p: (p[7], p[0]))
    return None


used = defaultdict(Fraction)  # by account and price
runs = "SELECT account_id, region, gpu_type, gpu_count, began_ms, seen_ms FROM runs WHERE billed"
for account, region, gpu, count, began, ended in db.execute(runs):
    cuts = sorted({began, ended} | {p[7] for p in PRICES if began < p[7] < ended})
    for start, end in pairwise(cuts):
        if p := price("gpu_hour", gpu, region, start):
            used[account, p[0]] += Fraction(p[4] * count * (end - start), 3_600_000)

events = """SELECT e.account_id, e.base_model, e.at, coalesce(e.prompt_tokens, 0), coalesce(e.completion_tokens, 0)
    FROM usage_events e JOIN instances i ON i.id = e.instance_id WHERE i.account_id IS NULL AND e.at >= ?"""
for account, model, at, prompt, completion in db.execute(events, (since,)):
    if p := price("tokens", model, "", round(at * 1000)):
        used[account, p[0]] += Fraction(p[5] * prompt + p[6] * completion, 1_000_000)

owed, paid = defaultdict(int), defaultdict(int)
for (account, _), amount in used.items():
    owed[account] += amount.__floor__()
for account, amount in db.execute("SELECT account_id, amount FROM ledger_entries WHERE target = 'revenue'"):
    paid[account] += amount
for account in sorted(owed.keys() | paid.keys()):
    print(
        f"{account}  recomputed {owed[account]}  ledger {paid[account]}  open {owed[account] - paid[account]}"
    )
sys.exit(any(owed[account] != paid[account] for account in owed.keys() | paid.keys()))
