//! Divides the spokes among the processes of a cluster.
//!
//! Every process decides for itself, on the members and leases that it reads at the hub. Two processes that read the
//! same decide the same, so no process needs to lead. A process that has read an older state loses the race for a lease
//! at most: a lease changes its holder by compare-and-swap.

use std::collections::{BTreeMap, BTreeSet};

use super::names::Zone;

/// The identity of a member, as a text that sorts.
pub(crate) type MemberId = String;

/// A member that takes part: alive, and not about to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    /// The zones of the spokes in its configuration.
    pub(crate) zones: BTreeSet<Zone>,
}

/// A member's next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Leases to take: nobody holds them.
    pub(crate) take: BTreeSet<Zone>,
    /// Leases to give up, because another member has too few.
    pub(crate) give: BTreeSet<Zone>,
    /// The number of leases that the member waits for, because others still hold them.
    pub(crate) missing: usize,
}

/// The next step of the member `me`. `holders`: the zones whose lease has a living holder, which may be about to leave.
///
/// Zones that the same members can run form a group. Within a group of n zones every one of m members ends with ⌊n/m⌋
/// or ⌈n/m⌉ zones, and only the surplus moves: the members that hold most keep the larger share.
pub(crate) fn plan(me: &str, members: &[Member], holders: &BTreeMap<Zone, MemberId>) -> Plan {
    let mut plan = Plan::default();
    for (able, zones) in groups(members) {
        let group = Group::new(&able, &zones, holders);
        let before = plan.take.len();
        plan.take.extend(group.taken_by(me).cloned());
        plan.missing += group.missing(me) - (plan.take.len() - before);
        plan.give.extend(group.given_by(me).cloned());
    }
    // A lease of a zone that has left the configuration is of no use.
    let mine: BTreeSet<&Zone> = members.iter().filter(|member| member.id == me).flat_map(|me| &me.zones).collect();
    let useless = holders.iter().filter(|(zone, holder)| *holder == me && !mine.contains(zone));
    plan.give.extend(useless.map(|(zone, _)| zone.clone()));
    plan
}

/// The zones by the members that can run them. Members and zones are in order.
fn groups(members: &[Member]) -> BTreeMap<BTreeSet<&str>, BTreeSet<&Zone>> {
    let mut able: BTreeMap<&Zone, BTreeSet<&str>> = BTreeMap::new();
    for member in members {
        for zone in &member.zones {
            able.entry(zone).or_default().insert(&member.id);
        }
    }
    let mut groups: BTreeMap<BTreeSet<&str>, BTreeSet<&Zone>> = BTreeMap::new();
    for (zone, able) in able {
        groups.entry(able).or_default().insert(zone);
    }
    groups
}

/// The zones that the same members can run.
struct Group<'g> {
    /// The zones that each member holds, and the number that the member should hold.
    shares: BTreeMap<&'g str, (Vec<&'g Zone>, usize)>,
    /// The zones that nobody holds.
    free: Vec<&'g Zone>,
}

impl<'g> Group<'g> {
    fn new(able: &BTreeSet<&'g str>, zones: &BTreeSet<&'g Zone>, holders: &BTreeMap<Zone, MemberId>) -> Self {
        let mut held: BTreeMap<&str, Vec<&Zone>> = able.iter().map(|id| (*id, Vec::new())).collect();
        let mut free = Vec::new();
        for zone in zones {
            match holders.get(*zone) {
                None => free.push(*zone),
                // A holder that is about to leave, or that lost the zone from its configuration, gives it up by itself.
                Some(holder) => held.get_mut(holder.as_str()).into_iter().for_each(|held| held.push(zone)),
            }
        }
        // Zones of a leaving holder belong to nobody's share yet, but will.
        let (least, larger) = (zones.len() / able.len(), zones.len() % able.len());
        let mut by_held: Vec<(&str, usize)> = held.iter().map(|(id, held)| (*id, held.len())).collect();
        by_held.sort_by_key(|(id, held)| (std::cmp::Reverse(*held), *id));
        let more: BTreeSet<&str> = by_held.iter().take(larger).map(|(id, _)| *id).collect();
        let shares = held.into_iter().map(|(id, held)| (id, (held, least + usize::from(more.contains(id)))));
        Self { shares: shares.collect(), free }
    }

