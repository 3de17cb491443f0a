# Every target installs what it needs first; `make` alone lists them.

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
# Crates are downloaded again as often.
export CARGO_NET_RETRY ?= 10

.DEFAULT_GOAL := help
.PHONY: help servers kafka registry debezium postgres s3 orc spark trino readers zookeeper demo demo-kafka test test-all bench bench-parts build venv fmt lint deny clean deps

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: deps venv ## a throwaway Postgres with traffic, a published day, and both compared (Ctrl-C ends it)
	@demo/run.sh

demo-kafka: deps venv kafka registry ## Postgres with traffic, Kafka, a schema registry and Tidemark on them, to be tried out (Ctrl-C)
	@demo/kafka.sh

test: deps ## format check, clippy, unit and integration tests against real servers
	cargo fmt --check
	@scripts/fetch-servers & fetched=$$!; \
	  cargo clippy --locked --all-targets --test reader_trino -- -D warnings; clean=$$?; \
	  wait $$fetched && exit $$clean
	cargo test --locked

servers: deps ## all that the tests start or ask
	@scripts/fetch-servers

test-all: deny ## what `make test` runs, with more crash rounds, and the licence check
	CRASH_ROUNDS=$${CRASH_ROUNDS:-200} BACKFILL_KILLS=$${BACKFILL_KILLS:-200} KAFKA_CRASH_ROUNDS=$${KAFKA_CRASH_ROUNDS:-40} $(MAKE) test

bench: deps venv kafka ## speed beside pg_recvlogical and COPY, measured in the same run; then merging a day
	cargo build --locked --profile fast
	.venv/bin/python benches/bench.py
	cargo bench --locked --profile fast --bench merge

bench-parts: deps ## speed of the parts alone: envelope, log, files
	cargo bench --locked --profile fast --bench envelope --bench log --bench batch

build: deps ## the release binary, target/release/tidemark (about ten minutes on two cores)
	cargo build --locked --release

kafka: deps ## the Kafka broker that the tests start, in .kafka
	@scripts/fetch-kafka

registry: deps ## a schema registry for the tests, in .registry
	@scripts/fetch-registry

debezium: deps ## Debezium and Kafka Connect, to compare with, in .debezium
	@scripts/fetch-debezium

postgres: deps ## servers of Postgres 14 to 18 for the tests, in .postgres
	@scripts/fetch-postgres

zookeeper: deps ## a ZooKeeper server for the tests, in .zookeeper
	@scripts/fetch-zookeeper

orc: deps ## Apache ORC's own reader for the tests, in .orc
	@scripts/fetch-orc

spark: deps ## Spark for the tests, in .spark
	@scripts/fetch-spark

trino: deps ## Trino for `make readers`, in .trino (a download of 820 MB; it wants Java 25)
	@scripts/fetch-trino

readers: deps venv spark trino ## what pyarrow, DuckDB, Spark and Trino see in snapshots, beside Postgres
	cargo test --locked --test integration -- readers:: reader_matrix::
	cargo test --locked --test reader_trino

s3: deps venv ## an S3-compatible store for the tests, in .s3
	@scripts/fetch-s3

venv: deps ## Python readers to check with (DuckDB, pyarrow, fastavro, confluent-kafka), in .venv
	@scripts/make-venv

fmt: ## format the code
	cargo fmt

lint: ## format check and clippy
	cargo fmt --check
	cargo clippy --locked --all-targets --test reader_trino -- -D warnings

deny: deps ## licences, bans and sources of all dependencies (installs cargo-deny when it is missing)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check licenses bans sources

clean: ## remove what was built
	cargo clean
	rm -rf .venv .kafka .registry .debezium .postgres .s3 .orc .spark .trino .zookeeper

deps:
	@scripts/install-deps
