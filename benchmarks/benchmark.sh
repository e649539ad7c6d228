#!/usr/bin/env bash
# Benchmarks a running gateway, or one that it starts, as a user would: through its own admin API it creates a gateway
# with a key, a limit, models and forwarding rules, drives it with hey, prints what hey says and a table, and removes
# what it created, whatever happened.
#
#     benchmarks/benchmark.sh
#
# ADMIN_URL         where the admin API is (http://localhost:8080/api/v1); ADMIN_TOKEN: its token, if it asks for one
# PROXY_URL         where clients connect (http://localhost:8081)
# CONCURRENT_USERS  connections (50)
# DURATION          of each scenario (30s); REQUESTS: a number of requests instead
# UPSTREAM_URL      what answers (default: starts `aigw mock`); it must speak OpenAI's API, and answer GET /ping
# OUTPUT            a folder for benchmark.json and benchmark.md
# AIGW              the command that starts what does not run (.venv/bin/aigw beside this folder, else aigw)
#
# Where nobody answers at ADMIN_URL, a gateway is started there. Exit status: 0; 1: an answer was not 2xx where all
# should be, or the gateway could not be set up; 2: something is missing.
set -euo pipefail

ADMIN_URL=${ADMIN_URL:-http://localhost:8080/api/v1}
PROXY_URL=${PROXY_URL:-http://localhost:8081}
ADMIN_TOKEN=${ADMIN_TOKEN:-}
CONCURRENT_USERS=${CONCURRENT_USERS:-50}
DURATION=${DURATION:-30s}
REQUESTS=${REQUESTS:-}
UPSTREAM_URL=${UPSTREAM_URL:-}
OUTPUT=${OUTPUT:-}

ADMIN_URL=${ADMIN_URL%/} PROXY_URL=${PROXY_URL%/} UPSTREAM_URL=${UPSTREAM_URL%/}
name=benchmark-$$
host=$name.invalid # of the gateway that is created: hey sends it, so that no other tenant of a shared gateway is asked
work=$(mktemp -d)
started=() made=() failed=0

say() { printf '%s\n' "$*" >&2; }
die() { say "benchmark: $1"; exit "${2:-1}"; }

# --- what it needs

for tool in hey curl awk; do
  command -v "$tool" >/dev/null && continue
  case $tool in
    hey) how="apt-get install hey (Debian, Ubuntu), brew install hey, or go install github.com/rakyll/hey@latest" ;;
    *) how="apt-get install $tool" ;;
  esac
  die "$tool is missing: $how" 2
done
[[ $CONCURRENT_USERS =~ ^[1-9][0-9]*$ ]] || die "CONCURRENT_USERS=$CONCURRENT_USERS: a number of connections, as 50" 2
[[ $DURATION =~ ^[0-9]+(ms|s|m|h)$ ]] || die "DURATION=$DURATION: a duration, as 30s" 2
[[ -z $REQUESTS || $REQUESTS =~ ^[1-9][0-9]*$ ]] || die "REQUESTS=$REQUESTS: a number of requests, as 100000" 2
if [[ -n $REQUESTS ]] && ((REQUESTS < CONCURRENT_USERS)); then
  die "REQUESTS=$REQUESTS: not less than CONCURRENT_USERS=$CONCURRENT_USERS" 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
AIGW=${AIGW:-$([[ -x $here/.venv/bin/aigw ]] && echo "$here/.venv/bin/aigw" || echo aigw)}

# --- the end, whatever happens

remove() {
  local status=$?
  trap - EXIT INT TERM
  for path in ${made[@]+"${made[@]}"}; do
    admin DELETE "$path" >/dev/null || say "benchmark: could not remove $path"
  done
  for pid in ${started[@]+"${started[@]}"}; do
    kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
  exit "$status"
}
trap remove EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the admin API

# admin METHOD PATH [BODY]: prints the answer. Status 1, and the answer to stderr, where it is not 2xx.
admin() {
  local headers=(-H 'content-type: application/json') code
  [[ -n $ADMIN_TOKEN ]] && headers+=(-H "authorization: Bearer $ADMIN_TOKEN")
  code=$(curl -sS -o "$work/answer" -w '%{http_code}' -X "$1" "${headers[@]}" ${3:+--data "$3"} "$ADMIN_URL$2") || return 1
  if [[ $code != 2* ]]; then
    say "benchmark: $1 $ADMIN_URL$2: $code $(cat "$work/answer")"
    return 1
  fi
  cat "$work/answer"
}

# create COLLECTION BODY: the item is removed at the end, the last one first.
create() {
  admin POST "$1" "$2" >"$work/created" || exit 1
  made=("$1/$3" ${made[@]+"${made[@]}"})
}

up() { curl -s -o /dev/null --max-time 2 "$1"; }

# await URL PID LOG: until it answers, or the process is gone.
await() {
  local tries=100
  until up "$1"; do
    kill -0 "$2" 2>/dev/null || die "it does not start: $(cat "$3")"
    ((tries--)) || die "$1 does not answer; $(cat "$3")"
    read -rt 0.1 <> <(:) || true
  done
}

