"""A driver that does nothing but hold a lease and write; run as a script it can be killed or stopped at any moment."""

from __future__ import annotations

import sys
import time

from mept.errors import InputError
from orchestration.run.lease import Lease, Lost

if __name__ == "__main__":
    url, grid, root, patience, file = sys.argv[1:]
    try:
        with (
            Lease(url, grid, root, lambda line: print(line, flush=True), float(patience)) as lease,
            open(file, "a") as out,
        ):
            print(f"generation {lease.generation}", flush=True)
            while True:
                lease.check()
                print(time.monotonic(), file=out, flush=True)
                time.sleep(0.02)
    except Lost as lost:
        print(f"lost: {lost}", flush=True)
    except InputError as error:
        print(f"refused: {error}", flush=True)
