//! A hub and its spokes, each a separate server, with the program between them, and the routes of changes.
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

/// A zone that all spokes watch and no spoke owns.
pub const SHARED: &str = "SHARED";

/// Time between the driver's measurements of the round trip: the shortest that the driver accepts.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The servers that the program reaches over wires, which can be slow and count bytes.
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
    pub hub: Place,
    /// The spokes in order: the first is `S1`.
    pub spokes: Vec<Place>,
    hub_wire: Option<Proxy>,
    spoke_wires: Vec<Proxy>,
    running: Option<Running>,
}

/// A route of changes: from the server where an application writes to all destinations.
pub struct Route<'s> {
    /// The route's name in the figures.
    pub name: String,
    /// The zone of the written documents.
    pub zone: &'s str,
    /// The server where an application writes.
    pub source: &'s Place,
    /// The servers where the changes arrive.
    pub destinations: Vec<&'s Place>,
}

impl Route<'_> {
    /// The destination that changes reach last.
    pub fn last(&self) -> Result<&Place> {
        self.destinations.last().copied().context("the route has no destination")
    }

    /// CPU time of all servers on the route so far.
    pub fn cpu(&self) -> Result<Duration> {
        let places = std::iter::once(&self.source).chain(&self.destinations);
        places.map(|place| Ok(Usage::of(place.process()?)?.cpu)).sum()
    }
}

impl Site {
    /// Starts the servers, with this number of spokes, and the program.
    pub async fn start(spokes: usize, wires: Wires) -> Result<Self> {
        let mut site = Self::prepare(spokes, wires).await?;
        site.start_program().await?;
        Ok(site)
    }

    /// Starts the servers only.
    pub async fn prepare(spokes: usize, wires: Wires) -> Result<Self> {
        Self::prepare_with(spokes, wires, &Options::default()).await
    }

    /// Starts the servers only, the spokes with these options.
    pub async fn prepare_with(spokes: usize, wires: Wires, options: &Options) -> Result<Self> {
        let starting = (1..=spokes).map(async |number| Place::start(&format!("S{number}"), options.clone()).await);
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

    /// Stops the program if the program runs.
    pub async fn stop_program(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }

    /// Stops the program and drops its metadata, so that the next start is a first start.
    pub async fn forget(&mut self) -> Result<()> {
        self.stop_program().await?;
        for place in std::iter::once(&self.hub).chain(&self.spokes) {
            place.metadata().drop().await?;
        }
        Ok(())
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

    pub fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the program is not running")
    }

    /// CPU time and memory of the program so far.
    pub fn usage(&self) -> Result<Usage> {
        self.running()?.usage()
    }

    /// CPU time of the program so far.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(self.usage()?.cpu)
    }

    /// The route from a spoke to the hub.
    pub fn uplink(&self) -> Route<'_> {
        let source = &self.spokes[0];
        Route { name: "spoke → hub".to_owned(), zone: &source.name, source, destinations: vec![&self.hub] }
    }

    /// The route from the hub to the spoke that owns the zone.
    pub fn downlink(&self) -> Route<'_> {
        let spoke = &self.spokes[0];
        Route { name: "hub → spoke".to_owned(), zone: &spoke.name, source: &self.hub, destinations: vec![spoke] }
    }

    /// The route from the hub to all spokes.
    pub fn fan_out(&self) -> Route<'_> {
        let name = format!("hub → {} {}", self.spokes.len(), if self.spokes.len() == 1 { "spoke" } else { "spokes" });
        Route { name, zone: SHARED, source: &self.hub, destinations: self.spokes.iter().collect() }
    }

    /// The route from a spoke through the hub to all other spokes.
    pub fn onward(&self) -> Route<'_> {
        let source = &self.spokes[1];
        let others = self.spokes.iter().filter(|place| place.name != source.name);
        let destinations: Vec<&Place> = std::iter::once(&self.hub).chain(others).collect();
        let name = format!("spoke → hub → {} spokes", destinations.len() - 1);
        Route { name, zone: &source.name, source, destinations }
    }

    /// Waits until every destination has all documents that the source holds now.
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

    /// Sets the wires to the spokes, and returns once the driver has measured the new round trip.
    pub async fn set_wires(&self, wire: Wire) {
        self.spoke_wires.iter().for_each(|proxy| proxy.set(wire));
        // A measurement under way still sees the old wires, and the shorter of the two newest measurements counts.
        tokio::time::sleep(4 * HEARTBEAT).await;
    }

    /// Bytes carried by the wires to the hub and to the first spoke.
    pub fn wire_bytes(&self) -> Result<(Bytes, Bytes)> {
        let hub = self.hub_wire.as_ref().context("no wire to the hub")?;
        let spoke = self.spoke_wires.first().context("no wire to the spoke")?;
        Ok((hub.bytes(), spoke.bytes()))
    }
}
