# A small image that runs spokesync as an unprivileged user.
#
#   docker build -t spokesync .
#   docker run -v $PWD/spokes.toml:/etc/spokesync/spokes.toml:ro spokesync
#   docker run -e ZONENAME=DFW -e WATCHZONES=HOU -e CONSTREDGE=mongodb://… -e CONSTRFAR=mongodb://… spokesync
#
# Without access to a registry, pass other base images as build arguments: BUILDER needs Rust, a C compiler and make;
# RUNTIME needs the same C library as BUILDER.

ARG BUILDER=docker.io/library/rust:1-bookworm
ARG RUNTIME=docker.io/library/debian:bookworm-slim

FROM ${BUILDER} AS builder
WORKDIR /build
COPY Cargo.toml Cargo.lock rustfmt.toml ./
COPY src src
COPY testbed testbed
# Cargo.toml names the following targets, so cargo needs the files although the build skips them.
COPY tests/it/main.rs tests/it/main.rs
COPY benches benches
COPY examples examples
RUN cargo build --release --locked --bin spokesync && strip target/release/spokesync

FROM ${RUNTIME}
COPY --from=builder /build/target/release/spokesync /usr/local/bin/spokesync
WORKDIR /etc/spokesync
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/spokesync"]
CMD ["run"]
