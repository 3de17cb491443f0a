# What the demos share, to be sourced: a throwaway Postgres with a shop and traffic, building and starting Tidemark, and
# leaving nothing behind. All of it lives in a temporary folder, `$folder`.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python="$repo/.venv/bin/python"
name=shop

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
say() { printf '\n%s[%3d s] %s%s\n' "$bold" "$SECONDS" "$*" "$plain"; }
indent() { sed 's/^/        /'; }
note() { printf '        %s\n' "$*"; }
die() { printf '\ndemo: %s\n' "$*" >&2; exit 1; }

# --- leaving ------------------------------------------------------------------------------------------------------

folder='' services=() generator_pids=() equal=no

# Starts a program that Ctrl-C does not reach by itself: it is stopped in its turn. Its output goes to $folder/<log>.
start_service() { # log, command…
  local log=$1
  shift
  setsid "$@" >"$folder/$log" 2>&1 </dev/null &
  service_pid=$!
  services=("$service_pid" "${services[@]}")
}

stop_process() { # pid: asks it to leave, and insists after 20 s
  kill -TERM "$1" 2>/dev/null || return 0
  for _ in $(seq 200); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

leave() {
  local status=$? pid
  trap '' INT TERM
  trap - EXIT
  if [ "$equal" = yes ] && [ "$status" = 130 ]; then status=0; fi # Ctrl-C after all was shown
  if [ "$status" != 0 ] && [ "$status" != 130 ]; then show_logs; fi
  if [ -n "$folder" ]; then
    say "Cleaning up"
    for pid in "${services[@]}"; do stop_process "$pid"; done # what was started last leaves first
    [ ! -e "$folder/pg/data/postmaster.pid" ] ||
      as_server "$pg_bin/pg_ctl" -D "$folder/pg/data" -m immediate -s stop || true
    wait || true # the generator ends with its server
    if [ "${DEMO_KEEP:-}" = 1 ]; then note "kept: $folder"; else rm -rf "$folder"; fi
  fi
  exit "$status"
}

show_logs() {
  local log
  for log in "$folder"/*.log "$folder"/pg/server.log; do
    [ -s "$log" ] || continue
    printf '\n--- the last lines of %s\n' "${log#"$folder/"}" >&2
    tail -n 25 "$log" >&2
  done
}

trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

make_folder() {
  folder=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-demo.XXXXXX")
  chmod 711 "$folder"
}

free_ports() { # how many; below 32768, where the kernel does not hand ports out by itself
  "$python" - "$1" <<'PYTHON'
import random, socket, sys
held = []
while len(held) < int(sys.argv[1]):
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", random.randrange(20000, 32000)))
        held.append(listener)
    except OSError:
        pass
print(*(listener.getsockname()[1] for listener in held))
PYTHON
}

await_service() { # what, seconds, pid, command…: until the command succeeds
  local what=$1 seconds=$2 pid=$3 since=$SECONDS
  shift 3
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null || die "$what has ended by itself"
    [ $((SECONDS - since)) -lt "$seconds" ] || die "$what was not ready within $seconds s"
    sleep 0.2
  done
}

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

fill_shop() {
  sql --output=/dev/null --file "$repo/demo/shop.sql" --file "$repo/demo/generator.sql"
  note "$(sql --field-separator=', ' --command "SELECT (SELECT count(*) FROM customers) || ' customers',
    (SELECT count(*) FROM products) || ' products', (SELECT count(*) FROM orders) || ' orders',
    (SELECT count(*) FROM order_lines) || ' order lines'")"
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

# Starts it and waits until it has copied the tables.
start_tidemark() { # log, command, connector.toml, address of [ops] listen
  start_service "$1" "$binary" "$2" --config "$folder/$3"
  tidemark_pid=$service_pid
  await_service "tidemark $2" 120 "$tidemark_pid" curl -fsS "http://$4/health/ready"
}

stay() { # until Ctrl-C, which is the end that is expected
  while kill -0 "$tidemark_pid" 2>/dev/null; do sleep 1; done
  equal=no
  die "tidemark has ended by itself"
}
