"""What stands side by side, each configured as its manual advises for this work, and what work each of them does.

nginx, HAProxy and Envoy are plain reverse proxies that keep connections alive on both sides. nginx and HAProxy listen
twice: for plain answers, and for streams with buffering off. None of them writes an access log. sglang's router, in
Rust, forwards to one of a list of inference servers, which here has one entry. LiteLLM is a gateway as aigw is, and
runs with all off that costs it time: no log, no database, no callbacks. The floor is the upstream itself.
"""

import getpass
import hashlib
import random
import resource
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from environments import Environment

HERE = Path(__file__).parent
KEY = "sk-aigw-" + secrets.token_urlsafe(32)
MODEL = "gpt-3.5-turbo"
# Clients that wait at the same time: where descriptors are few, what a proxy has for two per client, and some to spare.
IDLE_CLIENTS = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 500)
WORK = ("key", "limit", "model", "usage", "log", "metrics")  # what a gateway does besides forwarding

NGINX = """
user {user};  # workers keep the user of this run, who owns the folder
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {connections}; }}
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
    nbthread {workers}
    maxconn {connections}
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

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {plain}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: plain
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: instant, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: instant
    type: STATIC
    circuit_breakers: {{thresholds: [{{max_connections: 8192, max_pending_requests: 8192, max_requests: 8192}}]}}
    load_assignment:
      cluster_name: instant
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""

LITELLM = """
model_list:
- model_name: {model}
  litellm_params: {{model: "openai/{model}", api_base: "http://127.0.0.1:{upstream}/v1", api_key: sk-benchmark}}
litellm_settings: {{telemetry: false}}
general_settings: {{master_key: {key}}}
"""
# The list of prices it comes with, instead of one that it would fetch at every start; and nothing else that calls home.
LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
}

AIGW = """
listen: 127.0.0.1:{plain}
workers: {workers}
admin: {{listen: 127.0.0.1:0}}
access_log: {access_log}
upstreams:
  instant: {{provider: openai, api_key: sk-benchmark, targets: [{{url: "http://127.0.0.1:{upstream}/v1"}}]}}
gateways:
  default:
    keys:
      bench: {{sha256: "{digest}", limits: [{{requests: 100000000/1m}}]}}
    models:
      {model}: instant
"""


@dataclass(frozen=True, slots=True, eq=False)
class Proxy:
    """How to start one, where it listens for plain answers and for streams, and what it does."""

    name: str
    command: list[str]
    plain: int
    stream: int
    files: dict[Path, str] = field(default_factory=dict)  # to be written before the start
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    does: frozenset[str] = frozenset()  # of WORK
    exact: bool = True  # the answer is the upstream's, byte for byte
    slow: bool = False  # so slow that the others' durations and numbers of connections would say nothing


def free_port() -> int:
    """A port nobody listens on, outside the range the kernel takes ports for outgoing connections from."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def access_log(folder: Path, workers: int) -> Path:
    """Of aigw with so many workers."""
    return folder / f"aigw{workers}-access.log"


def upstream() -> Proxy:
    port = free_port()
    return Proxy("direct", [sys.executable, str(HERE / "upstream.py"), str(port)], port, port)


def nginx(folder: Path, target: int, workers: int) -> Proxy:
    plain, stream, path = free_port(), free_port(), folder / f"nginx{workers}.conf"
    text = NGINX.format(
        user=getpass.getuser(),
        workers=workers,
        folder=folder,
        connections=IDLE_CLIENTS + 2000,
        upstream=target,
        plain=plain,
        stream=stream,
    )
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)]
    return Proxy("nginx", command, plain, stream, {path: text}, workers=workers)


def haproxy(folder: Path, target: int, workers: int) -> Proxy:
    plain, stream, path = free_port(), free_port(), folder / f"haproxy{workers}.cfg"
    text = HAPROXY.format(workers=workers, connections=IDLE_CLIENTS + 200, upstream=target, plain=plain, stream=stream)
    return Proxy("haproxy", ["haproxy", "-db", "-f", str(path)], plain, stream, {path: text}, workers=workers)


def envoy(folder: Path, target: int, workers: int, environment: Environment) -> Proxy:
    port, path = free_port(), folder / f"envoy{workers}.yaml"
    command = [environment.file("envoy/_bin/envoy"), "--concurrency", str(workers), "--disable-hot-restart"]
    command += ["--log-level", "error", "-c", str(path)]
    files = {path: ENVOY.format(upstream=target, plain=port)}
    return Proxy("envoy", command, port, port, files, workers=workers, does=frozenset({"metrics"}))


def sglang(target: int, workers: int, environment: Environment) -> Proxy:
    """It takes as many threads as there are cores that it may use."""
    port = free_port()
    command = [environment.program("smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{target}", "--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return Proxy("sglang", command, port, port, workers=workers, does=frozenset({"metrics"}))


def litellm(folder: Path, target: int, workers: int, environment: Environment) -> Proxy:
    port, path = free_port(), folder / f"litellm{workers}.yaml"
    command = [environment.program("litellm"), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    command += ["--num_workers", str(workers), "--keepalive_timeout", "75", "--config", str(path)]
    return Proxy(
        "litellm",
        command,
        port,
        port,
        {path: LITELLM.format(model=MODEL, upstream=target, key=KEY)},
        LITELLM_ENVIRONMENT,
        workers,
        does=frozenset({"key", "model", "usage"}),
        exact=False,
        slow=True,
    )


def aigw(folder: Path, target: int, workers: int, python: str) -> Proxy:
    port, path = free_port(), folder / f"aigw{workers}.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    log = access_log(folder, workers)
    text = AIGW.format(access_log=log, upstream=target, plain=port, digest=digest, model=MODEL, workers=workers)
    command = [python, "-P", "-m", "aigw", "serve", "--config", str(path)]
    return Proxy("aigw", command, port, port, {path: text}, workers=workers, does=frozenset(WORK))
