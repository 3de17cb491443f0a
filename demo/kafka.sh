#!/usr/bin/env bash
# Tidemark on Kafka, to be tried out: Postgres with traffic, a Kafka broker, a schema registry, and Tidemark writing
# JSON for all tables and Avro for one. Topics are read by consumers that are not ours, and compared with Postgres.
#
#   DEMO_EXIT=1       leave when done: 0 only if everything was equal (otherwise stay until Ctrl-C)
#   DEMO_KEEP=1       keep the temporary folder
#   DEMO_BINARY=FILE  use this tidemark instead of building one
#   PG_BIN=FOLDER     use this Postgres's server binaries
set -euo pipefail

# shellcheck source=demo/common.sh
. "$(dirname "$0")/common.sh"

kafka_jars="$repo/.kafka/libs/*"
registry_jar=$(printf '%s\n' "$repo"/.registry/apicurio-registry-app-*-runner.jar | tail -n 1)

kafka_tool() { # class, arguments…: one of Kafka's own console tools
  java -Xmx96m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$kafka_jars" "$@"
}

start_kafka() { # one broker that is its own controller; returns before it is ready
  cat >"$folder/kafka.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$kafka_port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$kafka_port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$folder/kafka-data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=4194304
PROPERTIES
  cat >"$folder/log4j2.properties" <<PROPERTIES
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n
PROPERTIES
  kafka_tool kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg -c "$folder/kafka.properties" >"$folder/format.log" 2>&1
  start_service kafka.log java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dlog4j2.configurationFile="$folder/log4j2.properties" -cp "$kafka_jars" kafka.Kafka "$folder/kafka.properties"
  kafka_pid=$service_pid
}

start_registry() { # returns before it is ready
  start_service registry.log env QUARKUS_HTTP_HOST=127.0.0.1 QUARKUS_HTTP_PORT="$registry_port" \
    java -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar "$registry_jar"
  registry_pid=$service_pid
}

write_config() { # file, source name, tables, folder, address of [ops] listen, what else
  (umask 077 && cat >"$folder/$1") <<TOML
[source]
name = "$2"
url = "postgres://postgres:$password@127.0.0.1:$pg_port/$name"
tables = ["$3"]

[log]
kind = "kafka"

[log.kafka]
brokers = ["$brokers"]
partitions = 3

[state]
dir = "$folder/$4"

[ops]
listen = "$5"
$6
TOML
}

shorten() { # long lines to what fits on a screen, or a few lines of it
  cut -c "1-${1:-400}" | sed -E "s/^(.{$((${1:-400} - 1))}).$/\1…/" | fold -w 104 | indent
}

# --- the demo -----------------------------------------------------------------------------------------------------

pg_bin=$(find_postgres)
[ -x "$python" ] || die "the Python readers are missing. Run 'make venv'."
[ -d "$repo/.kafka/libs" ] || die "Kafka is missing. Run 'make kafka'."
[ -e "$registry_jar" ] || die "the schema registry is missing. Run 'make registry'."
build
SECONDS=0

make_folder
password=$(openssl rand -hex 16)
read -r pg_port ops_port avro_ops_port kafka_port controller_port registry_port < <(free_ports 6)
brokers=127.0.0.1:$kafka_port registry=http://127.0.0.1:$registry_port/apis/ccompat/v7
ops=127.0.0.1:$ops_port

say "Starting a throwaway Postgres, Kafka and a schema registry in $folder"
start_kafka
start_registry
start_postgres
note "$(sql --command "SELECT split_part(version(), ' on ', 1)"), port $pg_port"
fill_shop
await_service "Kafka" 90 "$kafka_pid" grep -q 'Kafka Server started' "$folder/kafka.log"
note "Apache Kafka $(basename "$repo"/.kafka/libs/kafka-clients-*.jar .jar | cut -d - -f 3), brokers $brokers"
await_service "the registry" 120 "$registry_pid" curl -fsS "$registry/subjects"
curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/json' --data '{"compatibility":"BACKWARD"}' "$registry/config"
note "Apicurio Registry $(basename "$registry_jar" -runner.jar | sed 's/.*-//'), $registry"

say "Starting traffic: two sessions insert, update, delete and change keys, some hundred transactions a second"
start_generator

write_config connector.toml "$name" 'public.*' state "$ops" ''
write_config avro.toml "${name}_avro" 'public.orders' state-avro "127.0.0.1:$avro_ops_port" "
[envelope]
format = \"avro\"

[envelope.registry]
url = \"$registry\""
say "Asking tidemark check what could fail"
tidemark check | indent

say "Starting tidemark capture for public.orders in Avro, and tidemark run for all tables in JSON"
start_tidemark tidemark-avro.log capture avro.toml "127.0.0.1:$avro_ops_port"
start_tidemark tidemark.log run connector.toml "$ops"
note "ready: http://$ops/"
sleep 5 # some traffic after the first copy, for the topics to hold changes too

say "The topics"
kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$brokers" --list 2>/dev/null | grep -v ^__ | indent

say "Two records of $name.public.orders, by Kafka's own console consumer: position, key, value"
consumer=(org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$brokers"
  --isolation-level read_committed --formatter-property print.key=true --formatter-property print.headers=true)
kafka_tool "${consumer[@]}" --topic "$name.public.orders" --max-messages 2 --timeout-ms 15000 2>/dev/null | shorten 900

if command -v kcat >/dev/null; then
  say "The last record of $name.ddl, by kcat: a table's shape"
  kcat -b "$brokers" -C -t "$name.ddl" -o -2 -c 1 -q -X isolation.level=read_committed -f 'offset %o, key %k\n%s\n' | shorten 600
fi

say "What the registry knows, and a record of ${name}_avro.public.orders by confluent-kafka's AvroDeserializer"
curl -fsS "$registry/subjects" | indent
echo
"$python" "$repo/demo/topics.py" avro "$brokers" "$registry" "${name}_avro.public.orders" 1 | shorten 900

say "Letting the traffic pause, to compare the topics with Postgres"
stop_generator
equal=yes
"$python" "$repo/demo/topics.py" compare "$brokers" "$registry" "$name.public.orders" "${name}_avro.public.orders" < <(
  sql --command "SELECT json_build_object('rows', count(*), 'total', sum(total)::text,
    'statuses', (SELECT json_object_agg(status, n) FROM (SELECT status, count(*) AS n FROM orders GROUP BY 1) AS s))
    FROM orders"
) | indent || equal=no
start_generator
[ "$equal" = yes ] || die "the topics differ from Postgres"
say "All equal."
[ "${DEMO_EXIT:-}" != 1 ] || exit 0

cat <<TEXT

  Status page  http://$ops/
  Status       $binary status --config $folder/connector.toml
  A day        $binary cut --config $folder/connector.toml     (then in $folder/state/lake)
  Postgres     PGPASSWORD=$password psql -h 127.0.0.1 -p $pg_port -U postgres $name
  Console      java -cp '$kafka_jars' ${consumer[*]} --topic $name.public.orders
  kcat         kcat -b $brokers -C -t $name.public.orders -o end -u -X isolation.level=read_committed -f '%h\t%k\t%s\n'
  Avro         $python $repo/demo/topics.py avro $brokers $registry ${name}_avro.public.orders 5
  Registry     curl -s $registry/subjects
  Logs         tail -f $folder/tidemark.log $folder/kafka.log

  Everything keeps running, the traffic too. Ctrl-C ends it and removes the folder.
TEXT
stay
