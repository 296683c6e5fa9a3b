//! Which collections a link stands between. One that was dropped and made again, or that another was renamed onto, is another
//! collection: its change stream does not tell what it lost or brought.
//!
//! A drop or a rename is never carried over. The link copies such a collection again as if it had never been, which deletes
//! nothing: the owner's documents win, and what only the hub has comes down. So what was dropped at one side is brought back from
//! the other.

use crate::link::Spoke;
use crate::link::apply::Applier;
use crate::link::apply::work::{Mark, Side};
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::Identity;
use crate::mongo::server::Server;
use crate::rules::names::{Direction, Namespace};

/// Looks whether the collections at both ends are still those that the link knows, and forgets what it copied of others. True
/// if there are any.
///
/// # Errors
/// If a server does not answer.
pub(super) async fn look(
    applier: &mut Applier,
    side: &mut impl Side,
    source: &Server,
    spoke: &Spoke,
    direction: Direction,
) -> Result<bool, Error> {
    let checkpoint = applier.checkpoint();
    let lost = spoke.links.lost_collections(direction);
    let mut replaced: Vec<String> = lost
        .iter()
        .filter_map(|number| source.namespaces().get(usize::from(*number)))
        .map(ToString::to_string)
        .collect();
    replaced.extend(others(source, &checkpoint.collections).await?);
    replaced.extend(others(applier.server(), &checkpoint.destination_collections).await?);
    if replaced.is_empty() {
        spoke.links.has_looked(direction, &lost);
        return Ok(false);
    }
    replaced.sort();
    replaced.dedup();
    tracing::warn!(
        ns = replaced.join(", "),
        "the collection is another one than before: copying it again, deleting nothing"
    );
    // The other link must not take what it finds missing for deleted before it knows.
    spoke.links.must_look(direction.opposite());
    applier.save(side, Mark::Replaced(replaced)).await?;
    spoke.links.has_looked(direction, &lost);
    Ok(true)
}

/// Saves which collections there are, where that is not known yet.
///
/// # Errors
/// If a server fails.
pub(super) async fn learn(applier: &mut Applier, side: &mut impl Side, source: &Server) -> Result<(), Error> {
    let checkpoint = applier.checkpoint();
    let here = applier.server().clone();
    let at_source = learnt(source, &checkpoint.collections).await?;
    let at_destination = learnt(&here, &checkpoint.destination_collections).await?;
    if at_source.is_some() || at_destination.is_some() {
        let checkpoint = applier.checkpoint();
        let at_source = at_source.unwrap_or_else(|| checkpoint.collections.clone());
        let at_destination = at_destination.unwrap_or_else(|| checkpoint.destination_collections.clone());
        applier.set_collections(at_source, at_destination);
        applier.save(side, Mark::Unmoved).await?;
    }
    Ok(())
}

/// True if the source's collection is known, and still the same.
///
/// # Errors
/// If the server does not answer.
pub(super) async fn is_the_same(applier: &Applier, source: &Server, namespace: u16) -> Result<bool, Error> {
    let name = source.namespaces()[usize::from(namespace)].to_string();
    let known = applier.checkpoint().collections.iter().find(|known| known.namespace == name).cloned();
    let Some(known) = known else { return Ok(false) };
    Ok(others(source, std::slice::from_ref(&known)).await?.is_empty())
}

/// The namespaces whose collection is not the one that is known.
async fn others(server: &Server, known: &[Identity]) -> Result<Vec<String>, Error> {
    let Some(present) = server.collections().await? else { return Ok(Vec::new()) };
    let is_other = |(namespace, uuid): (&Namespace, Option<[u8; 16]>)| {
        let name = namespace.to_string();
        let known = known.iter().find(|known| known.namespace == name)?;
        (Some(known.uuid) != uuid).then_some(name)
    };
    Ok(server.namespaces().iter().zip(present).filter_map(is_other).collect())
}

/// What is known now, if that is more than before.
async fn learnt(server: &Server, known: &[Identity]) -> Result<Option<Vec<Identity>>, Error> {
    let is_unknown = |name: &String| known.iter().all(|known| known.namespace != *name);
    if !server.namespaces().iter().any(|namespace| is_unknown(&namespace.to_string())) {
        return Ok(None);
    }
    let Some(present) = server.collections().await? else { return Ok(None) };
    let named = server.namespaces().iter().map(ToString::to_string).zip(present);
    let new = named.filter(|(name, _)| is_unknown(name));
    let new: Vec<Identity> = new.filter_map(|(namespace, uuid)| Some(Identity { namespace, uuid: uuid? })).collect();
    Ok((!new.is_empty()).then(|| known.iter().cloned().chain(new).collect()))
}
