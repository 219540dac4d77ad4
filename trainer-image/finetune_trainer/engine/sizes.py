"""Sizes of blocks, nodes and chunks: the passes compute with them, and the memory estimate counts with them. No torch."""

CHUNK = 512
"""Labelled positions whose logits exist at a time, in the head's precision; their gradients overwrite them."""

LOGITS = {"cpu": 32, "cuda": 256}
"""Of these, positions whose logits are in float32 at a time: on a CPU as many as fit into its caches."""

ROWS = 1280
"""Rows of a decoder's block on a CPU, whose buffers all layers use in turn. More rows make fewer calls, and larger buffers."""

PIECE = 256
"""Tokens of a prefix tree's node; a longer one is a chain. So attention computes few scores that its mask hides."""

TOGETHER = 2048
"""Tokens of nodes that are attended together: their scores should stay in the cache."""

ROUND = 32
"""Micro-batches are padded to a multiple of this many tokens: on a CPU a matrix product of a new shape costs half a
millisecond and 0.6 MiB once, for the code generated for it. Nothing depends on the padding."""

EVEN = 16
"""The same within a tile: its nodes are padded to a multiple of this many tokens."""
