//! A model of the cluster: members beat, look, take and give up leases, claim checkpoints and commit batches, while
//! time passes and one of them crashes or freezes at any moment. `stateright` visits every order of the steps.
//!
//! Two things must hold in every state that can be reached:
//!
//! - every batch is applied once and in order, whoever believes whatever
//! - if nothing more goes wrong, each spoke is run by exactly one process in the end
//!
//! The division is the real one ([`share::plan`]); the hub is a table of members, leases and checkpoints. Weakened
//! rules must fail, or the model would show nothing.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::names::Zone;
use super::share::{self, MemberId};

/// Steps of the clock without a heartbeat after which a member counts as dead.
const DEAD: u8 = 2;

/// Batches of each spoke, at most: enough for a commit before, during and after a takeover.
const BATCHES: usize = 2;

/// The parts of the design that a test can take away.
#[derive(Clone, Copy)]
struct Rules {
    /// A commit needs the number of the claim.
    compare_and_swap: bool,
    /// A beat that finds no document ends the membership, instead of renewing it.
    death_is_final: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Health {
    Running,
    Frozen,
    Crashed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    health: Health,
    /// Counts its memberships: it joins under a new name after each death.
    number: u8,
    has_joined: bool,
    /// The leases that it believes to hold.
    held: BTreeSet<usize>,
    /// The checkpoints that it has claimed: the number, and the batches applied by then.
    claims: BTreeMap<usize, (u8, usize)>,
    /// What it read at its newest look, and has not acted on yet.
    seen: Option<Seen>,
}

/// Members and leases, as read at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    members: BTreeSet<String>,
    leases: Vec<(Option<String>, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    processes: Vec<Process>,
    /// The members' documents at the hub, with the age of the heartbeat.
    members: BTreeMap<String, u8>,
    /// Holder and term of each lease.
    leases: Vec<(Option<String>, u8)>,
    /// The number of each checkpoint.
    numbers: Vec<u8>,
    /// The batches applied to each spoke, in the order of their commits.
    applied: Vec<Vec<usize>>,
    /// Crashes and freezes that may still happen.
    accidents: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The clock moves on for everybody.
    Tick,
    Beat(usize),
    /// Removes members that are silent for too long, and reads members and leases.
    Look(usize),
    /// Takes and gives up leases, on what was read.
    Act(usize),
    Claim(usize, usize),
    Commit(usize, usize),
    Crash(usize),
    Freeze(usize),
    Wake(usize),
}

struct Cluster {
    processes: usize,
    spokes: usize,
    rules: Rules,
}

impl Cluster {
    fn name(process: usize, number: u8) -> String {
        format!("{process}.{number}")
    }

    fn zones(&self) -> Vec<Zone> {
        (0..self.spokes).map(|zone| Zone::new(&zone.to_string())).collect()
    }

    /// The world after a step, or `None` if the step is not possible or changes nothing.
    fn after(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        let is_running = |process: usize| world.processes[process].health == Health::Running;
        match step {
            Step::Tick => next.members.values_mut().for_each(|age| *age = (*age + 1).min(DEAD)),
            Step::Beat(process) if is_running(process) => self.beat(&mut next, process),
            Step::Look(process) if is_running(process) && world.processes[process].has_joined => {
                let me = Self::name(process, world.processes[process].number);
                next.members.retain(|name, age| *name == me || *age < DEAD);
                let seen = Seen { members: next.members.keys().cloned().collect(), leases: next.leases.clone() };
                next.processes[process].seen = Some(seen);
            }
            Step::Act(process) if is_running(process) => self.act(&mut next, process)?,
            Step::Claim(process, spoke) if is_running(process) => {
                let claimant = &mut next.processes[process];
                if !claimant.held.contains(&spoke) || claimant.claims.contains_key(&spoke) {
                    return None;
                }
                next.numbers[spoke] += 1;
                claimant.claims.insert(spoke, (next.numbers[spoke], world.applied[spoke].len()));
            }
            Step::Commit(process, spoke) if is_running(process) => self.commit(&mut next, process, spoke)?,
            Step::Crash(process) if is_running(process) && world.accidents > 0 => {
                next.accidents -= 1;
                let crashed = &mut next.processes[process];
                (crashed.health, crashed.seen) = (Health::Crashed, None);
                crashed.held.clear();
                crashed.claims.clear();
            }
            Step::Freeze(process) if is_running(process) && world.accidents > 0 => {
                next.accidents -= 1;
                next.processes[process].health = Health::Frozen;
            }
            Step::Wake(process) if world.processes[process].health == Health::Frozen => {
                next.processes[process].health = Health::Running;
            }
            _ => return None,
        }
        (next != *world).then_some(next)
    }

    fn beat(&self, world: &mut World, process: usize) {
        let beating = &mut world.processes[process];
        let name = Self::name(process, beating.number);
        let is_alive = world.members.contains_key(&name);
        if beating.has_joined && !is_alive && self.rules.death_is_final {
            // The others have taken over: it joins again as a newcomer.
            beating.number += 1;
            beating.held.clear();
            beating.claims.clear();
            beating.seen = None;
        }
        beating.has_joined = true;
        world.members.insert(Self::name(process, world.processes[process].number), 0);
    }

