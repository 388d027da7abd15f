# accessd: build, test and look after it. "make" does the everyday three.
SHELL := /bin/bash
GO ?= go
BIN := bin
TOOLS := $(BIN)/tools
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Functions at 16 bytes, not 32: half a megabyte less.
LDFLAGS := -s -w -funcalign 16 -X github.com/accessd/accessd/lib/defaults.Version=$(VERSION)
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64
# One for each system: what "make release" builds beyond these has no code of its own.
CHECKED := linux/arm64 darwin/arm64 windows/amd64
TEST_TIMEOUT ?= 20m
# Scenarios wait for processes most of the time, whatever the number of cores; so do
# the packages' tests, of which three at a time keep two cores busy.
PARALLEL ?= 12
SOAK ?= 10m

export CGO_ENABLED ?= 0

.PHONY: all
all: build lint test

.PHONY: build
build: ## the binary, bin/accessd
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/accessd ./cmd/accessd

.PHONY: run
run: build ## a cluster, a node and a user on this machine
	$(BIN)/accessd quickstart

.PHONY: deps
deps: ## what the tests drive: stock clients and servers
	@./integration/install-deps

.PHONY: test
test: deps build ## everything: unit, contract, script, integration, attack, fault
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -p 3 -parallel $(PARALLEL) -timeout $(TEST_TIMEOUT) $$($(GO) list ./... | grep -v /integration)
	ACCESSD_BINARY=$(CURDIR)/$(BIN)/accessd $(GO) test -shuffle=on -parallel $(PARALLEL) -timeout $(TEST_TIMEOUT) ./integration/...

.PHONY: race
race: deps ## the scenarios under the race detector, tests and product
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -parallel $(PARALLEL) -timeout 60m ./integration/...

.PHONY: unit
unit: ## the packages alone
	CGO_ENABLED=1 $(GO) test -race -shuffle=on ./lib/... ./api/... ./cmd/...

.PHONY: interop
interop: deps build ## stock clients against the built binary; writes docs/interop.md
	ACCESSD_INTEROP_DOC=$(CURDIR)/docs/interop.md $(GO) test -count=1 -parallel $(PARALLEL) -timeout $(TEST_TIMEOUT) ./integration/...

.PHONY: fault
fault: deps build ## kills, full disks and dead networks, more rounds than "make test"
	ACCESSD_FAULT_ROUNDS=50 CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 60m -run 'Fault|Crash|Kill' ./...

.PHONY: soak
soak: deps build ## clients beside random kills for SOAK (10m); ACCESSD_SOAK_SEED repeats a schedule
	ACCESSD_SOAK=$(SOAK) ACCESSD_BINARY=$(CURDIR)/$(BIN)/accessd $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./integration

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (20s)
	@./integration/fuzz-all $${FUZZTIME:-20s}

.PHONY: bench
bench: deps build ## figures beside OpenSSH, written to docs/benchmarks.md
	$(GO) run ./bench -accessd $(BIN)/accessd -out docs/benchmarks.md

.PHONY: cover
cover: deps build
	CGO_ENABLED=1 $(GO) test -race -coverprofile=$(BIN)/cover.out -coverpkg=./lib/... ./...
	$(GO) tool cover -func=$(BIN)/cover.out | tail -1

# The tools live in a module of their own, so that they never weigh on the product's.
$(TOOLS)/.stamp: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	cd tools && $(GO) build -o ../$(TOOLS)/ tool
	@touch $@

.PHONY: lint
lint: $(TOOLS)/.stamp ## linters, layer law, module hygiene, every system's build
	$(TOOLS)/golangci-lint run ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./lib
	@for p in $(CHECKED); do echo "build $$p"; GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/accessd || exit 1; done
	@$(MAKE) --no-print-directory dead

.PHONY: dead
dead: $(TOOLS)/.stamp ## unreachable functions; must print nothing
	@out=$$($(TOOLS)/deadcode -test ./... 2>&1 | grep -v -E '\.pb\.go|\.connect\.go'); if [ -n "$$out" ]; then echo "$$out"; exit 1; fi

.PHONY: generate
generate: $(TOOLS)/.stamp ## protobuf and generated documents; must leave no diff
	PATH=$(CURDIR)/$(TOOLS):$$PATH protoc -I api --go_out=. --go_opt=module=github.com/accessd/accessd --connect-go_out=. --connect-go_opt=module=github.com/accessd/accessd api/accessd/v1/*.proto
	$(GO) run ./docs/generate

.PHONY: vuln
vuln: $(TOOLS)/.stamp ## known vulnerabilities; needs vuln.go.dev
	$(TOOLS)/govulncheck ./...

.PHONY: release
release: ## reproducible binaries and checksums in dist/
	@mkdir -p dist
	@for p in $(PLATFORMS); do ext=; [ $${p%/*} = windows ] && ext=.exe; \
	  GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/accessd-$${p%/*}-$${p#*/}$$ext ./cmd/accessd || exit 1; done
	cd dist && sha256sum accessd-* > SHA256SUMS

.PHONY: clean
clean:
	rm -rf $(BIN) dist
