# make          builds bin/pitr
# make demo     archives, backs up, breaks and restores a real PostgreSQL server in a scratch directory
# make test     all tests, against the PostgreSQL of the distribution
# make help     the rest
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := build
.PHONY: build deps demo test race test-versions lint bench clean help

REVISION := $(shell git rev-parse --verify --quiet HEAD 2>/dev/null)
VERSION := $(or $(if $(REVISION),$(shell git describe --tags --always --dirty 2>/dev/null)),dev)
# Without a readable repository (an unpacked archive, another user's directory) Go must not look for one.
BUILDFLAGS := -trimpath -buildvcs=$(if $(REVISION),auto,false) -ldflags '-X main.version=$(VERSION)'
# The race detector and the C compressor both need a C compiler; Go finds out whether there is one.
CGO := $(shell go env CGO_ENABLED)
# The compressor is C, and its authors build it so; Go's own default is -O2.
export CGO_CFLAGS ?= -O3
RACE := $(if $(filter 1,$(CGO)),-race)
TESTFLAGS := -json -count=1 -timeout 15m

TOOLS := $(CURDIR)/bin/tools
STATICCHECK := $(TOOLS)/staticcheck-v0.8.2
GOVULNCHECK := $(TOOLS)/govulncheck-v1.9.0

build:
	$(if $(filter 1,$(CGO)),,@echo 'No C compiler found: building with the pure Go compressor, which is slower. The format is the same.')
	go build $(BUILDFLAGS) -o bin/pitr ./cmd/pitr

deps:
	./tests/deps/run postgresql s3 azurite swift

demo: deps build
	./tests/demo/run

# Most packages run under the race detector. The three that work on whole clusters take minutes under it and have a target
# of their own, `make race`; what stands under tests/ drives the built program, where the detector would see little.
HEAVY := pitr/archive pitr/basebackup pitr/recovery
test: deps build bin/count
	go vet ./...
	$(if $(RACE),,@echo 'No C compiler found: running without the race detector.')
	( failed=0; \
	  go test $(TESTFLAGS) $(RACE) $$(go list ./... | grep -v '^pitr/tests' | grep -vxF "$$(printf '%s\n' $(HEAVY))") || failed=1; \
	  go test $(TESTFLAGS) $(HEAVY) ./tests/... || failed=1; \
	  exit $$failed ) | bin/count

race: deps build bin/count
	go test $(TESTFLAGS) $(RACE) $(HEAVY) | bin/count

test-versions: deps build bin/count
	./tests/versions/run

.PHONY: bin/count
bin/count:
	go build -o $@ ./tests/count

lint: $(STATICCHECK) $(GOVULNCHECK)
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted" >&2; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...
	@status=0; $(GOVULNCHECK) ./... || status=$$?; \
	case $$status in \
	0) ;; \
	3) exit 1 ;; \
	*) echo 'NOT CHECKED for known vulnerabilities: govulncheck could not run (its database is fetched from the network).' >&2 ;; \
	esac

$(STATICCHECK):
	GOBIN=$(TOOLS) go install honnef.co/go/tools/cmd/staticcheck@v0.8.2
	mv $(TOOLS)/staticcheck $@

$(GOVULNCHECK):
	GOBIN=$(TOOLS) go install golang.org/x/vuln/cmd/govulncheck@v1.9.0
	mv $(TOOLS)/govulncheck $@

bench: build
	./tests/deps/run postgresql bench
	go run ./tests/bench $(BENCHFLAGS)

clean:
	rm -rf bin

help:
	@echo 'make build          bin/pitr'
	@echo 'make deps           install PostgreSQL from the distribution, or say what to install'
	@echo 'make demo           the whole line on a server of its own, in under three minutes'
	@echo 'make test           all tests; ends with what passed, failed and was skipped'
	@echo 'make race           the packages that make test runs without the race detector, with it'
	@echo 'make test-versions  the server tests on PostgreSQL 14 to 18 (fetches them with npm)'
	@echo 'make lint           gofmt, go vet, staticcheck, govulncheck'
	@echo 'make bench          side by side with pgBackRest and zstd'
	@echo 'make clean          remove bin/'
