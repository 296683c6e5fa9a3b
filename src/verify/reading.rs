//! Reads both sides of a zone ahead of the comparison, to keep both servers busy.

use bson::raw::RawBson;
use tokio::sync::mpsc;

use crate::mongo::error::Error;
use crate::mongo::scan::PageSize;
use crate::mongo::walk::{self, Ahead, End, Followed};

/// A page of the follow side. The first page in the range of a lead page comes with the lead page.
pub(super) struct Pages {
    pub(super) lead: Option<Ahead>,
    pub(super) followed: Followed,
}

/// Reads everything after the `_id` `after`, or until the receiver is dropped.
pub(super) async fn read(
    lead: End<'_>,
    follow: End<'_>,
    after: Option<RawBson>,
    pages: mpsc::Sender<Pages>,
) -> Result<(), Error> {
    let (sender, leads) = mpsc::channel(1);
    let leading = read_lead(lead, after.clone(), sender);
    let following = read_follow(follow, after, leads, pages);
    futures_util::future::try_join(leading, following).await.map(drop)
}

async fn read_lead(lead: End<'_>, mut after: Option<RawBson>, leads: mpsc::Sender<Ahead>) -> Result<(), Error> {
    let not_before = lead.server.now().await?;
    let mut size = PageSize::default();
    loop {
        let page = walk::read_ahead(lead, size, after.as_ref(), not_before).await?;
        page.teach(&mut size);
        after = page.last().cloned();
        if leads.send(page).await.is_err() || after.is_none() {
            return Ok(());
        }
    }
}

async fn read_follow(
    follow: End<'_>,
    mut after: Option<RawBson>,
    mut leads: mpsc::Receiver<Ahead>,
    pages: mpsc::Sender<Pages>,
) -> Result<(), Error> {
    let not_before = follow.server.now().await?;
    let mut size = PageSize::default();
    while let Some(lead) = leads.recv().await {
        let last = lead.last().cloned();
        let mut lead = Some(lead);
        loop {
            let followed = walk::read_followed(follow, size, after.as_ref(), last.as_ref(), not_before).await?;
            followed.teach(&mut size);
            after = followed.next().cloned();
            if pages.send(Pages { lead: lead.take(), followed }).await.is_err() {
                return Ok(());
            }
            if after.is_none() {
                break;
            }
        }
        after = last;
    }
    Ok(())
}
