# make demo    a hub and three spokes on this machine, with traffic, until Ctrl-C
# make test    all tests, against real servers
# make check   format, lints, line lengths, licences
# make soak    a random programme of faults, for as long as asked
# make bench   speed and cost against what the same servers do by themselves

demo test bench soak: export MONGOD = $(shell ./scripts/get-mongod)
CARGO ?= cargo

.PHONY: demo test check mongod bench soak

demo: mongod
	$(CARGO) build --release --locked --bin spokesync --example demo --example vehicles
	exec ./target/release/examples/demo

# Most tests wait for servers most of the time, and so more of them run at once than there are cores.
test: export CHROMEDRIVER = $(shell ./scripts/get-chromedriver)
test: mongod
	@test -n "$(CHROMEDRIVER)"
	$(CARGO) test --workspace --locked -- --test-threads 4

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	./scripts/check-lines
	./scripts/check-licences

# As long as asked: make soak MINUTES=60; SOAK_SEED=… repeats one.
MINUTES ?= 10
soak: mongod
	SOAK_MINUTES=$(MINUTES) $(CARGO) test --locked --test it -- soak --nocapture

# Everything, or only some parts: make bench ONLY=latency,inserts
ONLY ?= $(BENCH_ONLY)
bench: mongod
	BENCH_ONLY=$(ONLY) $(CARGO) bench --locked --bench end_to_end

mongod:
	@test -n "$(MONGOD)"
