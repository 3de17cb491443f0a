#!/usr/bin/env bash
# From a Postgres with traffic to a published day, checked against Postgres itself, in a temporary folder.
#
#   DEMO_EXIT=1       leave when done: 0 only if everything was equal (otherwise stay until Ctrl-C)
#   DEMO_KEEP=1       keep the temporary folder
#   DEMO_BINARY=FILE  use this tidemark instead of building one
#   PG_BIN=FOLDER     use this Postgres's server binaries
set -euo pipefail

# shellcheck source=demo/common.sh
. "$(dirname "$0")/common.sh"
time_zone=UTC

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

make_folder
password=$(openssl rand -hex 16)
read -r pg_port ops_port < <(free_ports 2)
ops=127.0.0.1:$ops_port

say "Starting a throwaway Postgres in $folder"
start_postgres
note "$(sql --command "SELECT split_part(version(), ' on ', 1)"), port $pg_port"

say "Filling it with a small shop"
fill_shop

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
start_tidemark tidemark.log run connector.toml "$ops"
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
stay
