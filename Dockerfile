# The service as a small image: one program, no compiler, no root. Dependencies are a layer of their own (cargo-chef cuts
# them out of the project), so that a change of our code alone compiles only our code.
FROM rust:1.95-slim-trixie AS chef
RUN cargo install --locked cargo-chef --version 0.1.78
WORKDIR /build

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
COPY --from=plan /build/recipe.json .
RUN cargo chef cook --locked --release --bin queue-service --recipe-path recipe.json
COPY . .
RUN cargo build --locked --release --bin queue-service

# The same Debian as the builder's, for its C library.
FROM debian:trixie-slim
# The certificates that servers of mail, webhooks and models are checked against.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/queue-service /usr/local/bin/
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["queue-service"]
CMD ["serve"]