    /// The free zones that the member takes: each free zone goes to one member with too few.
    fn taken_by(&self, me: &str) -> impl Iterator<Item = &'g Zone> {
        let before: usize = self.shares.keys().filter(|id| **id < me).map(|id| self.missing(id)).sum();
        self.free.iter().skip(before).take(self.missing(me)).copied()
    }

    /// The number of zones that the member has too few.
    fn missing(&self, id: &str) -> usize {
        self.shares.get(id).map_or(0, |(held, share)| share.saturating_sub(held.len()))
    }

    /// The zones beyond the member's share.
    fn given_by(&self, me: &str) -> impl Iterator<Item = &'g Zone> {
        self.shares.get(me).into_iter().flat_map(|(held, share)| held.iter().skip(*share).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zones(names: &str) -> BTreeSet<Zone> {
        names.chars().map(|name| Zone::new(&name.to_string())).collect()
    }

    fn members(list: &[(&str, &str)]) -> Vec<Member> {
        list.iter().map(|(id, names)| Member { id: (*id).to_owned(), zones: zones(names) }).collect()
    }

    fn holders(list: &[(&str, &str)]) -> BTreeMap<Zone, MemberId> {
        let mut holders = BTreeMap::new();
        for (id, names) in list {
            holders.extend(zones(names).into_iter().map(|zone| (zone, (*id).to_owned())));
        }
        holders
    }

    #[test]
    fn each_member_takes_its_share_and_gives_up_no_more_than_the_surplus() {
        let all = "abcdefg";
        /// Members, holders, me, what I take, what I give up.
        type Case<'c> = (&'c [(&'c str, &'c str)], &'c [(&'c str, &'c str)], &'c str, &'c str, &'c str);
        let cases: &[Case<'_>] = &[
            (&[("1", all)], &[], "1", all, ""),
            (&[("1", all)], &[("1", all)], "1", "", ""),
            (&[("1", all), ("2", all)], &[], "1", "abcd", ""),
            (&[("1", all), ("2", all)], &[], "2", "efg", ""),
            // A newcomer is given the surplus.
            (&[("1", all), ("2", all)], &[("2", all)], "2", "", "efg"),
            (&[("1", all), ("2", all)], &[("2", all)], "1", "", ""),
            (&[("1", all), ("2", all)], &[("2", "abcd")], "1", "efg", ""),
            // The members that hold most keep the larger share, whatever their names.
            (&[("1", all), ("2", all), ("3", all)], &[("1", "ab"), ("2", "cdef")], "2", "", "f"),
            (&[("1", all), ("2", all), ("3", all)], &[("1", "ab"), ("2", "cdef")], "3", "g", ""),
            // A member is dead, and the two others share what it held.
            (&[("1", all), ("3", all)], &[("1", "ab"), ("3", "cd")], "1", "ef", ""),
            (&[("1", all), ("3", all)], &[("1", "ab"), ("3", "cd")], "3", "g", ""),
            // A holder that is about to leave is no member, and its zones are not free.
            (&[("1", all)], &[("1", "ab"), ("2", "cdefg")], "1", "", ""),
            // What only one member has in its file runs there.
            (&[("1", "abc"), ("2", "bcd")], &[], "1", "ab", ""),
            (&[("1", "abc"), ("2", "bcd")], &[], "2", "cd", ""),
            (&[("1", "ab"), ("2", "cd")], &[], "2", "cd", ""),
            // A zone that has left the file is given up.
            (&[("1", "ab")], &[("1", "abc")], "1", "", "c"),
            (&[("1", "ab"), ("2", "cd")], &[("1", "abc")], "2", "d", ""),
        ];
        for (of, held, me, take, give) in cases {
            let plan = plan(me, &members(of), &holders(held));
            assert_eq!((plan.take, plan.give), (zones(take), zones(give)), "{me} of {of:?} with {held:?}");
        }
        let both = members(&[("1", all), ("2", all)]);
        assert_eq!(plan("1", &both, &holders(&[("2", all)])).missing, 3, "it waits for what the other gives up");
        assert_eq!(plan("1", &both, &holders(&[("2", "abcd")])).missing, 0, "what it needs is free");
    }

    proptest! {
        #[test]
        fn from_any_state_the_zones_are_divided_evenly_and_each_moves_once_at_most(
            count in 1_usize..40, m in 1_usize..6, seed in proptest::collection::vec(0_usize..8, 40)
        ) {
            let zones: BTreeSet<Zone> = (0..count).map(|number| Zone::new(&format!("z{number:02}"))).collect();
            let members: Vec<Member> =
                (0..m).map(|id| Member { id: id.to_string(), zones: zones.clone() }).collect();
            // Whom the seed gives a zone: a member, or nobody.
            let mut holders: BTreeMap<Zone, MemberId> = zones.iter().zip(&seed)
                .filter(|(_, holder)| **holder < m).map(|(zone, holder)| (zone.clone(), holder.to_string())).collect();
            let before = holders.clone();
            let mut given: BTreeSet<Zone> = BTreeSet::new();
            for _ in 0..3 {
                let plans: Vec<(String, Plan)> = members.iter()
                    .map(|member| (member.id.clone(), plan(&member.id, &members, &holders))).collect();
                for (id, plan) in plans {
                    for zone in plan.give {
                        prop_assert_eq!(holders.remove(&zone), Some(id.clone()));
                        prop_assert!(given.insert(zone), "a zone is given twice");
                    }
                    for zone in plan.take {
                        prop_assert_eq!(holders.insert(zone, id.clone()), None, "two members take one zone");
                    }
                }
            }
            prop_assert_eq!(holders.len(), count);
            for member in &members {
                let held = holders.values().filter(|holder| **holder == member.id).count();
                prop_assert!((count / m..=count.div_ceil(m)).contains(&held), "{} of {count} for {m}", held);
            }
            // Only a surplus moves.
            let largest = count.div_ceil(m);
            let surplus: usize = members.iter()
                .map(|member| before.values().filter(|holder| **holder == member.id).count().saturating_sub(count / m))
                .sum();
            let least: usize = members.iter()
                .map(|member| before.values().filter(|holder| **holder == member.id).count().saturating_sub(largest))
                .sum();
            prop_assert!((least..=surplus).contains(&given.len()));
        }
    }
}
