# A small image that runs spokesync as a user without rights.
#
#   docker build -t spokesync .
#   docker run -v $PWD/spokes.toml:/etc/spokesync/spokes.toml:ro spokesync
#   docker run -e ZONENAME=DFW -e WATCHZONES=HOU -e CONSTREDGE=mongodb://… -e CONSTRFAR=mongodb://… spokesync
#
# Where no registry can be reached, give base images of your own: BUILDER needs Rust, a C compiler and make, and RUNTIME
# the C library that BUILDER has.

ARG BUILDER=docker.io/library/rust:1-bookworm
ARG RUNTIME=docker.io/library/debian:bookworm-slim

FROM ${BUILDER} AS builder
WORKDIR /build
COPY Cargo.toml Cargo.lock rustfmt.toml ./
COPY src src
COPY testbed testbed
# These are named in Cargo.toml, and so must be there; they are not built.
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
