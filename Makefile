# Thin over scripts/, which work where make is missing. Everything runs in .venv, which scripts/setup.sh makes.
.PHONY: help setup demo up test lint format docs proto bench chaos clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
setup: ## Make the virtual environment with pinned dependencies
	@scripts/setup.sh
	@echo "Ready. Next: make demo (a LoRA in about two minutes), or make up and .venv/bin/fluxsmith --help"
demo: ## Start the services, train a LoRA on 18 drawings, show the result in demo-output/
	@scripts/demo.sh
up: ## Run store, encoder and trainer in the foreground
	@scripts/up.sh
test: ## Run the whole test suite
	@scripts/test.sh
lint: ## Check style, types, the contract and the generated stubs
	@scripts/lint.sh
format: ## Rewrite sources in the project's format
	@scripts/format.sh
docs: ## Build the documentation site in build/site
	@scripts/docs.sh
proto: ## Generate the Python stubs from protos/
	@scripts/proto.sh
bench: ## Measure the full-size model on a GPU (results in benchmarks/results/)
	@scripts/bench.sh
chaos: ## Break the stack on purpose while jobs run, then run 2,000 jobs; writes docs/chaos.md (over an hour)
	@scripts/chaos.sh
	@scripts/chaos.sh soak
clean: ## Remove what the other targets made, the virtual environment included
	rm -rf .venv build data demo-output .mypy_cache .pytest_cache .ruff_cache
