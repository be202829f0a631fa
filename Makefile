# Die Hard. "make" alone lists what there is.
#
# Everything local is kept in .dev: fetched engines, their data, built tools.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

DEVSTACK := bin/devstack
GOLANGCI_VERSION := v2.15.0
GOLANGCI := .dev/bin/golangci-lint-$(GOLANGCI_VERSION)
PACKAGES ?= ./...
TEST_TIMEOUT ?= 15m
FUZZ_TIME ?= 30s
CRASH_KILLS ?= 100
VERSION ?= $(shell git describe --tags --always --dirty 2> /dev/null)
COMMIT ?= $(shell git rev-parse HEAD 2> /dev/null)
COMMIT_DATE = $(shell git log -1 --format=%cI 2> /dev/null)

##@ Try it

.PHONY: run
run: build ## Start everything in the foreground; Ctrl-C stops it
	@exec $(DEVSTACK) run

.PHONY: up
up: $(DEVSTACK) ## Start PostgreSQL and ClickHouse in the background
	@$(DEVSTACK) up

.PHONY: down
down: $(DEVSTACK) ## Stop PostgreSQL and ClickHouse; their data stays
	@$(DEVSTACK) down

.PHONY: status
status: $(DEVSTACK) ## Show which engines run
	@$(DEVSTACK) status

.PHONY: env
env: $(DEVSTACK) ## Print export lines for everything local: eval "$$(make -s env)"
	@$(DEVSTACK) env

.PHONY: psql
psql: export QUERY = $(value SQL)
psql: $(DEVSTACK) ## Open psql on PostgreSQL, or run SQL: make psql SQL="table slot_lag"
	@exec $(DEVSTACK) psql $(if $(value SQL),-c "$$QUERY")

.PHONY: query
query: export QUERY = $(value SQL)
query: $(DEVSTACK) ## Query ClickHouse: make query SQL="SELECT * FROM event_log"
	@$(DEVSTACK) query "$$QUERY"

.PHONY: streamer
streamer: build ## A command of the streamer on these engines: make streamer DO="status"
	@exec $(DEVSTACK) streamer $(DO)

##@ Work on it

.PHONY: build
build: bin/api bin/streamer $(DEVSTACK) ## Build bin/api, bin/streamer and bin/devstack

# The go command knows best what is up to date.
.PHONY: bin/api bin/streamer $(DEVSTACK)
bin/api:
	@go build -o $@ ./api
bin/streamer:
	@go build -o $@ ./streamer
$(DEVSTACK):
	@go build -buildvcs=false -o $@ ./shared/dev/devstack

# With the engines up, no test program has to look whether devstack is up to
# date. The trap stops them whatever happens and keeps the exit code.
WITH_ENGINES := trap '$(DEVSTACK) down --test' EXIT; export DIEHARD_DEVSTACK=$(CURDIR)/$(DEVSTACK); $(DEVSTACK) up --test;
# The race detector needs a C compiler.
RACE = $(if $(shell command -v $$(go env CC)),-race,)
GOTEST = $(if $(RACE),,echo "no C compiler: the race detector stays off" >&2;) \
  go test $(RACE) -shuffle=on -timeout $(TEST_TIMEOUT)

.PHONY: test
test: $(DEVSTACK) ## All tests on real engines, with the race detector
	@$(WITH_ENGINES) $(GOTEST) $(PACKAGES)

.PHONY: test-deployment
test-deployment: ## The alert rules, the manifests and the compose files, by the engines that read them
	@cd shared/dev/policy/deployment && go vet ./... && go test -count=1 -timeout $(TEST_TIMEOUT) ./... # its files are outside of its module

.PHONY: test-clients
test-clients: $(DEVSTACK) ## The code of the pages in shared/event/clients, with the libraries of each language
	@$(WITH_ENGINES) export TEST_CLIENTS=1; go test -v -count=1 -timeout $(TEST_TIMEOUT) ./shared/event/clients

