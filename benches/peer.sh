#!/bin/bash
# Runs tidemark as one connector among others in a comparison: a slot, a publication and the topics are there already,
# named by SLOT, PUB, PREFIX and TABLES (public.a,public.b), with BROKERS, PGHOST, PGPORT, PGUSER and PGDATABASE.
# PROFILE=fast is what `make bench` builds; KEEP=1 keeps the folder with the configuration and the log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-peer-XXXXXX")
[ -n "${KEEP:-}" ] || trap 'rm -rf "$folder"' EXIT
tables=$(sed 's/[^,]*/"&"/g' <<<"$TABLES")
cat > "$folder/connector.toml" <<TOML
[source]
url = "postgres://$PGUSER@$PGHOST:$PGPORT/$PGDATABASE"
name = "$PREFIX"
slot = "$SLOT"
publication = "$PUB"
tables = [$tables]
backfill = "none"
[log]
kind = "kafka"
${LINGER_MS:+linger_ms = $LINGER_MS}
[log.kafka]
brokers = ["$BROKERS"]
spill_bytes_max = 0
[log.kafka.properties]
${PROPERTIES:-}
[envelope]
decimal_handling = "string"
[state]
dir = "$folder/state"
[ops]
listen = "127.0.0.1:0"
TOML
"$root/target/${PROFILE:-fast}/tidemark" capture --config "$folder/connector.toml" &
child=$!
trap 'kill -TERM $child 2>/dev/null; wait $child; [ -n "${KEEP:-}" ] || rm -rf "$folder"' TERM INT
wait $child
