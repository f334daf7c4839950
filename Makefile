# Needs Rust, bash and make; .ci/setup brings the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help test demo bench fmt check clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: check ## Everything: format, lints, docs, then all tests against a real PostgreSQL
	@.ci/test

demo: ## An upgrade under load, in a minute, on a PostgreSQL of its own
	@.ci/setup
	@echo "building the demo (the first time takes a few minutes) .."
	@start=$$SECONDS && cargo build --release --locked --quiet -p shop && echo "built in $$((SECONDS - start)) s"
	@$${CARGO_TARGET_DIR:-target}/release/shop demo

bench: ## The measurements, printed as a table
	@.ci/setup
	@cargo run --release --locked -p changeover-bench

check: ## Format, lints and docs, without running a test
	@.ci/setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove everything that was built
	cargo clean
