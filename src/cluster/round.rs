//! One round of the membership: beat, look, share, give up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bson::Uuid;

use super::birth;
use super::desk::Desk;
use super::membership::{Hold, Member, Superior};
use super::pace::Pace;
use crate::mongo::error::Error;
use crate::mongo::metadata::leases::{self, Lease};
use crate::mongo::metadata::members::{self, Beat, Saved};
use crate::mongo::server::Server;
use crate::observe::status::Board;
use crate::rules::names::Zone;
use crate::rules::share::{self, MemberId, Plan};

/// Shortest lease of another member, whatever its document says.
const SHORTEST_LEASE: Duration = Duration::from_secs(3);

/// Time after which it is forgotten when a dead member was heard last, and after which a silent member without a common
/// spoke is removed.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// One round of the loop.
pub(super) struct Round<'r> {
    pub(super) member: &'r mut Member,
    pub(super) hub: &'r Server,
    pub(super) desk: &'r Desk,
    pub(super) board: &'r Board,
    pub(super) pace: Pace,
    pub(super) superior: &'r Superior,
}

impl Round<'_> {
    pub(super) async fn run(&mut self) -> Result<(), Error> {
        // A process that ends does not join any more, and has nothing to say.
        if self.member.id.is_none() && self.desk.is_leaving() {
            self.member.must_beat = false;
            return Ok(());
        }
        self.take_up_news().await?;
        let has_beaten = self.beat_if_due().await?;
        let members = self.look(has_beaten).await?;
        let has_news = self.share(&members, has_beaten).await?;
        self.save_pauses().await?;
        self.give_up_stopped().await?;
        self.hear_answers().await?;
        // The spoke of a wish may have come here meanwhile.
        if (has_news && !self.member.others.is_empty()) || !self.member.asked.is_empty() {
            self.carry_out_wishes().await?;
        }
        self.show_members(&members);
        if has_news {
            self.show_elsewhere();
        }
        Ok(())
    }

    /// Waits until the next look, for news, or for a doubt of a link.
    pub(super) async fn rest(&mut self) {
        if self.member.must_beat {
            return;
        }
        let pause = match self.member.asked.is_empty() {
            true => self.pace.look(!self.member.others.is_empty(), self.member.missing),
            false => super::wishes::ANSWER_INTERVAL,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.desk.news() => {}
            // A link has met another process: only the hub knows whose turn it is.
            () = self.desk.tenure.doubted() => self.member.must_beat = true,
        }
    }

    /// Takes up what the coordinator has said: another configuration, pauses to save, wishes to pass on.
    async fn take_up_news(&mut self) -> Result<(), Error> {
        let (card, asked) = {
            let mut said = self.desk.said();
            (said.card.take(), std::mem::take(&mut said.wishes))
        };
        self.member.asked.extend(asked);
        if let Some(card) = card {
            self.member.card = card;
            self.member.must_beat = true;
        }
        if self.desk.is_leaving() && !std::mem::replace(&mut self.member.is_leaving, true) {
            self.member.must_beat = true;
        }
        if self.make_wishes().await? {
            self.has_changed();
        }
        Ok(())
    }

    /// Saves what operators have paused and resumed here, in the order of their commands. A failure leaves the rest for
    /// the next round.
    async fn save_pauses(&mut self) -> Result<(), Error> {
        loop {
            let next = self.desk.said().pauses.front().map(|(zone, is_paused, _)| (zone.clone(), *is_paused));
            let Some((zone, is_paused)) = next else { return Ok(()) };
            // Only the holder knows: another process may have the spoke by now, with an operator of its own.
            let is_held =
                self.member.held.contains(&zone) && leases::set_paused(self.hub, &self.me(), &zone, is_paused).await?;
            if is_held {
                self.has_changed();
                self.member.leases.entry(zone).or_default().is_paused = is_paused;
            } else {
                tracing::warn!(%zone, paused = is_paused, "another process runs the spoke by now: the command is void");
            }
            let done = self.desk.said().pauses.pop_front();
            if done.is_some_and(|(.., done)| done.send(is_held).is_err()) {
                tracing::debug!(paused = is_paused, "the command is kept, and nobody waits for it any more");
            }
        }
    }

    /// Makes the other members look at leases and wishes.
    fn has_changed(&mut self) {
        self.member.changes += 1;
        self.member.must_beat = true;
    }

    /// Joins, or beats if it is time. True if the hub has confirmed a sign of life.
    async fn beat_if_due(&mut self) -> Result<bool, Error> {
        let began = Instant::now();
        let is_due = |at: Instant| began.duration_since(at) >= self.pace.beat();
        if !self.member.must_beat && !self.member.beaten_at.is_none_or(is_due) {
            return Ok(false);
        }
        if let Some(id) = &self.member.id {
            let spokes = (!self.member.others.is_empty()).then(|| self.reports());
            let beat = Beat { leaving: self.desk.is_leaving(), changes: self.member.changes, spokes };
            let card = self.member.must_beat.then_some(&self.member.card);
            // In time for another try on another connection, before the others take the process for dead.
            let limit = self.pace.answer();
            let beating = tokio::time::timeout(limit, members::beat(self.hub, id, &beat, card)).await;
            if !beating.unwrap_or_else(|_| Err(self.hub.timed_out("beating", limit)))? {
                self.was_declared_dead();
            }
        }
        if self.member.id.is_none() {
            let id = self.member.joining.get_or_insert_with(|| Uuid::new().to_string()).clone();
            members::join(self.hub, &id, &self.member.card).await?;
            tracing::info!(member = id, "joined the cluster");
            (self.member.id, self.member.joining) = (Some(id), None);
            self.member.steady_since = Instant::now();
        }
        // After a gap, the others' heartbeats may be as late as the own one. A long wait for the answer is a gap, too.
        if self.member.beaten_at.is_some_and(|at| at.elapsed() >= self.pace.beat() * 3 / 2) {
            self.member.steady_since = Instant::now();
        }
        self.member.beaten_at = Some(began);
        self.member.must_beat = false;
        Ok(true)
    }

    /// The process joins again as a newcomer. The leases, which are read next, say which spokes other processes run by
    /// now. Until then no link commits.
    fn was_declared_dead(&mut self) {
        tracing::warn!(
            "no member any more: the others took this process for dead, or the hub has lost its metadata. Joining again"
        );
        let member = &mut *self.member;
        (member.id, member.changes) = (None, 0);
        member.giving.clear();
        self.desk.tenure.set(member.held.clone(), Instant::now());
    }

    /// Reads the members, and removes those that have ended. The result contains this process, and the members with a
    /// common spoke.
    async fn look(&mut self, has_beaten: bool) -> Result<Vec<Saved>, Error> {
        let me = self.me();
        let is_known = |seen: &Saved| {
            let other = self.member.others.get(&seen.id).map(|other| &other.card.config);
            let stranger = self.member.strangers.get(&seen.id).map(|stranger| &stranger.card.config);
            seen.id == me || other.or(stranger) == Some(&seen.card.config)
        };
        let mut seen = members::all(self.hub, has_beaten).await?;
        if !has_beaten && !seen.iter().all(is_known) {
            seen = members::all(self.hub, true).await?;
        }
        // Zones and reports come with whole looks only.
        let is_whole = seen.iter().any(|one| !one.card.zones.is_empty());
        for one in &mut seen {
            // The hub may not have this process's newest word.
            if one.id == me {
                (one.card, one.leaving) = (self.member.card.clone(), self.desk.is_leaving());
            } else if !is_whole
                && let Some(known) = self.member.others.get(&one.id).or(self.member.strangers.get(&one.id))
            {
                (one.card.zones, one.spokes) = (known.card.zones.clone(), known.spokes.clone());
            }
        }
        // Other deployments may use the same hub.
        let zones = &self.member.card.zones;
        let is_stranger = |one: &Saved| one.id != me && one.card.zones.is_disjoint(zones);
        let (strangers, seen): (Vec<Saved>, Vec<Saved>) = seen.into_iter().partition(is_stranger);
        for silent in strangers.iter().filter(|one| one.age >= FORGOTTEN) {
            members::remove_dead(self.hub, &silent.id, FORGOTTEN).await?;
        }
        self.member.strangers = strangers.into_iter().map(|one| (one.id.clone(), one)).collect();
        self.member.dead.retain(|_, (_, at)| at.elapsed() < FORGOTTEN);
        let mut ours = Vec::new();
        for one in seen {
            if one.id == me || !self.has_ended(&one).await? {
                ours.push(one);
            }
        }
        Ok(ours)
    }

    /// Removes a member that has ended, as far as anybody can know.
    async fn has_ended(&mut self, one: &Saved) -> Result<bool, Error> {
        // By its own lease, which may be another one. This process must have beaten long enough for either.
        let pace = Pace::new(one.card.lease.max(SHORTEST_LEASE));
        let (limit, steady) = (pace.dead_after(), pace.steady().max(self.pace.steady()));
        let is_steady = self.member.steady_since.elapsed() >= steady;
        let process = one.card.process();
        if birth::has_ended(&one.card.birth, &self.member.card.birth) {
            tracing::info!(process, "a former process of this machine has ended");
            members::leave(self.hub, &one.id).await?;
        } else if one.age >= limit && is_steady {
            // Another member may be quicker, or it has beaten in the last moment: the next look shows which.
            self.member.dead.insert(one.id.clone(), (one.age, Instant::now()));
            if !members::remove_dead(self.hub, &one.id, limit).await? {
                return Ok(false);
            }
            tracing::warn!(process, silent_seconds = one.age.as_secs_f64(), "declared a silent member dead");
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes and gives up leases as the rule says, if anything has changed. True if it looked at the leases.
    async fn share(&mut self, members: &[Saved], has_beaten: bool) -> Result<bool, Error> {
        let me = self.me();
        let others: BTreeMap<MemberId, Saved> =
            members.iter().filter(|one| one.id != me).map(|one| (one.id.clone(), one.clone())).collect();
        let sign = |one: &Saved| (one.id.clone(), one.changes, one.leaving, one.card.config.clone());
        let is_same = others.values().map(sign).eq(self.member.others.values().map(sign));
        self.member.others = others;
        if is_same && !has_beaten {
            return Ok(false);
        }
        self.say_differing();
        self.member.leases = leases::all(self.hub).await?;
        let plan = self.plan(members);
        self.member.missing = plan.missing;
        if !plan.take.is_empty() {
            let former = self.member.leases.clone();
            leases::take(self.hub, &me, &plan.take, &former).await?;
            self.member.leases = leases::all(self.hub).await?;
            self.has_taken(&plan.take, &former);
            // What is left may be another member's share now, and that member may believe that it has enough.
            self.has_changed();
        }
        self.member.giving.extend(plan.give);
        self.hold_what_is_held();
        Ok(true)
    }

    fn plan(&self, members: &[Saved]) -> Plan {
        let me = self.me();
        let holders = self.member.leases.iter().filter_map(|(zone, lease)| Some((zone.clone(), lease.holder.clone()?)));
        let holders: BTreeMap<Zone, MemberId> =
            holders.filter(|(_, holder)| members.iter().any(|one| one.id == *holder)).collect();
        let member = |one: &Saved| share::Member { id: one.id.clone(), zones: one.card.zones.clone() };
        let living: Vec<share::Member> = members.iter().filter(|one| !one.leaving).map(member).collect();
        let mut plan = share::plan(&me, &living, &holders);
        if self.desk.is_leaving() {
            let mine = holders.into_iter().filter(|(_, holder)| *holder == me).map(|(zone, _)| zone);
            // Alone, nobody waits for the leases: the end of the process frees all of them.
            plan.give = if living.is_empty() { BTreeSet::new() } else { mine.collect() };
        }
        plan
    }

    /// Says which leases were taken from dead members.
    fn has_taken(&mut self, taken: &BTreeSet<Zone>, former: &BTreeMap<Zone, Lease>) {
        let me = self.me();
        let is_mine = |zone: &&Zone| self.member.leases.get(*zone).is_some_and(|now| now.holder.as_ref() == Some(&me));
        let dead = |zone: &Zone| former.get(zone)?.holder.as_ref().and_then(|holder| self.member.dead.get(holder));
        let silent: Vec<Duration> =
            taken.iter().filter(is_mine).filter_map(dead).map(|(age, at)| *age + at.elapsed()).collect();
        if let Some(longest) = silent.iter().max() {
            tracing::info!(spokes = silent.len(), after_seconds = longest.as_secs_f64(), "took spokes over");
            self.board.cluster().took_over(silent.len(), *longest);
        }
    }

    /// Tells the links and the coordinator what the process holds.
    fn hold_what_is_held(&mut self) {
        let me = self.me();
        let member = &mut *self.member;
        let held = member.leases.iter().filter(|(_, lease)| lease.holder.as_ref() == Some(&me));
        let held: BTreeSet<Zone> = held.map(|(zone, _)| zone.clone()).collect();
        self.board.cluster().has_lost(member.held.difference(&held).count());
        member.held = held;
        member.giving.retain(|zone| member.held.contains(zone));
        let kept = member.held.difference(&member.giving);
        // An operator's newest word may not be at the hub yet.
        let said: BTreeMap<Zone, bool> =
            self.desk.said().pauses.iter().map(|(zone, is_paused, _)| (zone.clone(), *is_paused)).collect();
        let is_paused = |zone: &Zone| {
            let saved = member.leases.get(zone).is_some_and(|lease| lease.is_paused);
            said.get(zone).copied().unwrap_or(saved)
        };
        let hold = Hold(kept.map(|zone| (zone.clone(), is_paused(zone))).collect());
        // A spoke that is given up finishes its batch under way.
        self.confirm();
        self.tell(hold);
    }

    /// Tells the links up to when nobody takes the process for dead.
    fn confirm(&mut self) {
        if let Some(at) = self.member.beaten_at {
            self.desk.tenure.set(self.member.held.clone(), at + self.pace.dead_after());
        }
    }

    fn tell(&mut self, hold: Hold) {
        if self.member.told.as_ref() != Some(&hold) {
            self.superior.hold.do_send(hold.clone());
            self.member.told = Some(hold);
        }
    }

    /// Gives up the leases of spokes that have stopped.
    async fn give_up_stopped(&mut self) -> Result<(), Error> {
        let stopped: BTreeSet<Zone> =
            self.member.giving.iter().filter(|zone| !self.desk.is_running(zone)).cloned().collect();
        if stopped.is_empty() {
            return Ok(());
        }
        let me = self.me();
        let is_configured = |zone: &Zone| {
            let members = self.member.others.values().chain(self.member.strangers.values());
            members.map(|one| &one.card.zones).chain([&self.member.card.zones]).any(|zones| zones.contains(zone))
        };
        let (configured, gone): (BTreeSet<Zone>, BTreeSet<Zone>) = stopped.into_iter().partition(is_configured);
        leases::give(self.hub, &me, &configured, false).await?;
        leases::give(self.hub, &me, &gone, true).await?;
        for zone in configured.iter().chain(&gone) {
            self.member.giving.remove(zone);
            self.member.held.remove(zone);
            self.member.leases.entry(zone.clone()).or_default().holder = None;
        }
        self.confirm();
        // The others wait for the spokes: the next round begins at once, with a beat.
        self.has_changed();
        Ok(())
    }

    pub(super) fn me(&self) -> MemberId {
        self.member.id.clone().unwrap_or_default()
    }
}
