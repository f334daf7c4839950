# Needs Rust, bash and make; .ci/setup brings the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help test demo bench fmt check manifests clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What demo and bench need of servers here: none where DATABASE_URL names one.
server := $(if $(DATABASE_URL),none,postgresql)

test: check ## Everything: format, lints, docs, then all tests against a real PostgreSQL
	@.ci/test

demo: ## An upgrade under load, in a minute, on a PostgreSQL of its own
	@.ci/setup $(server)
	@echo "building the demo (the first time takes a few minutes) .."
	@start=$$SECONDS && cargo build --release --locked --quiet -p shop && echo "built in $$((SECONDS - start)) s"
	@$${CARGO_TARGET_DIR:-target}/release/shop demo

bench: ## The measurements, printed as a table
	@.ci/setup $(server)
	@cargo run --release --locked -p changeover-bench

check: ## Format, lints and docs, without running a test
	@.ci/setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

manifests: ## The Kubernetes manifests against the schemas of Kubernetes; needs Python and the network
	@.ci/manifests

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove everything that was built
	cargo clean
