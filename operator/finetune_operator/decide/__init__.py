"""Decide: from one observation to one decision. Pure: no I/O, no clock, no memory.

- `core`: the journey of a job, as rules in order, and what holds in every world.
- `world`: what the rules look at; `verdict`: what they return.
- `life`: rules around the stages: suspension, deadline, the end.
- `edits`: what an edit of the spec makes stale.
- `placement`: in which ServingPool a job is served, or on a server of its own.
- `stages`, `baseline`, `rollout`: rules of the stages; what serves is kept serving.
- `pooled`: a release in a ServingPool: verified, then watched. `steps`: traffic in steps; `traffic`: whether it answers worse.
- `routes`: the HTTPRoute of a job with servers of its own.
- `servingpool`: the objects and the status of a ServingPool. `inference`: its way in through a Gateway.
- `idle`: when servers sleep and wake, of a pool, or of one job by `sleep`.
- `approval`: what people say between verification and traffic; `switching`: all traffic to one release, and back.
- `candidates`: several base models, the smallest first: whether the next one follows.
- `attempts`: one Job for each attempt of a stage, until it is over; `endings`: how it ended, and what follows.
- `gang`: the pods of an attempt together; `queue`: an attempt in a queue; `progress`: how far training is.
- `diagnosis`: what is wrong with a pod, in the words of the API.
- `drift`: which object has to be applied, and what others changed.
- `leftovers`: what neither serves nor is wanted goes.
- `cost`: what the stages' pods held.
- `summary`: Ready, Reconciling, Stalled and the phase.
"""
