"""The admin API: the supervisor's own listener, where people and programs look at the gateway and change its config.

    server      sockets and HTTP/1.1                guard     who may ask at all
    messages    a request, an answer, a refusal     api       which path means what
    writer      edits of the config, one batch at a time, and the file they go to (`file`)
    recent      the last finished exchanges

It runs beside everything the supervisor does and carries no traffic, so plainness goes before speed here. What it needs
of the supervisor stands in `api.Control`; it never sees a worker.
"""
