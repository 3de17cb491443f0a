# syntax=docker/dockerfile:1

# docker build --tag tidemark .
# docker run --volume ./connector.toml:/etc/tidemark/connector.toml:ro --volume tidemark:/var/lib/tidemark tidemark

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY benches ./benches
COPY integration ./integration
# The caches outlive the step, so the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --release --bin tidemark \
    && cp target/release/tidemark /tidemark

FROM debian:bookworm-slim
# ca-certificates: to trust servers; libssl3: TLS to Kafka; tzdata: midnight is in the configured time zone; curl: the
# health check.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl libssl3 tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 tidemark \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tidemark --shell /usr/sbin/nologin tidemark \
    && install --directory --owner=tidemark --group=tidemark --mode=0750 /var/lib/tidemark
COPY --from=build /tidemark /usr/local/bin/tidemark

LABEL org.opencontainers.image.title="Tidemark" \
      org.opencontainers.image.description="Streams every change of a Postgres database into a durable log and turns it into write-once daily snapshots." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/tidemark/tidemark"

USER 10001:10001
# Relative paths of connector.toml, the embedded log among them, end up here.
WORKDIR /var/lib/tidemark
VOLUME /var/lib/tidemark
# To be reached from outside the container, [ops] listen has to be "0.0.0.0:8080".
EXPOSE 8080
# Else the allocator keeps up to half as much again as merging a day really holds.
ENV MALLOC_ARENA_MAX=2
# Where [ops] listen is another port.
ENV TIDEMARK_LIVE_URL=http://127.0.0.1:8080/health/live
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD curl --fail --silent --show-error --output /dev/null "$TIDEMARK_LIVE_URL" || exit 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["tidemark"]
CMD ["run", "--config", "/etc/tidemark/connector.toml"]
