"""Run folder → one page that an engineer can sign, and its Markdown twin.

    run.json, samples/  →  record.Record  →  view.Report  →  templates  →  report.html, report.md

`sections` builds the view model once from the record; both templates only lay it out, so the twins
state the same facts. `figures` draws SVG by hand, `format` is the only place that writes numbers.
"""

from cpd_edge.report.build import moved, write

__all__ = ["moved", "write"]
