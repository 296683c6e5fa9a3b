//! Applications that do what a programme says, and remember what they were told.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, Result, WriteFailure};
use mongodb::options::ReturnDocument;
use mongodb::{Client, ClientSession, Collection};

use super::log::{Outcome, Reach, Written};
use super::programme::{Change, Planned, Target, id};
use crate::support::site::HUB;

/// The writes of all applications.
pub type Log = Arc<Mutex<Vec<Written>>>;

/// The application of one site.
pub struct Application {
    pub site: &'static str,
    pub client: Client,
    pub collection: Collection<Document>,
    pub log: Log,
    /// The beginning of the programme.
    pub begun: Instant,
}

impl Application {
    /// Makes the changes of a phase, one after the other.
    pub async fn run(self, phase: usize, planned: Vec<Planned>) {
        let began = Instant::now();
        let mut session = self.client.start_session().await.unwrap();
        for (order, planned) in planned.iter().enumerate() {
            tokio::time::sleep_until((began + Duration::from_millis(planned.at)).into()).await;
            if planned.in_transaction {
                self.together(&mut session, phase, order, planned).await;
                continue;
            }
            for &(document, change, value) in &planned.changes {
                match self.change(&mut session, document, change, value).await {
                    Ok(Some(written)) => self.remember(phase, order, [written], Outcome::Written),
                    Ok(None) => {}
                    Err((_, error)) if is_refusal(&error) => {}
                    Err((Some(attempt), _)) => self.remember(phase, order, [*attempt], Outcome::Unknown),
                    Err((None, _)) => {}
                }
            }
        }
    }

    /// Makes changes in one transaction. After an error before the commit, nothing has happened.
    async fn together(&self, session: &mut ClientSession, phase: usize, order: usize, planned: &Planned) {
        if session.start_transaction().await.is_err() {
            return;
        }
        let mut written = Vec::new();
        for &(document, change, value) in &planned.changes {
            match self.change(session, document, change, value).await {
                Ok(one) => written.extend(one),
                Err(_) => {
                    drop(session.abort_transaction().await);
                    return;
                }
            }
        }
        let outcome = match session.commit_transaction().await {
            Ok(()) => Outcome::Written,
            Err(_) => Outcome::Unknown,
        };
        self.remember(phase, order, written, outcome);
    }

    fn remember(&self, phase: usize, order: usize, written: impl IntoIterator<Item = Written>, outcome: Outcome) {
        let at = self.begun.elapsed().as_millis();
        let mut log = self.log.lock().unwrap();
        // Several changes of one plan keep their order.
        let order =
            order * 10 + log.iter().filter(|other| other.site == self.site && other.order / 10 == order).count();
        for (number, written) in written.into_iter().enumerate() {
            log.push(Written { phase, order: order + number, at, outcome, ..written });
        }
    }

