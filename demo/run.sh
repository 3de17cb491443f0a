#!/usr/bin/env bash
# From a Postgres with traffic to a published day, checked against Postgres itself, in a temporary folder.
#
#   DEMO_EXIT=1       leave when done: 0 only if everything was equal (otherwise stay until Ctrl-C)
#   DEMO_KEEP=1       keep the temporary folder
#   DEMO_BINARY=FILE  use this tidemark instead of building one
#   PG_BIN=FOLDER     use this Postgres's server binaries
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
python="$repo/.venv/bin/python"
name=shop
time_zone=UTC

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
say() { printf '\n%s[%3d s] %s%s\n' "$bold" "$SECONDS" "$*" "$plain"; }
indent() { sed 's/^/        /'; }
note() { printf '        %s\n' "$*"; }
die() { printf '\ndemo: %s\n' "$*" >&2; exit 1; }

# --- leaving ------------------------------------------------------------------------------------------------------

folder='' tidemark_pid='' generator_pids=() equal=no

stop_process() { # pid: asks it to leave, and insists after 20 s
  kill -TERM "$1" 2>/dev/null || return 0
  for _ in $(seq 200); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

leave() {
  local status=$?
  trap '' INT TERM
  trap - EXIT
  if [ "$equal" = yes ] && [ "$status" = 130 ]; then status=0; fi # Ctrl-C after all was shown
  if [ "$status" != 0 ] && [ "$status" != 130 ]; then show_logs; fi
  if [ -n "$folder" ]; then
    say "Cleaning up"
    [ -z "$tidemark_pid" ] || stop_process "$tidemark_pid"
    [ ! -e "$folder/pg/data/postmaster.pid" ] ||
      as_server "$pg_bin/pg_ctl" -D "$folder/pg/data" -m immediate -s stop || true
    wait || true # the generator ends with its server
    if [ "${DEMO_KEEP:-}" = 1 ]; then note "kept: $folder"; else rm -rf "$folder"; fi
  fi
  exit "$status"
}

show_logs() {
  local log
  for log in tidemark.log generator.log pg/server.log; do
    [ -s "$folder/$log" ] || continue
    printf '\n--- the last lines of %s\n' "$log" >&2
    tail -n 25 "$folder/$log" >&2
  done
}

trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- Postgres -----------------------------------------------------------------------------------------------------

find_postgres() { # the folder of the newest server's binaries
  local dir
  for dir in ${PG_BIN:+"$PG_BIN"} $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
    if [ -x "$dir/initdb" ]; then echo "$dir"; return; fi
  done
  dir=$(command -v initdb) || die "no Postgres server found. Run 'make demo', which installs one, or set PG_BIN."
  dirname "$(readlink -f "$dir")"
}

as_server() { # a Postgres server refuses to run as root
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$folder/pg" LC_ALL=C.UTF-8 "$@"
  else
    "$@"
  fi
}

with_postgres() { # runs a command which finds the server by libpq's variables
  PGHOST=127.0.0.1 PGPORT=$pg_port PGUSER=postgres PGPASSWORD=$password PGDATABASE=$name PGCONNECT_TIMEOUT=10 \
    PGAPPNAME=demo "$@"
}

sql() { with_postgres psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

start_postgres() {
  mkdir "$folder/pg"
  echo "$password" >"$folder/pg/password"
  [ "$(id -u)" != 0 ] || chown -R 65534:65534 "$folder/pg"
  # The working folder of the caller may be closed to the server's user.
  cd "$folder"
  as_server "$pg_bin/initdb" -D "$folder/pg/data" -U postgres -A scram-sha-256 --pwfile="$folder/pg/password" \
    -E UTF8 --locale=C --no-sync >/dev/null
  as_server tee -a "$folder/pg/data/postgresql.conf" >/dev/null <<EOF
listen_addresses = '127.0.0.1'
port = $pg_port
unix_socket_directories = ''
wal_level = logical
max_slot_wal_keep_size = '2GB'
fsync = off    # it is thrown away at the end
EOF
  as_server "$pg_bin/pg_ctl" -D "$folder/pg/data" -l "$folder/pg/server.log" -w -s start
  sql --dbname=postgres --command "CREATE DATABASE $name"
}

start_generator() { # two sessions, so that transactions interleave
  local side
  sql --output=/dev/null --command "SELECT setval('traffic.stop', 1, false)"
  generator_pids=()
  for side in 0 1; do
    sql --command "CALL traffic.run($side)" >>"$folder/generator.log" 2>&1 &
    generator_pids+=($!)
  done
}

stop_generator() { # returns after its last commit
  sql --output=/dev/null --command "SELECT nextval('traffic.stop')"
  wait "${generator_pids[@]}" || die "the generator has failed"
  generator_pids=()
}

# --- Tidemark -----------------------------------------------------------------------------------------------------

build() {
  if [ -n "${DEMO_BINARY:-}" ]; then
    binary=$(readlink -f "$DEMO_BINARY")
    return
  fi
  say "Building tidemark (optimised, quick to compile; the first time takes some minutes)"
  cargo build --manifest-path "$repo/Cargo.toml" --locked --profile fast --bin tidemark
  binary=${CARGO_TARGET_DIR:-$repo/target}/fast/tidemark
}

tidemark() { "$binary" "$@" --config "$folder/connector.toml"; }

start_tidemark() {
  "$binary" run --config "$folder/connector.toml" >"$folder/tidemark.log" 2>&1 &
  tidemark_pid=$!
  local since=$SECONDS
  until curl -fsS -o /dev/null "http://$ops/health/ready" 2>/dev/null; do
    kill -0 "$tidemark_pid" 2>/dev/null || die "tidemark has ended by itself"
    [ $((SECONDS - since)) -lt 120 ] || die "tidemark was not ready within two minutes: $(curl -sS "http://$ops/health" 2>&1)"
    sleep 0.2
  done
}

show_tree() { # files of the lake with their sizes, not more than fit on a screen
  local files
  files=$(cd "$folder/lake" && find . -type f -printf '%P\t%s\n' | sort)
  head -n 30 <<<"$files" | awk -F '\t' '{ printf "        %-84s %12d bytes\n", $1, $2 }'
  [ "$(wc -l <<<"$files")" -le 30 ] || note "… $(wc -l <<<"$files") files in all"
}

# --- the demo -----------------------------------------------------------------------------------------------------

pg_bin=$(find_postgres)
[ -x "$python" ] || die "the Python readers are missing. Run 'make venv'."
build
SECONDS=0

folder=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-demo.XXXXXX")
chmod 711 "$folder"
password=$(openssl rand -hex 16)
# Below 32768, where the kernel does not hand ports out by itself.
read -r pg_port ops_port < <("$python" - <<'EOF'
import random, socket
held = []
while len(held) < 2:
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", random.randrange(20000, 32000)))
        held.append(listener)
    except OSError:
        pass
print(*(listener.getsockname()[1] for listener in held))
EOF
)
ops=127.0.0.1:$ops_port

say "Starting a throwaway Postgres in $folder"
start_postgres
note "$(sql --command "SELECT split_part(version(), ' on ', 1)"), port $pg_port"

say "Filling it with a small shop"
sql --output=/dev/null --file "$repo/demo/shop.sql" --file "$repo/demo/generator.sql"
note "$(sql --field-separator=', ' --command "SELECT (SELECT count(*) FROM customers) || ' customers',
  (SELECT count(*) FROM products) || ' products', (SELECT count(*) FROM orders) || ' orders',
  (SELECT count(*) FROM order_lines) || ' order lines'")"

say "Starting traffic: two sessions insert, update, delete and change keys, some hundred transactions a second"
start_generator

(umask 077 && cat >"$folder/connector.toml") <<EOF
[source]
name = "$name"
url = "postgres://postgres:$password@127.0.0.1:$pg_port/$name"
tables = ["public.*"]

[state]
dir = "$folder/state"

[lake]
url = "file://$folder/lake"

[cut]
time_zone = "$time_zone"

[ops]
listen = "$ops"
EOF
say "Asking tidemark check what could fail"
tidemark check | indent

say "Starting tidemark run, which copies the tables while the traffic goes on"
start_tidemark
note "ready: http://$ops/health/ready"
sleep 5 # some traffic after the first copy, for the day to hold changes too

say "Letting the traffic pause, so that Postgres as it stands now is the state at the cut"
stop_generator
with_postgres "$python" "$repo/demo/compare.py" postgres >"$folder/expected.json"
note "transactions so far: $(sql --command "SELECT xact_commit FROM pg_stat_database WHERE datname = '$name'")"

ds=$(TZ=$time_zone date +%F)
say "Asking for a cut: the day $ds ends here"
tidemark cut --ds "$ds" | indent
start_generator
note "the traffic goes on; what it writes from now on belongs to the next day"

say "Waiting for the day to be published"
tidemark wait --ds "$ds" --timeout 2m | indent

say "Reading the day with DuckDB, beside what Postgres held at the cut"
if "$python" "$repo/demo/compare.py" lake "$folder/lake/snapshots/$name" "$ds" "$folder/expected.json"; then
  equal=yes
fi

say "The lake: $folder/lake"
show_tree

[ "$equal" = yes ] || die "the published day differs from Postgres"
say "All equal."
[ "${DEMO_EXIT:-}" != 1 ] || exit 0

cat <<EOF

  Health      curl -s http://$ops/health
  Metrics     curl -s http://$ops/metrics | grep ^tidemark_
  Log         tail -f $folder/tidemark.log
  Status      $binary status --config $folder/connector.toml
  Query       $python -c "import duckdb; duckdb.sql(\"SELECT status, count(*), sum(total) FROM '$folder/lake/snapshots/$name/public.orders/ds=$ds/*.parquet' GROUP BY 1\").show()"

  Everything keeps running. Ctrl-C ends it and removes the folder.
EOF
while kill -0 "$tidemark_pid" 2>/dev/null; do sleep 1; done
equal=no
die "tidemark has ended by itself"
