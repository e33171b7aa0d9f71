# syntax=docker/dockerfile:1

# The toolchain of rust-toolchain.toml; a test compares.
FROM rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /sluice

# Dependencies by themselves: this layer stays while only the sources change. What is in it of
# Sluice is empty.
COPY Cargo.toml Cargo.lock ./
COPY bench/Cargo.toml bench/
COPY core/Cargo.toml core/
COPY sim/Cargo.toml sim/
COPY testkit/Cargo.toml testkit/
COPY xtask/Cargo.toml xtask/
RUN mkdir -p src core/src bench/src bench/benches sim/src testkit/src/bin xtask/src \
    && touch src/lib.rs core/src/lib.rs bench/src/lib.rs sim/src/lib.rs testkit/src/lib.rs bench/benches/core.rs testkit/src/bin/testkit-hold.rs \
    && echo 'fn main() {}' | tee src/main.rs bench/src/main.rs sim/src/main.rs > xtask/src/main.rs \
    && cargo build --release --locked --package sluice --bin sluice

COPY config config
COPY core core
COPY src src
# Newer than the empty ones.
RUN touch core/src/lib.rs src/lib.rs src/main.rs \
    && cargo build --release --locked --package sluice --bin sluice

# The binary with the libraries that it is linked to, and the authorities that it trusts.
RUN mkdir -p /image/usr/bin /image/tmp \
    && strip --output-file /image/usr/bin/sluice target/release/sluice \
    && ldd target/release/sluice | grep -o '/[^ ]*' | xargs cp --dereference --parents --target-directory /image \
    && cp --dereference --parents --target-directory /image /etc/ssl/certs/ca-certificates.crt

FROM scratch
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="Loads S3 objects into ClickHouse, announced by SQS, once each." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
# Nobody in particular. Sluice writes no files: the root may be read-only.
USER 65532:65532
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=6 \
    CMD ["/usr/bin/sluice", "health"]
ENTRYPOINT ["/usr/bin/sluice"]
CMD ["run"]
