//! A hub and its spokes, each a server of its own, with the program between them; and the ways that changes take there.
//!
//! | zone | written at | watched by |
//! |---|---|---|
//! | `S1` | its owner, the hub | nobody |
//! | `S2` | its owner | all other spokes |
//! | [`SHARED`] | the hub; no spoke owns it | all spokes |

use std::time::Duration;

use anyhow::{Context, Result};
use testbed::node::Options;
use testbed::proxy::{Bytes, Proxy, Wire};

use super::place::Place;
use super::running::{Awaited, Running, Spoke};
use super::usage::Usage;

/// A zone that no spoke owns, and all watch.
pub const SHARED: &str = "SHARED";

/// How often the driver measures the round trip over a wire: as often as it can.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Which servers the program reaches by wires that can be made slow, and count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wires {
    /// None.
    None,
    /// The spokes.
    Spokes,
    /// The spokes and the hub.
    All,
}

/// A hub, its spokes, and the program between them.
pub struct Site {
    /// The hub.
    pub hub: Place,
    /// The spokes, by number: the first is `S1`.
    pub spokes: Vec<Place>,
    hub_wire: Option<Proxy>,
    spoke_wires: Vec<Proxy>,
    running: Option<Running>,
}

/// A way that changes take: from the server where an application writes to all those that they go to.
pub struct Route<'s> {
    /// For people.
    pub name: String,
    /// The zone that is written.
    pub zone: &'s str,
    /// Where an application writes.
    pub source: &'s Place,
    /// Where the changes arrive.
    pub destinations: Vec<&'s Place>,
}

impl Route<'_> {
    /// The destination that the changes come to last.
    pub fn last(&self) -> Result<&Place> {
        self.destinations.last().copied().context("a route has a destination")
    }

    /// CPU time that all servers on it have used so far.
    pub fn cpu(&self) -> Result<Duration> {
        let places = std::iter::once(&self.source).chain(&self.destinations);
        places.map(|place| Ok(Usage::of(place.process()?)?.cpu)).sum()
    }
}

impl Site {
    /// Starts everything, with so many spokes.
    pub async fn start(spokes: usize, wires: Wires) -> Result<Self> {
        let mut site = Self::prepare(spokes, wires).await?;
        site.start_program().await?;
        Ok(site)
    }

    /// Starts the servers only.
    pub async fn prepare(spokes: usize, wires: Wires) -> Result<Self> {
        let starting = (1..=spokes).map(async |number| Place::start(&format!("S{number}"), Options::default()).await);
        let starting = futures_util::future::try_join_all(starting);
        let (hub, spokes) = tokio::try_join!(Place::start("hub", Options::default()), starting)?;
        let hub_wire = if wires == Wires::All { Some(Proxy::to(hub.port()).await?) } else { None };
        let mut spoke_wires = Vec::new();
        if wires != Wires::None {
            for spoke in &spokes {
                spoke_wires.push(Proxy::to(spoke.port()).await?);
            }
        }
        Ok(Self { hub, spokes, hub_wire, spoke_wires, running: None })
    }

    /// Starts the program, and waits until every spoke streams both ways.
    pub async fn start_program(&mut self) -> Result<()> {
        let hub = self.hub_wire.as_ref().map_or_else(|| self.hub.uri(), Proxy::uri);
        let spokes: Vec<Spoke> = (0..self.spokes.len()).map(|number| self.describe(number)).collect();
        self.running = Some(Running::start(&hub, &spokes).await?);
        Ok(())
    }

    /// Ends the program, if it runs.
    pub async fn stop_program(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }

    fn describe(&self, number: usize) -> Spoke {
        let place = &self.spokes[number];
        let mut watch = vec![SHARED.to_owned()];
        if self.spokes.len() > 1 && number != 1 {
            watch.push("S2".to_owned());
        }
        let by_wire = |wire: &Proxy| format!("{}&heartbeatFrequencyMS={}", wire.uri(), HEARTBEAT.as_millis());
        let uri = self.spoke_wires.get(number).map_or_else(|| place.uri(), by_wire);
        Spoke { zone: place.name.clone(), uri, watch }
    }

    /// The program.
    pub fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the program does not run")
    }

    /// What the program has used so far.
    pub fn usage(&self) -> Result<Usage> {
        self.running()?.usage()
    }

    /// CPU time that the program has used so far.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(self.usage()?.cpu)
    }

    /// From a spoke to the hub.
    pub fn uplink(&self) -> Route<'_> {
        let source = &self.spokes[0];
        Route { name: "spoke → hub".to_owned(), zone: &source.name, source, destinations: vec![&self.hub] }
    }

    /// From the hub to the one spoke that owns the zone.
    pub fn downlink(&self) -> Route<'_> {
        let spoke = &self.spokes[0];
        Route { name: "hub → spoke".to_owned(), zone: &spoke.name, source: &self.hub, destinations: vec![spoke] }
    }

    /// From the hub to all spokes.
    pub fn fan_out(&self) -> Route<'_> {
        let name = format!("hub → {} {}", self.spokes.len(), if self.spokes.len() == 1 { "spoke" } else { "spokes" });
        Route { name, zone: SHARED, source: &self.hub, destinations: self.spokes.iter().collect() }
    }

    /// From a spoke by the hub to all others.
    pub fn onward(&self) -> Route<'_> {
        let source = &self.spokes[1];
        let others = self.spokes.iter().filter(|place| place.name != source.name);
        let destinations: Vec<&Place> = std::iter::once(&self.hub).chain(others).collect();
        let name = format!("spoke → hub → {} spokes", destinations.len() - 1);
        Route { name, zone: &source.name, source, destinations }
    }

    /// Waits until all that the source holds now is at every destination.
    pub async fn settle(&self, route: &Route<'_>) -> Result<()> {
        let running = self.running()?;
        if route.source.name != self.hub.name {
            let time = route.source.time().await?;
            running.wait_for(&[Awaited { zone: &route.source.name, link: "uplink", time }]).await?;
        }
        let time = self.hub.time().await?;
        let downlinks = route.destinations.iter().filter(|place| place.name != self.hub.name);
        let awaited = downlinks.map(|place| Awaited { zone: &place.name, link: "downlink", time });
        running.wait_for(&awaited.collect::<Vec<_>>()).await
    }

    /// From now on the wires to the spokes do this. Returns when the program has measured how long they are.
    pub async fn set_wires(&self, wire: Wire) {
        self.spoke_wires.iter().for_each(|proxy| proxy.set(wire));
        // The first measurement may have begun before, and the second one counts only with another.
        tokio::time::sleep(4 * HEARTBEAT).await;
    }

    /// What the wires to the hub and to the first spoke have carried.
    pub fn wire_bytes(&self) -> Result<(Bytes, Bytes)> {
        let hub = self.hub_wire.as_ref().context("no wire to the hub")?;
        let spoke = self.spoke_wires.first().context("no wire to the spoke")?;
        Ok((hub.bytes(), spoke.bytes()))
    }
}
