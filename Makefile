# make demo    run a hub and three spokes on this machine, with traffic, until Ctrl-C
# make test    run all tests, against real servers
# make check   check format, lints, line lengths and licences
# make soak    inject random faults for MINUTES (default 10)
# make bench   measure speed and cost, compared with the same servers alone

demo test bench soak: export MONGOD = $(shell ./scripts/get-mongod)
CARGO ?= cargo

.PHONY: demo test check mongod bench soak

demo: mongod
	$(CARGO) build --release --locked --bin spokesync --example demo --example vehicles
	exec ./target/release/examples/demo

# Tests spend most of their time waiting for servers, so four run at the same time, whatever the number of cores.
test: export CHROMEDRIVER = $(shell ./scripts/get-chromedriver)
test: mongod
	@test -n "$(CHROMEDRIVER)"
	$(CARGO) test --workspace --locked -- --test-threads 4

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	./scripts/check-lines
	./scripts/check-licences

# make soak MINUTES=60 runs for an hour; SOAK_SEED=… and PROMISE_SEED=… repeat the faults of an earlier run.
MINUTES ?= 10
soak: mongod
	SOAK_MINUTES=$(MINUTES) $(CARGO) test --locked --test it -- soak promise --nocapture

# make bench ONLY=latency,inserts runs only the named parts.
ONLY ?= $(BENCH_ONLY)
bench: mongod
	BENCH_ONLY=$(ONLY) $(CARGO) bench --locked --bench end_to_end

mongod:
	@test -n "$(MONGOD)"