# authority URL: host:port, by the scheme's port where it has none.
authority() {
  local rest=${1#*://}
  rest=${rest%%/*}
  [[ $rest =~ :[0-9]+$ ]] || rest+=$([[ $1 == https:* ]] && echo :443 || echo :80)
  echo "$rest"
}

if [[ -z $UPSTREAM_URL ]]; then
  port=$((20000 + RANDOM % 10000))
  "$AIGW" mock --listen "127.0.0.1:$port" --bytes 49 --tokens 50 >"$work/mock.log" 2>&1 &
  started+=($!)
  UPSTREAM_URL=http://127.0.0.1:$port
  await "$UPSTREAM_URL/ping" "$!" "$work/mock.log"
  say "started $AIGW mock at $UPSTREAM_URL"
fi
if ! up "${ADMIN_URL%/api/v1}/healthz"; then
  printf 'access_log: %s/access.log\nupstreams: {}\ngateways: {}\n' "$work" >"$work/config.yaml"
  AIGW_ADMIN_TOKEN=$ADMIN_TOKEN "$AIGW" serve --config "$work/config.yaml" --listen "$(authority "$PROXY_URL")" \
    --admin-listen "$(authority "$ADMIN_URL")" >"$work/serve.log" 2>&1 &
  started+=($!)
  await "${ADMIN_URL%/api/v1}/readyz" "$!" "$work/serve.log"
  say "started $AIGW serve at $PROXY_URL"
fi

# --- a gateway of its own

create /upstreams "{\"name\": \"$name\", \"provider\": \"openai\", \"api_key\": \"benchmark\", \"usage\": \"as_reported\",
  \"targets\": [{\"url\": \"$UPSTREAM_URL\"}]}" "$name"
create /upstreams "{\"name\": \"$name-http\", \"provider\": \"http\", \"targets\": [{\"url\": \"$UPSTREAM_URL\"}]}" "$name-http"
create /gateways "{\"name\": \"$name\", \"hosts\": [\"$host\"], \"models\": {\"gpt-3.5-turbo\": \"$name\"}}" "$name"
# beside the rule that a gateway has from the start: everything by its model
admin POST "/gateways/$name/rules" '{"name": "ping", "path": "/ping", "methods": ["GET"], "public": true,
  "upstream": "'"$name-http"'"}' >/dev/null || exit 1
admin POST "/gateways/$name/keys" "{\"name\": \"benchmark\", \"limits\": [{\"requests\": \"100000000/1m\"}]}" >"$work/key" || exit 1
key=$(sed -n 's/.*"key": *"\([^"]*\)".*/\1/p' "$work/key")
[[ -n $key ]] || die "the admin API gave no key: $(cat "$work/key")"

# --- what is sent

chat='{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hi"}]}'
stream='{"model": "gpt-3.5-turbo", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
# prompt FILE KIB
prompt() {
  { printf '{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "'
    head -c "$(($2 * 1024))" /dev/zero | tr '\0' x
    printf '"}]}'; } >"$1"
}
prompt "$work/100k" 100
prompt "$work/1m" 1024

json=(-m POST -T application/json -H "authorization: Bearer $key" -host "$host")
rows=()

# run TITLE [hey's options] URL
run() {
  local title=$1 amount=(-z "$DURATION")
  shift
  [[ -n $REQUESTS ]] && amount=(-n "$REQUESTS")
  printf '\n== %s\n\n' "$title"
  hey "${amount[@]}" -c "$CONCURRENT_USERS" -t 60 "$@" | tee "$work/hey"
  # requests, requests/s, p50, p95, p99 in ms, statuses, errors; and whether all were 2xx
  rows+=("$(awk -v title="$title" '
    /Requests\/sec:/ { rate = $2 }
    $1 == "50%" && $2 == "in" { p50 = $3 * 1000 }
    $1 == "95%" && $2 == "in" { p95 = $3 * 1000 }
    $1 == "99%" && $2 == "in" { p99 = $3 * 1000 }
    /^Status code distribution/ { part = "status" }
    /^Error distribution/ { part = "error" }
    $1 ~ /^\[[0-9]+\]$/ {
      code = substr($1, 2, length($1) - 2)
      if (part == "status") {
        count += $2; codes = codes (codes ? ", " : "") code ": " $2
        if (code !~ /^2/) bad += $2
      }
      if (part == "error") { errors += code }
    }
    END {
      if (!count || errors) bad += errors + !count
      printf "%s|%d|%.0f|%.2f|%.2f|%.2f|%s|%d|%d", title, count, rate, p50, p95, p99, codes, errors, bad
    }' "$work/hey")")
  if [[ ${rows[-1]##*|} != 0 ]]; then
    failed=1
    say "benchmark: not every answer was 2xx: $title"
  fi
}

# --- the scenarios

sized() { echo "x-mock: bytes=$1"; } # what the mock obeys; other upstreams answer as they do

run "static ping, by the gateway itself" "$PROXY_URL/__/ping"
run "upstream direct, chat" -m POST -T application/json -d "$chat" "$UPSTREAM_URL/v1/chat/completions"
run "forwarded GET" -host "$host" "$PROXY_URL/ping"
run "chat completion" "${json[@]}" -d "$chat" "$PROXY_URL/v1/chat/completions"
run "chat completion, no keep-alive" -disable-keepalive "${json[@]}" -d "$chat" "$PROXY_URL/v1/chat/completions"
run "chat completion, prompt of 100 KiB" "${json[@]}" -D "$work/100k" "$PROXY_URL/v1/chat/completions"
run "chat completion, prompt of 1 MiB" "${json[@]}" -D "$work/1m" "$PROXY_URL/v1/chat/completions"
run "chat completion, answer of 800 bytes" -H "$(sized 800)" "${json[@]}" -d "$chat" "$PROXY_URL/v1/chat/completions"
run "streaming, 50 tokens" "${json[@]}" -d "$stream" "$PROXY_URL/v1/chat/completions"

# Clients that hang up in the middle of an answer: one for each hundred of the requests beside them, by the rate of the
# scenario before. The shell's own connections, since a process for each would be the load.
abort() {
  exec 3<>"/dev/tcp/${target%:*}/${target##*:}" || return 0
  printf 'POST /v1/chat/completions HTTP/1.1\r\nhost: %s\r\nauthorization: Bearer %s\r\nx-mock: rate=20\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s' \
    "$host" "$key" "${#stream}" "$stream" >&3
  read -rt 1 -u 3 _ || true # its first line
  exec 3>&-
  echo >>"$work/aborts"
}
target=$(authority "$PROXY_URL")
rate=$(printf '%s\n' "${rows[@]}" | awk -F'|' '$1 == "chat completion" { print $3 }')
if [[ $PROXY_URL == http://* ]]; then
  pause=$(awk -v rate="$rate" 'BEGIN { printf "%.4f", (rate > 0 ? 100 / rate : 1) }')
  : >"$work/aborts"
  (while :; do abort 2>/dev/null; read -rt "$pause" <> <(:) || true; done) &
  aborter=$!
  started+=("$aborter")
  run "chat completion, 1 % of clients hang up" "${json[@]}" -d "$chat" "$PROXY_URL/v1/chat/completions"
  kill "$aborter" && wait "$aborter" 2>/dev/null || true
  printf '\n%s clients hung up in the middle of an answer\n' "$(wc -l <"$work/aborts" | tr -d ' ')"
fi

# --- the table

headings="scenario|requests|req/s|p50 ms|p95 ms|p99 ms|statuses|errors"
table() {
  printf '%s\n' "$headings" "${rows[@]}" | awk -F'|' '
    { for (i = 1; i <= 8; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } }
    END {
      for (row = 1; row <= NR; row++) {
        line = "|"
        for (i = 1; i <= 8; i++) line = line sprintf(i == 1 || i == 7 ? " %-" width[i] "s |" : " %" width[i] "s |", cell[row, i])
        print line
        if (row == 1) {
          line = "|"
          for (i = 1; i <= 8; i++) { dashes = sprintf("%" width[i] "s", ""); gsub(/ /, "-", dashes); line = line " " dashes " |" }
          print line
        }
      }
    }'
}
about="$("$AIGW" --version 2>/dev/null || echo "aigw at $PROXY_URL"); $CONCURRENT_USERS connections, ${REQUESTS:-$DURATION}${REQUESTS:+ requests} each; $(uname -sm), $(getconf _NPROCESSORS_ONLN) cores; $(date -u +%Y-%m-%dT%H:%M:%SZ)"
printf '\n%s\n\n' "$about"
table
if [[ -n $OUTPUT ]]; then
  mkdir -p "$OUTPUT"
  { printf '# Benchmark\n\n%s\n\n' "$about"; table; } >"$OUTPUT/benchmark.md"
  printf '%s\n' "${rows[@]}" | awk -F'|' -v about="$about" '
    function text(value) { gsub(/\\/, "\\\\", value); gsub(/"/, "\\\"", value); return "\"" value "\"" }
    BEGIN { printf "{\"about\": %s, \"scenarios\": [", text(about) }
    {
      n = split($7, codes, ", "); statuses = ""
      for (i = 1; i <= n; i++) { split(codes[i], pair, ": "); statuses = statuses (i > 1 ? ", " : "") text(pair[1]) ": " pair[2] }
      printf("%s\n  {\"name\": %s, \"requests\": %s, \"requests_per_second\": %s, \"p50_ms\": %s, \"p95_ms\": %s, ",
        (NR > 1 ? "," : ""), text($1), $2, $3, $4, $5)
      printf("\"p99_ms\": %s, \"statuses\": {%s}, \"errors\": %s}", $6, statuses, $8)
    }
    END { print "\n]}" }' >"$OUTPUT/benchmark.json"
  say "written to $OUTPUT"
fi
exit "$failed"
