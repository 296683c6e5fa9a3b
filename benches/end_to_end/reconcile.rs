//! A reconcile of all documents of a spoke, of which 1 % differ, compared with one read of both sides.

use std::time::Instant;

use anyhow::{Result, ensure};
use bson::{Document, doc};

use super::application::Load;
use super::check;
use super::figures::{Figure, median};
use super::site::Site;
use super::verify::{Order, read_both};

/// Counted rounds, after one round for warm-up.
const ROUNDS: i32 = 2;

/// One document in `OF` differs.
const OF: i32 = 100;

/// Measures from the request until both links have compared all documents. The floor, measured in turn, reads both
/// sides once.
pub async fn measure(site: &Site, load: &Load) -> Result<Vec<Figure>> {
    let route = site.uplink();
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let floor = read_both(site, Order::None).await?.taken;
        differ(site, load, round).await?;
        let begun = Instant::now();
        site.running()?.resync(route.zone).await?;
        let taken = begun.elapsed();
        check::same(&route, &load.filter(), load.documents).await?;
        if round > 0 {
            ratios.push(taken.as_secs_f64() / floor.as_secs_f64());
            rates.push(load.documents as f64 / taken.as_secs_f64());
        }
    }
    let name = format!("reconcile of {} documents of {}, 1 % differ", load.documents, load.size());
    Ok(vec![
        Figure::plain(&name, "times reading both sides once", median(&mut ratios)),
        Figure::plain(&name, "documents/s", median(&mut rates)),
    ])
}

/// Changes documents at the hub in a session registered as the program's own, so the program ignores the changes.
async fn differ(site: &Site, load: &Load, round: i32) -> Result<()> {
    let mut session = site.hub.client().start_session().await?;
    let known = doc! { "link": "repair:bench", "zone": "bench" };
    let id = doc! { "_id": session.id().get("id").cloned() };
    site.hub.metadata().collection::<Document>("sessions").update_one(id, doc! { "$set": known }).upsert(true).await?;
    session.start_transaction().await?;
    let filter = doc! { "$and": [load.filter(), { "_id": { "$mod": [OF, round] } }] };
    let set = doc! { "$set": { "n": -1 - round } };
    let changed = site.hub.messages().update_many(filter, set).session(&mut session).await?;
    session.commit_transaction().await?;
    let expected = load.documents as u64 / u64::from(OF.unsigned_abs());
    ensure!(changed.modified_count == expected, "{} documents differ instead of {expected}", changed.modified_count);
    Ok(())
}
