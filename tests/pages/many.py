#!/usr/bin/env python3
"""many.py CATALOG COUNT: as many images more as an installation has after years, copies of the newest in all but their
ids and names. They lie in the catalog only."""
import sqlite3
import sys
import uuid

path, count = sys.argv[1], int(sys.argv[2])
catalog = sqlite3.connect(path, timeout=30)
catalog.row_factory = sqlite3.Row
row = dict(catalog.execute("SELECT * FROM images ORDER BY created DESC LIMIT 1").fetchone())
columns = ", ".join(row)
marks = ", ".join(f":{name}" for name in row)
first = int.from_bytes(row["id"], "big")
with catalog:
    for number in range(count):
        # Ids sort by time: these are newer than the one that they are copies of.
        row["id"] = (first + ((number + 1) << 80)).to_bytes(16, "big")
        row["record"] = "sha256:" + uuid.uuid4().hex * 2
        row["name"] = f"many {number}"
        row["created"] += 1
        catalog.execute(f"INSERT INTO images ({columns}) VALUES ({marks})", row)
