# make demo    a hub and three spokes on this machine, with traffic, until Ctrl-C
# make test    all tests, against real servers
# make check   format, lints, licences
# make bench   speed and cost against what the same servers do by themselves

export MONGOD = $(shell ./scripts/get-mongod)
CARGO ?= cargo

.PHONY: demo test check mongod bench

demo: mongod
	$(CARGO) build --release --locked --bin spokesync --example demo --example vehicles
	exec ./target/release/examples/demo

test: mongod
	$(CARGO) test --workspace --locked

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	./scripts/check-licences

bench: mongod
	$(CARGO) bench --locked --bench end_to_end

mongod:
	@test -n "$(MONGOD)"
