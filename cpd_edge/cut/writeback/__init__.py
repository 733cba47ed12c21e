"""Write-back: the cut that the graph took, made in the user's own module, which keeps its class, names and hooks.

Parameters and buffers are sliced as the graph's are. What the forward reads beside them (`num_heads`, `hidden_dim`,
split sizes) is found by evidence. A module is changed only after a copy of it computed what the cut graph does, in two
batch sizes, with and without gradients, and traced anew, and after the copy trained; otherwise it is refused by name.

    places → rehearsal (facts propose, a witness compares, repair searches) → commit
"""

from cpd_edge.cut.writeback.commit import write_back

__all__ = ["write_back"]
