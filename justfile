# What is done often. `just` alone lists it.
_list:
    @just --list --unsorted

# Run the service with a private Postgres and NATS
dev *options:
    script/server {{options}}

# Run all tests
test *options:
    script/test {{options}}

# Run the tests at each change
test-watch *options:
    @command -v watchexec >/dev/null || { echo "test-watch needs watchexec: cargo install watchexec-cli" >&2; exit 1; }
    watchexec --clear --restart -- script/test {{options}}

# Show which share of each module the tests reach
coverage *options:
    @command -v cargo-llvm-cov >/dev/null || { echo "coverage needs cargo-llvm-cov: cargo install cargo-llvm-cov" >&2; exit 1; }
    script/bootstrap --test && PATH="$PWD/.tools/bin:$PATH" cargo llvm-cov --locked --summary-only {{options}}

# Everything that CI asks for
check:
    .ci/run

# Look for mistakes
lint:
    cargo clippy --locked --all-targets -- -D warnings

# Lay out the code
fmt:
    cargo fmt

# Bring the database up to date (DATABASE_URL)
migrate:
    cargo run --locked --release -- migrate

# Measure
bench *options:
    cargo run --locked --release -- bench {{options}}

# Work under load for an hour while things are killed, and see that nothing is lost and nothing grows
soak minutes="60":
    cargo run --locked --release -- bench soak --minutes {{minutes}}

# Attack the service by plans made from random seeds, for so many minutes, and check every promise after each
chaos minutes="30" seed="1000":
    script/bootstrap --test && PATH="$PWD/.tools/bin:$PATH" QUEUE_CHAOS_MINUTES={{minutes}} QUEUE_CHAOS_SEED={{seed}} cargo test --locked --test it chaos::no_promise -- --nocapture

# Build and start it all with Docker
deploy:
    [ -e .env ] || echo "QUEUE_HTTP_TOKEN=$(openssl rand -hex 32)" > .env
    docker compose up -d --build
