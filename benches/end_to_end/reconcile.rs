//! Comparing everything that a spoke holds, and bringing the hundredth that differs, against reading both sides once.

use std::time::Instant;

use anyhow::{Result, ensure};
use bson::{Document, doc};

use super::application::Load;
use super::check;
use super::figures::{Figure, median};
use super::site::Site;
use super::verify::{Order, read_both};

/// How often it is measured; the first round, which only warms up, is not counted here.
const ROUNDS: i32 = 2;

/// One document of so many differs.
const OF: i32 = 100;

/// From the request until both links have compared everything, against reading both sides once, in turn.
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

/// Changes documents at the hub behind the program's back: in a session that it takes for its own.
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
    ensure!(changed.modified_count == expected, "{} and not {expected} documents differ", changed.modified_count);
    Ok(())
}