    fn act(&self, world: &mut World, process: usize) -> Option<()> {
        let seen = world.processes[process].seen.take()?;
        let me = Self::name(process, world.processes[process].number);
        let zones = self.zones();
        let holders: BTreeMap<Zone, MemberId> = zones
            .iter()
            .zip(&seen.leases)
            .filter_map(|(zone, (holder, _))| Some((zone.clone(), holder.clone()?)))
            .filter(|(_, holder)| seen.members.contains(holder))
            .collect();
        let member = |id: &String| share::Member { id: id.clone(), zones: zones.iter().cloned().collect() };
        let members: Vec<share::Member> = seen.members.iter().map(member).collect();
        let plan = share::plan(&me, &members, &holders);
        let acting = &mut world.processes[process];
        for (spoke, zone) in zones.iter().enumerate() {
            // The compare-and-swap on the term.
            if plan.take.contains(zone) && world.leases[spoke].1 == seen.leases[spoke].1 {
                world.leases[spoke] = (Some(me.clone()), seen.leases[spoke].1 + 1);
                acting.held.insert(spoke);
            }
            // The loops end before the lease is given up.
            if plan.give.contains(zone) && world.leases[spoke].0.as_ref() == Some(&me) {
                acting.held.remove(&spoke);
                acting.claims.remove(&spoke);
                world.leases[spoke] = (None, world.leases[spoke].1 + 1);
            }
        }
        Some(())
    }

    fn commit(&self, world: &mut World, process: usize, spoke: usize) -> Option<()> {
        let (number, applied) = *world.processes[process].claims.get(&spoke)?;
        if applied >= BATCHES {
            return None;
        }
        if self.rules.compare_and_swap && number != world.numbers[spoke] {
            // Another process has claimed the checkpoint: the loop ends.
            world.processes[process].claims.remove(&spoke);
            return Some(());
        }
        world.applied[spoke].push(applied);
        world.processes[process].claims.insert(spoke, (number, applied + 1));
        Some(())
    }

    /// True if each spoke is run by exactly one process, after everybody has done what there is to do.
    fn ends_well(&self, world: &World) -> bool {
        let mut world = world.clone();
        let run = |step: Step, world: &mut World| {
            if let Some(next) = self.after(world, step) {
                *world = next;
            }
        };
        for process in 0..self.processes {
            run(Step::Wake(process), &mut world);
        }
        for _ in 0..6 {
            run(Step::Tick, &mut world);
            for process in 0..self.processes {
                run(Step::Beat(process), &mut world);
                run(Step::Look(process), &mut world);
                run(Step::Act(process), &mut world);
            }
        }
        let all_run = world.processes.iter().all(|process| process.health == Health::Crashed);
        let runs = |spoke: &usize| world.processes.iter().filter(|process| process.held.contains(spoke)).count();
        all_run || (0..self.spokes).all(|spoke| runs(&spoke) == 1)
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let process = Process {
            health: Health::Running,
            number: 0,
            has_joined: false,
            held: BTreeSet::new(),
            claims: BTreeMap::new(),
            seen: None,
        };
        vec![World {
            processes: vec![process; self.processes],
            members: BTreeMap::new(),
            leases: vec![(None, 0); self.spokes],
            numbers: vec![0; self.spokes],
            applied: vec![Vec::new(); self.spokes],
            accidents: 1,
        }]
    }

    fn actions(&self, _: &World, steps: &mut Vec<Step>) {
        steps.push(Step::Tick);
        for process in 0..self.processes {
            steps.extend([Step::Beat(process), Step::Look(process), Step::Act(process)]);
            steps.extend([Step::Crash(process), Step::Freeze(process), Step::Wake(process)]);
            for spoke in 0..self.spokes {
                steps.extend([Step::Claim(process, spoke), Step::Commit(process, spoke)]);
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        self.after(world, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let in_order = |_: &Self, world: &World| {
            world.applied.iter().all(|applied| applied.iter().enumerate().all(|(place, batch)| place == *batch))
        };
        vec![
            Property::always("every batch is applied once and in order", in_order),
            Property::always("each spoke is run by one process in the end", |cluster: &Self, world: &World| {
                cluster.ends_well(world)
            }),
        ]
    }

    /// Takeovers may go on for ever: a few are enough.
    fn within_boundary(&self, world: &World) -> bool {
        world.leases.iter().all(|(_, term)| *term <= 2)
            && world.numbers.iter().all(|number| *number <= 2)
            && world.processes.iter().all(|process| process.number <= 1)
    }
}

const ALL: Rules = Rules { compare_and_swap: true, death_is_final: true };

#[test]
fn in_every_order_of_steps_each_batch_is_applied_once_and_each_spoke_is_run_again() {
    let cluster = Cluster { processes: 2, spokes: 1, rules: ALL };
    cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join().assert_properties();
}

#[test]
fn two_spokes_are_divided_and_run_again_after_an_accident() {
    let cluster = Cluster { processes: 2, spokes: 2, rules: ALL };
    let checker = cluster.checker().threads(2).target_state_count(300_000).finish_when(HasDiscoveries::AnyFailures);
    checker.spawn_bfs().join().assert_properties();
}

#[test]
fn without_the_compare_and_swap_a_batch_is_applied_twice() {
    let cluster = Cluster { processes: 2, spokes: 1, rules: Rules { compare_and_swap: false, ..ALL } };
    let checker = cluster.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    assert!(checker.discovery("every batch is applied once and in order").is_some());
}

#[test]
fn with_a_lease_that_is_renewed_after_its_end_two_processes_run_a_spoke() {
    let cluster = Cluster { processes: 2, spokes: 1, rules: Rules { death_is_final: false, ..ALL } };
    let checker = cluster.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    assert!(checker.discovery("each spoke is run by one process in the end").is_some());
}
