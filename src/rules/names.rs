//! Names used throughout the program: zones, namespaces, links.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A zone: a value of the partition key. Each spoke owns exactly 1 zone and watches any number of others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone(Arc<str>);

impl Zone {
    /// The zone with this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The value of the partition key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Zone {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A synchronized collection, as `database.collection`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    /// Name of the database, without dots.
    pub database: String,
    /// Name of the collection, possibly with dots.
    pub collection: String,
}

/// The names of collections, by database.
pub(crate) fn by_database(namespaces: &[Namespace]) -> BTreeMap<&str, Vec<&str>> {
    let mut databases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for namespace in namespaces {
        databases.entry(&namespace.database).or_default().push(&namespace.collection);
    }
    databases
}

impl Namespace {
    /// Reads `database.collection` by MongoDB's naming restrictions.
    ///
    /// # Errors
    /// Describes the problem with the name, in a sentence for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((database, collection)) = text.split_once('.') else {
            return Err(format!("{text:?} is not a namespace: write database.collection"));
        };
        let forbidden = |c: char| "/\\. \"$*<>:|?\0".contains(c);
        if database.is_empty() || database.len() > 63 || database.contains(forbidden) {
            return Err(format!("{database:?} is not a database name"));
        }
        if collection.is_empty() || collection.contains(['$', '\0']) || text.len() > 255 {
            return Err(format!("{collection:?} is not a collection name"));
        }
        if collection.starts_with("system.") || ["admin", "config", "local"].contains(&database) {
            return Err(format!("{text:?} belongs to the server itself and has no change stream"));
        }
        Ok(Self { database: database.to_owned(), collection: collection.to_owned() })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.collection)
    }
}

/// Direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Spoke to hub.
    Uplink,
    /// Hub to spoke.
    Downlink,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::Uplink, Self::Downlink];

    /// The opposite direction.
    pub fn opposite(self) -> Self {
        match self {
            Self::Uplink => Self::Downlink,
            Self::Downlink => Self::Uplink,
        }
    }

    /// `uplink` or `downlink`, as written in checkpoints, logs and the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Downlink => "downlink",
        }
    }
}

/// A link of a spoke, displayed like the name of its checkpoint: `uplink:DFW`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkName {
    /// Direction of the link.
    pub direction: Direction,
    /// Zone owned by the spoke.
    pub zone: Zone,
}

impl LinkName {
    /// The link from the zone's spoke to the hub.
    pub fn uplink(zone: &Zone) -> Self {
        Self { direction: Direction::Uplink, zone: zone.clone() }
    }

    /// The link from the hub to the zone's spoke.
    pub fn downlink(zone: &Zone) -> Self {
        Self { direction: Direction::Downlink, zone: zone.clone() }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.direction.as_str(), self.zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_may_hold_dots_and_a_database_may_not() {
        let parsed = Namespace::parse("messages.vehicle.raw").expect("valid");
        assert_eq!((parsed.database.as_str(), parsed.collection.as_str()), ("messages", "vehicle.raw"));
        assert_eq!(parsed.to_string(), "messages.vehicle.raw");
    }

    #[test]
    fn a_namespace_without_a_change_stream_is_refused() {
        for bad in ["messages", "", ".a", "a.", "a b.c", "a.$b", "local.oplog.rs", "config.x", "a.system.views"] {
            assert!(Namespace::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
