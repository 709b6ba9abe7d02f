# Every command is a script in tools/; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help demo test engines smoke sweep fuzz bench mutants lint format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo:  ## build the wheel and run the example engine
	@tools/demo.sh

test:  ## build and run every test, then the linters
	@tools/test.sh

engines:  ## real engines on the wheel: transformers, in an environment of their own
	@tools/engines.sh

smoke:  ## what most faults die of, in about a minute on a built tree
	@tools/smoke.sh

sweep:  ## 20,000 random problems and as many bad ones, a tenth of them under sanitizers
	@tools/sweep.sh

fuzz:  ## random inputs to the C++ API under sanitizers, for FUZZ_SECONDS (an hour)
	@tools/fuzz.sh

bench:  ## measure against the machine's limits and the installed peers
	@tools/bench.sh

mutants:  ## plant the faults of tests/mutants and a random sample; tests must catch them
	@tools/mutants.sh

lint:  ## formatting, ruff, mypy, hygiene
	@tools/lint.sh

format:  ## rewrite sources in the project's style
	@tools/format.sh

clean:  ## remove everything that was built, the virtual environment included
	rm -rf build dist .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
