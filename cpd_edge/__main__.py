"""`python -m cpd_edge` is `cpd-edge`."""

from __future__ import annotations

from cpd_edge.cli import main

if __name__ == "__main__":
    main()