# each_version runs its second argument for each PostgreSQL of POSTGRES_VERSIONS, or of
# its first argument. It goes on after a version that failed.
each_version = failed=; for version in $(or $(POSTGRES_VERSIONS),$(1)); do \
    echo "PostgreSQL $$version"; \
    ( export EMBEDDED_POSTGRES_VERSION=$$version; $(2) ) || failed+=" $$version"; \
  done; [ -z "$$failed" ] || { echo "failed on PostgreSQL$$failed" >&2; exit 1; }

.PHONY: test-matrix
test-matrix: $(DEVSTACK) ## The tests on every PostgreSQL from 14 to 18
	@$(call each_version,14 15 16 17 18,$(WITH_ENGINES) $(GOTEST) $(PACKAGES))

# Without the race detector, which make test has on: the programs run as they do in production.
.PHONY: test-crash
test-crash: $(DEVSTACK) ## Kill streamers and engines at random, then compare row by row (CRASH_KILLS=500 CRASH_SEED=1)
	@export DIEHARD_DEVSTACK=$(CURDIR)/$(DEVSTACK) CRASH_KILLS=$(CRASH_KILLS) CRASH_SEED=$(CRASH_SEED) CRASH_BAD=$(CRASH_BAD) CRASH_RATE=$(CRASH_RATE); \
	  go test -v -count=1 -timeout 0 -run Crash ./streamer/e2e/crash

# Without the race detector, for more seeds in the same time; make test runs a few with it.
.PHONY: sim
sim: ## Simulate faults in virtual time (SEED=1 RUNS=100 PROFILE=all; MUTANTS=200 plants faults that must be found)
	@export SIM_SEED=$(or $(SEED),1) SIM_RUNS=$(or $(RUNS),100) SIM_PROFILE="$(or $(PROFILE),all)" SIM_MUTANTS=$(MUTANTS); \
	  go test -count=1 -timeout 0 -v -run $(if $(MUTANTS),TestMutants,TestSim) ./streamer/sim

REMOVE_CONTAINERS := docker ps -aq --filter "label=diehard.checkout=$(CURDIR)" | xargs -r docker rm -fv > /dev/null

.PHONY: test-containers
test-containers: ## All tests on servers in Docker (POSTGRES_VERSIONS="14 15 16 17 18")
	@$(call each_version,18,trap '$(REMOVE_CONTAINERS)' EXIT; export TEST_BACKEND=containers; $(GOTEST) -tags containers $(PACKAGES))

.PHONY: images
images: ## Build the container images diehard-api and diehard-streamer
	@for target in api streamer; do \
	  DOCKER_BUILDKIT=1 docker build --file docker/Dockerfile --target $$target --tag diehard-$$target \
	    --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg DATE=$(COMMIT_DATE) $(BUILD_FLAGS) .; \
	done

RELEASE_PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
RELEASE_LDFLAGS = -s -w $(foreach v,version=$(VERSION) commit=$(COMMIT) date=$(COMMIT_DATE),-X $(shell go list -m)/shared/telemetry.$(v))

