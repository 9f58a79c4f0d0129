# Ocopea. `make` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
TB := tests/testbed

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: testbed testbed-down testbed-clean testbed-images images test-kubernetes
testbed: ## two Kubernetes clusters and a registry on this machine (needs root)
	@$(TB)/up.sh
testbed-images: testbed ## database servers for tests and samples, pushed to the testbed's registry
	@$(TB)/images.sh
images: $(if $(REGISTRY),,testbed) ## images of ocopea and of the mover, pushed to the testbed's registry (REGISTRY=[http://]HOST/PATH: to another); prints them, the mover's last: what --mover-image takes
	@$(TB)/ocopea-image.sh $(REGISTRY)
	@$(TB)/mover-image.sh $(REGISTRY)
testbed-down: ## stops the testbed
	@$(TB)/down.sh
testbed-clean: ## stops the testbed and removes its state
	@$(TB)/down.sh clean

.PHONY: demo demo-stop
demo: ## the main job with a real application: save, damage, restore elsewhere (SITES=ctx1,ctx2 REGISTRY=HOST/PATH for clusters of your own)
	@SITES_GIVEN="$(SITES)" REGISTRY_GIVEN="$(REGISTRY)" tests/demo.sh
demo-stop: ## removes everything that `make demo` left
	@SITES_GIVEN="$(SITES)" REGISTRY_GIVEN="$(REGISTRY)" tests/demo.sh stop

.PHONY: fleet fleet-up fleet-down
fleet: ## the demo's journey on RabbitMQ, PostgreSQL and S3, with coordinator, agent and broker killed midway; ends by itself
	@tests/fleet.sh
fleet-up: ## the same fleet, left standing
	@tests/fleet.sh up
fleet-down: ## removes it
	@tests/fleet.sh down

.PHONY: test
test: ## all tests, against real parts (sets up what it needs)
	@tests/test.sh

test-kubernetes: ## Ocopea inside two Kubernetes clusters, by its charts: a save in one, a restore in the other, and what its accounts may not do (tests/kubernetes.sh up leaves it standing)
	@tests/charts.sh
	@tests/kubernetes.sh

.PHONY: web test-pages
web: ## builds the pages that the coordinator serves (nothing where nothing changed)
	@$(TB)/web.sh
test-pages: testbed testbed-images ## the pages in a real browser: sign in, save, restore in two clicks, remove; accessibility, screenshots (in .ocopea/pages)
	@tests/pages/run.sh

.PHONY: faults
faults: testbed testbed-images ## ends Ocopea at every step of every operation and at 50 random moments, and looks at what is left (about an hour)
	@tests/faults.sh

.PHONY: simulate
simulate: ## coordinators and agents with faults in virtual time: 10 000 seeds in ten minutes (SEEDS=FIRST..LAST or a number, FOR=seconds, SEED=N tells all of one, PLANTED=NAME|all breaks protections)
	@tests/simulate.sh "$(SEEDS)" "$(FOR)" "$(SEED)" "$(PLANTED)" "$(PLANT)"

.PHONY: soak soak-quick
soak: testbed testbed-images ## kills a fleet's agents, coordinators, broker and database some 700 times in the midst of saves and restores (HOURS=6 at most; SEED=N, RESUME=yes goes on)
	@tests/soak.py full $(if $(SEED),--seed $(SEED)) $(if $(RESUME),--resume)

soak-quick: testbed testbed-images ## some of them, in about two minutes
	@tests/soak.py quick $(if $(SEED),--seed $(SEED))

.PHONY: fuzz bench
fuzz: ## every reader of outside bytes against made-up ones (FOR=seconds for each target, 60)
	@tests/fuzz.sh $(or $(FOR),60)
bench: ## measures against peers and writes docs/benchmarks.md (ROUNDS, MEGABYTES, SEED; SECTION=one of them)
	@tests/bench.sh $(SECTION)
