"""May this exchange proceed? Each policy is a module here; a feature that a rule does not use costs that rule nothing.

A policy sees the request's head and the snapshot, never a socket. Its answer is a value: what it found, or a `Failure`
in which phase and blame are named. `keys.py` runs in the head phase, before anything of the body is read.
"""
