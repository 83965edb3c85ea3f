# The commands of the project. `make serve` and `make test` set themselves up.

PORT ?= 8000
ARGS ?=
# CUDA where an NVIDIA driver answers, else the CPU.
BUILD ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)

SERVER_TESTS = tests/clients tests/evaluation tests/deploy tests/e2e tests/playground

# What the topologies and the load tests need beside the rest, without touching its pins.
ADD = .venv/bin/python -m pip install --quiet --no-deps -r

.PHONY: serve test check fix model card screenshot gpu container-test load topologies

serve: ## start the server on the bundled model: make serve PORT=8123 ARGS="--max-num-seqs 64"
	@echo "em-inf: using the $(BUILD) build of vLLM"
	@deploy/install $(BUILD)
	@.venv/bin/em-inf serve --port $(PORT) $(ARGS)

test: check ## run every test, those that start servers beside the others
	@.venv/bin/python -m pytest tests $(SERVER_TESTS:%=--ignore %) & others=$$!; \
	  .venv/bin/python -m pytest $(SERVER_TESTS); servers=$$?; \
	  wait $$others && exit $$servers

check: ## format, lint and types
	@deploy/install cpu dev
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

fix: ## mend what formatter and linter can mend
	@deploy/install cpu dev
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

model: ## train the bundled model again, under an hour on two cores
	@deploy/install cpu dev
	@.venv/bin/python -m em_inf.server.demo_model.train

screenshot: ## take the README's picture of the playground, needs Chromium
	@deploy/install cpu dev
	@.venv/bin/python -m tests.playground.screenshot

gpu: ## on a GPU host: the kernels' tests on the GPU, and what they cost there
	@deploy/install cuda dev
	@.venv/bin/python -m pytest tests/logits_processors
	@.venv/bin/python -m em_inf.loadtests.bench_kernel --device cuda \
	  --out loadtests/results/kernel-cuda.json

card: ## measure the bundled model on held-out problems, on the server of make serve
	@deploy/install $(BUILD)
	@.venv/bin/python -m em_inf.server.demo_model.evaluate

container-test: ## build the image's CPU target with buildah, and run it; as root, for minutes
	@deploy/install cpu dev
	@EM_INF_CONTAINER=yes .venv/bin/python -m pytest tests/container

load: ## load the bundled model's server, EM-INF off and on, and write a report
	@deploy/install $(BUILD) dev
	@$(ADD) deploy/locks/load.txt
	@.venv/bin/python -m em_inf.loadtests.load --out load-report $(ARGS)

topologies: ## tensor and data parallel, API servers, router, Ray: the tests of each, on two cores
	@deploy/install cpu dev
	@$(ADD) deploy/locks/fleet.txt
	@.venv/bin/python -m pytest -m topologies tests/topologies