    /// Makes a change. `None`: there was no such document. An error comes with the write that may have happened.
    async fn change(
        &self,
        session: &mut ClientSession,
        document: u8,
        change: Change,
        number: u32,
    ) -> std::result::Result<Option<Written>, (Option<Box<Written>>, Error)> {
        let (id, value) = (id(document), format!("v{number}"));
        let written = |reach, lineage: &str, zone: Option<&str>, before: Option<Document>| Written {
            phase: 0,
            order: 0,
            at: 0,
            site: self.site,
            document: id.clone(),
            value: (!matches!(change, Change::Delete)).then(|| value.clone()),
            reach,
            lineage: lineage.to_owned(),
            zone: zone.map(str::to_owned),
            before,
            outcome: Outcome::Written,
            travels_whole: matches!(
                change,
                Change::SetNested(_) | Change::Push | Change::Pipeline | Change::Unset | Change::Stamp
            ),
            change: change.to_string(),
        };
        let unsent = |error| (None, error);
        if let Change::Insert(zone) = change {
            let mut new = doc! { "_id": &id };
            if let Some(zone) = zone {
                new.insert("_pk", zone);
            }
            new.extend(doc! { "l": &value, "w": &value, "n": { "k": 0 }, "list": [] });
            let written = written(Reach::New, &value, zone, None);
            let inserted = self.collection.insert_one(new).session(session).await;
            return inserted.map(|_| Some(written.clone())).map_err(|error| (Some(Box::new(written)), error));
        }
        // What the application sees before it decides: the write holds only for this version's insert and zone.
        let Some(seen) = self.collection.find_one(self.filter(&id)).session(&mut *session).await.map_err(unsent)?
        else {
            return Ok(None);
        };
        let lineage = seen.get_str("l").unwrap().to_owned();
        let seen_zone = seen.get_str("_pk").ok().map(str::to_owned);
        let pk = seen_zone.as_deref().map_or(Bson::Null, Bson::from);
        let filter = doc! { "_id": &id, "l": &lineage, "_pk": pk };
        let (reach, zone, action) = match change {
            Change::Replace(target) => {
                let zone = match target {
                    Target::Same => seen_zone.as_deref(),
                    Target::Zone(zone) => Some(zone),
                    Target::None => None,
                };
                let mut new = doc! { "_id": &id };
                if let Some(zone) = zone {
                    new.insert("_pk", zone);
                }
                new.extend(doc! { "l": &lineage, "w": &value, "n": { "k": 1 }, "list": [] });
                (Reach::Whole, zone.map(str::to_owned), Action::Replace(new))
            }
            Change::Set(field) => (Reach::Field(field), seen_zone, Action::Update(doc! { "$set": { field: &value } })),
            Change::SetNested(field) => {
                (Reach::Field(field), seen_zone, Action::Update(doc! { "$set": { field: &value } }))
            }
            Change::Pipeline => {
                let merged = doc! { "$mergeObjects": [{ "_id": "$_id", "p": &value }, "$$ROOT", { "p": &value }] };
                (Reach::Field("p"), seen_zone, Action::Pipeline(vec![doc! { "$replaceWith": merged }]))
            }
            Change::Push => (Reach::Field("list"), seen_zone, Action::Update(doc! { "$push": { "list": &value } })),
            Change::Move(zone) => {
                let set = doc! { "$set": { "_pk": zone, "m": &value } };
                (Reach::Field("m"), Some(zone.to_owned()), Action::Update(set))
            }
            Change::Unset => {
                let set = doc! { "$set": { "m": &value }, "$unset": { "_pk": "" } };
                (Reach::Field("m"), None, Action::Update(set))
            }
            Change::Stamp if seen_zone.is_some() => return Ok(None),
            Change::Stamp => {
                let zone = if self.site == HUB { "yard" } else { self.site };
                let set = doc! { "$set": { "_pk": zone, "m": &value } };
                (Reach::Field("m"), Some(zone.to_owned()), Action::Update(set))
            }
            Change::Claim(key) => {
                (Reach::Field("c"), seen_zone, Action::Update(doc! { "$set": { "u": key, "c": &value } }))
            }
            Change::Delete => (Reach::Whole, seen_zone, Action::Delete),
            Change::Insert(_) => unreachable!("done above"),
        };
        let (collection, before) = (&self.collection, ReturnDocument::Before);
        let done = match action {
            Action::Replace(new) => {
                collection.find_one_and_replace(filter, new).return_document(before).session(session).await
            }
            Action::Update(update) => {
                collection.find_one_and_update(filter, update).return_document(before).session(session).await
            }
            Action::Pipeline(stages) => {
                collection.find_one_and_update(filter, stages).return_document(before).session(session).await
            }
            Action::Delete => collection.find_one_and_delete(filter).session(session).await,
        };
        match done {
            Ok(None) => Ok(None),
            Ok(Some(former)) => Ok(Some(written(reach, &lineage, zone.as_deref(), Some(former)))),
            Err(error) => Err((Some(Box::new(written(reach, &lineage, zone.as_deref(), Some(seen)))), error)),
        }
    }

    /// Applications of a spoke change only documents of the spoke's zone, and documents without a zone.
    fn filter(&self, id: &str) -> Document {
        match self.site {
            HUB => doc! { "_id": id },
            own => doc! { "_id": id, "_pk": { "$in": [own, null] } },
        }
    }
}

enum Action {
    Replace(Document),
    Update(Document),
    Pipeline(Vec<Document>),
    Delete,
}

/// The server has refused the write, so the write has not happened.
fn is_refusal(error: &Error) -> bool {
    const DUPLICATE_KEY: i32 = 11000;
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        ErrorKind::Command(error) => error.code == DUPLICATE_KEY,
        _ => false,
    }
}

/// The servers with a unique index.
pub const UNIQUE_AT: [&str; 2] = [HUB, "HOU"];

/// Creates a unique index over documents that have the field.
pub async fn unique(collection: &Collection<Document>) -> Result<()> {
    let options = mongodb::options::IndexOptions::builder()
        .unique(true)
        .partial_filter_expression(doc! { "u": { "$exists": true } })
        .build();
    let index = mongodb::IndexModel::builder().keys(doc! { "u": 1 }).options(options).build();
    collection.create_index(index).await.map(drop)
}
