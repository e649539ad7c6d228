"""What stands side by side: nginx, HAProxy, aigw and, as the floor, the upstream itself.

Each of nginx and HAProxy is configured as its manual advises for a plain reverse proxy that keeps connections alive
on both sides, with one worker and no access log. Each listens twice: for plain answers, and for streams with
buffering off. aigw has one listener, asks for a key, routes by model and writes its access log to a file.
"""

import getpass
import hashlib
import random
import secrets
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
KEY = "sk-aigw-" + secrets.token_urlsafe(32)
MODEL = "gpt-3.5-turbo"
ACCESS_LOG = "aigw-access.log"  # in the folder of the run

NGINX = """
user {user};  # workers keep the user of this run, who owns the folder
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests 1000000000;
    upstream instant {{
        server 127.0.0.1:{upstream};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        location / {{ proxy_pass http://instant; }}
    }}
    server {{
        listen 127.0.0.1:{stream} backlog=4096;
        location / {{ proxy_pass http://instant; proxy_buffering off; }}
    }}
}}
"""

HAPROXY = """
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    http-reuse always
    default_backend instant
frontend plain
    bind 127.0.0.1:{plain} backlog 4096
frontend stream
    bind 127.0.0.1:{stream} backlog 4096
    option http-no-delay
backend instant
    server instant 127.0.0.1:{upstream}
"""

AIGW = """
listen: 127.0.0.1:{plain}
access_log: {access_log}
upstreams:
  instant: {{provider: openai, api_key: sk-benchmark, targets: [{{url: "http://127.0.0.1:{upstream}/v1"}}]}}
gateways:
  default:
    keys:
      bench: {{sha256: "{digest}"}}
    models:
      {model}: instant
"""


@dataclass(frozen=True, slots=True)
class Proxy:
    """How to start one, and where it listens for plain answers and for streams."""

    name: str
    command: list[str]
    plain: int
    stream: int
    files: dict[Path, str] = field(default_factory=dict)  # to be written before the start


def free_port() -> int:
    """A port below those the kernel gives to clients: a client that dials one of its own meets itself."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def upstream() -> Proxy:
    port = free_port()
    return Proxy("direct", [sys.executable, str(HERE / "upstream.py"), str(port)], port, port)


def nginx(folder: Path, target: int) -> Proxy:
    plain, stream, path = free_port(), free_port(), folder / "nginx.conf"
    text = NGINX.format(user=getpass.getuser(), folder=folder, upstream=target, plain=plain, stream=stream)
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)]
    return Proxy("nginx", command, plain, stream, {path: text})


def haproxy(folder: Path, target: int) -> Proxy:
    plain, stream, path = free_port(), free_port(), folder / "haproxy.cfg"
    text = HAPROXY.format(upstream=target, plain=plain, stream=stream)
    return Proxy("haproxy", ["haproxy", "-db", "-f", str(path)], plain, stream, {path: text})


def aigw(folder: Path, target: int, python: str) -> Proxy:
    port, path = free_port(), folder / "aigw.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    log = folder / ACCESS_LOG
    text = AIGW.format(access_log=log, upstream=target, plain=port, digest=digest, model=MODEL)
    return Proxy("aigw", [python, "-m", "aigw", "serve", "--config", str(path)], port, port, {path: text})