# The same commit and Go version give the same bytes: no paths, no times but the
# commit's, files in order and owned by root.
.PHONY: release
release: ## Archives, changes, checksums and SBOMs of both programs in dist: make release VERSION=v1.2.3
	@[[ "$(VERSION)" =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$$ ]] || { echo "VERSION=$(VERSION) is not a version such as v1.2.3" >&2; exit 1; }
	@[ -z "$$(git status --porcelain)" ] || { echo "there are changes that are not committed: a release is a commit" >&2; exit 1; }
	@rm -rf dist && mkdir -p dist
	@for platform in $(RELEASE_PLATFORMS); do \
	  name=diehard-$(VERSION)-$${platform/\//-}; echo "$$name"; mkdir dist/$$name; \
	  CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/} \
	    go build -trimpath -buildvcs=false -ldflags '$(RELEASE_LDFLAGS)' -o dist/$$name/ ./api ./streamer; \
	  cp README.md LICENSE .env.example dist/$$name/; \
	  tar --create --directory dist --sort=name --mtime='$(COMMIT_DATE)' --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw $$name \
	    | gzip --no-name --best > dist/$$name.tar.gz; \
	  rm -r dist/$$name; \
	done
	@for program in api streamer; do \
	  go run $(CYCLONEDX) app -json -licenses -noserial -main $$program -output dist/$$program.cdx.json . 2> dist/sbom.log \
	    || { cat dist/sbom.log >&2; exit 1; }; \
	done; rm dist/sbom.log; sed -i 's/"timestamp": "[^"]*"/"timestamp": "$(COMMIT_DATE)"/' dist/*.cdx.json
	@last=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' --exclude '$(VERSION)' 2> /dev/null) || last=; \
	  { echo "# $(VERSION)"; echo; \
	    if [ -n "$$last" ]; then echo "Changes since $$last:"; echo; git log --no-merges --format='- %s' "$$last..HEAD"; else echo "The first release."; fi; \
	  } > dist/CHANGELOG.md
	@cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

# The path is in go.mod and, as Go wants it, in every import; the address of the sources
# is in what Docker, Prometheus and Kubernetes read.
.PHONY: module
module: ## Give the module a path that go get finds, once: make module NAME=github.com/you/diehard
	@[[ "$(NAME)" =~ ^[a-z0-9.-]+\.[a-z]+(/[A-Za-z0-9._~-]+)+$$ ]] || { echo "NAME=$(NAME) is not a path such as github.com/you/diehard" >&2; exit 1; }
	@old=$$(go list -m); folders='(api|streamer|shared|migrations)\b'; \
	find . \( -name '.?*' -o -name dist -o -name bin \) -prune -o \( -name '*.go' -o -name go.mod -o -name '*.md' \) -print | xargs sed -i -E \
	  -e "s#\"$$old/$$folders#\"$(NAME)/\1#g; s#^module $$old(/|\$$)#module $(NAME)\1#; s#^(replace |\t)$$old (=>|v0)#\1$(NAME) \2#"; \
	sed -i -E "s#((pkg|module-path): )$$old(/|\$$)#\1$(NAME)\3#" .golangci.yml; \
	grep -rlF https://github.com/diehard/diehard docker-compose.yml .env.example docker shared/dev/policy | xargs -r sed -i 's#https://github.com/diehard/diehard\b#https://$(NAME)#g'
	@go list -deps -test ./... > /dev/null && echo "The module is $(NAME). Next: make format, and what README.md says of it under In your application."

.PHONY: fuzz
fuzz: ## Every fuzz target in turn (FUZZ_TIME=30s each)
	@go test -list '^Fuzz' $(PACKAGES) | awk '/^Fuzz/ { names[++n] = $$1 } /^ok/ { while (n) print $$2, names[n--] }' | \
	while read -r package name; do \
	  echo "$$package $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzzminimizetime 10x -fuzztime $(FUZZ_TIME) "$$package" < /dev/null; \
	done

.PHONY: bench
bench: ## Measure beside others (BENCH=drain|path|latency|producer|api|growth|peers|questions|indexes|all BENCH_ROUNDS=3)
	@go build -o bin/bench ./shared/dev/bench
	@bin/bench $(BENCH)

.PHONY: bench-once
bench-once: ## Every micro-benchmark that needs no engine, once, so that none rots
	@go test -run '^$$' -bench . -benchtime 1x ./streamer/decode ./streamer/batch ./api/httpapi

.PHONY: lint
lint: $(GOLANGCI) ## Static checks, as configured in .golangci.yml
	@$(GOLANGCI) run --allow-parallel-runners

.PHONY: format
format: $(GOLANGCI) ## Format the code as lint wants it
	@$(GOLANGCI) fmt

$(GOLANGCI):
	@mkdir -p -m 700 .dev && mkdir -p $(@D)
	GOBIN=$(CURDIR)/$(@D)/install go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(@D)/install/golangci-lint $@

.PHONY: clean
clean: $(DEVSTACK) ## Stop the engines and delete .dev and bin, data included
	@$(DEVSTACK) clean
	rm -rf bin

.PHONY: help
help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { gsub(/\$$\$$/, "$$", $$2); printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
