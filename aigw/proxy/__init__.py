"""The hot path: one client socket, one exchange, one upstream socket, joined by direct calls.

Read in this order: `states`, `client`, `exchange`, `upstream`, `pool`, `sweep`.
"""
