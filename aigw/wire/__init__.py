"""HTTP/1.1 as values: heads, framing, bodies. No loop, no sockets, no config, no dialect."""
