.PHONY: build packages test test-vm test-vm-browser demo bench report fuzz lint clean

build: ## bin/limpet, the way it ships
	CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -o bin/limpet ./cmd/limpet

packages: ## dist/: a .deb and a container image for amd64 and arm64
	packaging/build

test: ## everything that must hold before a change lands
	.ci/run

test-vm: ## limpet fido in a virtual machine: real devices, systemd, OpenSSH
	CI=true go test -count=1 -v ./e2e/vm

test-vm-browser: ## the same with Chromium; minutes, and not part of test
	CI=true go test -count=1 -v -timeout 30m -tags browser -run '^TestBrowser$$' ./e2e/vm

demo:
	go run ./cmd/limpet demo

bench:
	go test -run '^$$' -bench . . ./proof
	cd bench && go test -run '^$$' -bench . -benchtime 1x .

report: ## docs/performance.md, from figures of this machine
	cd bench && go run ./report

# go test fuzzes one target at a time.
FUZZTIME ?= 1m
fuzz:
	@for file in $$(grep -rl '^func Fuzz' --include '*_test.go' .); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$file); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file) || exit 1; \
		done; \
	done

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

clean:
	rm -rf bin dist
