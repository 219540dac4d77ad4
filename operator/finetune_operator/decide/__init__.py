"""What shall be: from one observation to one decision. Pure: no I/O, no clock, no memory.

- `core`: the journey of a job, as rules in order, and what holds in every world.
- `draft`: the decision in the making.
- `edits`: what an edit of the spec makes stale.
- `attempts`: a stage and its attempts, one Job each; `gang` sees its pods together, `queue` its waits.
- `baseline`: before training, whether a prompt is enough.
- `rollout`: from a judged adapter to requests.
- `diagnosis`: what is wrong with a pod, in the words of the API.
- `cost`: what the stages' pods held.
- `summary`: Ready, Reconciling, Stalled and the phase.
"""
