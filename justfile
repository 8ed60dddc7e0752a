# `just` lists these. Each is one command, which can be typed as well.

set positional-arguments

# List the commands
_default:
    @just --list --unsorted

# Complete a prompt with the bundled model
generate *arguments="Once upon a time":
    cargo run --release --locked -- generate "$@"

# Serve the bundled model on 127.0.0.1:50051
serve *arguments:
    cargo run --release --locked -- serve "$@"

# Build all programs
build *arguments:
    cargo build --workspace --release --locked "$@"

# Run all tests, and install what they need
test *arguments:
    scripts/test --locked "$@"

# Format
fmt:
    cargo fmt --all

# Lint
lint *arguments:
    cargo clippy --workspace --all-targets --release --locked --features xtask/policies "$@" -- -D warnings

# What CI runs for each change
ci:
    .ci/run

# The long suites
full:
    .ci/full

# Measure the engine on this machine
bench *arguments:
    cargo run --release --locked -p stoker-worker -- bench "$@"

# Load a cluster
load *arguments:
    cargo run --release --locked -p stoker-loadtest -- "$@"

# Build the documentation of the code
doc:
    cargo doc --workspace --no-deps --release --locked --open

# Check the chart
chart *arguments:
    scripts/chart "$@"

# Build and check the images, without Docker
images *arguments:
    scripts/images "$@"

# Check the dashboards and alerts
dashboards:
    scripts/dashboards --check

# Check licences, vulnerabilities and sources of dependencies
deny:
    cargo deny check

# Write what each program is made of (CycloneDX)
sbom *arguments:
    scripts/sbom "$@"

# Build twice and compare
reproducible *arguments:
    scripts/reproducible "$@"
