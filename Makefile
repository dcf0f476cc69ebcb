# make run [ARGS="source:=/dev/video0 ..."], make test, make lint
.DEFAULT_GOAL := help
.PHONY: help setup run test lint clean bench bench-footprint bench-dashboard bench-governor bench-models coverage faults mutation soak test-aarch64
SHELL := /bin/bash

help:  ## this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## make .venv with ROS 2's rclpy and this package
	@scripts/setup.sh

run:  ## play the sample frames through the pipeline; ARGS='name:=value ...' as for ros2 launch
	@scripts/run.sh $(ARGS)

test:  ## set up and run all tests; PYTEST='test/unit -k gate' for some
	@scripts/setup.sh tools test
	@source scripts/env.sh && python -m pytest $(PYTEST)

test-aarch64:  ## the bundles on a Raspberry Pi's processor, emulated, against this one; FULL=1 for every sample
	@scripts/setup.sh tools test
	@scripts/test-aarch64.sh

faults:  ## every fault of docs/faults.md as often as it says, and the table; exit code 1 on a miss
	@scripts/setup.sh tools test
	@source scripts/env.sh && python -m pytest --faults -q -p no:cacheprovider $$(python test/faults/rows.py) $(PYTEST)

lint:  ## ruff and mypy
	@scripts/setup.sh tools test
	@source scripts/env.sh && ruff check . && mypy

clean:  ## remove what was built
	rm -rf .venv build install log .setup.lock *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

bench:  ## latency, freshness and cost against a straight line in one process; SHORT=1 for the targets only, CHECK=1 to fail on a miss
	@scripts/setup.sh
	@source scripts/env.sh && python benchmarks/pipeline.py $(if $(SHORT),--short) $(if $(CHECK),--check) $(BENCH)

bench-footprint:  ## memory and processor time of the running and the deactivated pipeline
	@scripts/setup.sh
	@source scripts/env.sh && python benchmarks/footprint.py 2>/dev/null

bench-dashboard:  ## processor time and memory of the dashboard with no, one and three pages open
	@scripts/setup.sh
	@source scripts/env.sh && python benchmarks/dashboard.py

bench-models:  ## accuracy, size and time of the committed models; FLOATS=folder to compare with float ones, CHECK=1 to fail on a miss
	@scripts/setup.sh tools
	@source scripts/env.sh && python benchmarks/models.py $(if $(FLOATS),--floats $(FLOATS)) $(if $(CHECK),--check)

coverage:  ## lines and branches that make test reaches, in processes too; fails below 95 % (nodes: 85 %)
	@scripts/setup.sh tools test quality
	@source scripts/env.sh && scripts/coverage.sh $(PYTEST)

mutation:  ## changes to the decision gate and to the validation of messages that no test notices
	@scripts/setup.sh tools test quality
	@source scripts/env.sh && python scripts/mutation.py

soak:  ## the pipeline for MINUTES=60: growth of memory, files, threads and latency, as a table, CSV and plot in build/soak
	@scripts/setup.sh tools
	@source scripts/env.sh && python benchmarks/soak.py $(if $(MINUTES),--minutes $(MINUTES))

bench-governor:  ## the governor against none, on a simulated Raspberry Pi 4
	@scripts/setup.sh
	@source scripts/env.sh && python benchmarks/governor.py $(ARGS)

.PHONY: bench-monitoring
bench-monitoring:  ## processor time and latency with latency_monitor on and off, in turns; ARGS='--record composed:=true'
	@scripts/setup.sh
	@source scripts/env.sh && python benchmarks/monitoring.py $(ARGS)

.PHONY: bench-scale
bench-scale:  ## several pipelines, pixels, two hosts (needs root), threads and cores; PARTS='scale resolution hosts cores'
	@scripts/setup.sh
	@source scripts/env.sh && python benchmarks/scale.py $(PARTS) $(ARGS)
