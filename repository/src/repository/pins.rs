//! Pins: what an operation reads, reuses or writes stays, however long it takes.
//!
//! `pins/OPERATION/begun` is written once, `pins/OPERATION/renewed` again and again; their times are the store's own.

use std::collections::BTreeSet;

use ocopea_protocol::{ids::OperationId, names::Digest};
use serde::{Deserialize, Serialize};

use super::Repository;
use crate::{Error, Result, store::Store};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PinObject {
    version: u32,
    operation: OperationId,
    records: BTreeSet<Digest>,
}

/// A pin as collections see it.
#[derive(Clone, Debug)]
pub(crate) struct Pin {
    pub(crate) operation: String,
    /// Absent when the pin is damaged: then it may name anything.
    pub(crate) records: Option<BTreeSet<Digest>>,
    /// By the store's clock.
    pub(crate) begun: i64,
    pub(crate) renewed: i64,
}

fn begun_name(operation: OperationId) -> String {
    format!("pins/{operation}/begun")
}

fn renewed_name(operation: OperationId) -> String {
    format!("pins/{operation}/renewed")
}

impl Repository {
    /// Keeps collections from deleting what an operation reads, reuses or writes. Before its first task; again with
    /// more records whenever it needs more.
    pub async fn pin(&self, operation: OperationId, records: &[Digest]) -> Result<()> {
        let object = PinObject { version: 1, operation, records: records.iter().copied().collect() };
        self.store().create_small(&begun_name(operation), &object).await?;
        self.pin_more(operation, records).await
    }

    async fn pin_more(&self, operation: OperationId, records: &[Digest]) -> Result<()> {
        let store = self.store();
        let mut object = PinObject { version: 1, operation, records: records.iter().copied().collect() };
        for name in [begun_name(operation), renewed_name(operation)] {
            match store.get_small::<PinObject>(&name).await {
                Ok(old) => object.records.extend(old.records),
                Err(Error::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        store.replace_small(&renewed_name(operation), &object).await
    }

    /// Keeps a pin alive; to be called every few minutes. Where there is none, none is made.
    pub async fn renew(&self, operation: OperationId) -> Result<()> {
        let store = self.store();
        if store.backend.head(&begun_name(operation)).await?.is_none() {
            return Ok(());
        }
        self.pin_more(operation, &[]).await?;
        // It may have been ended meanwhile: then nobody would end what was written here.
        if store.backend.head(&begun_name(operation)).await?.is_none() {
            store.forget(&renewed_name(operation)).await?;
        }
        Ok(())
    }

    /// Ends a pin; harmless where there is none. What says that it is there goes first: see [`Self::renew`]. Where it
    /// can't be removed, it counts until it has not been renewed for long enough.
    pub async fn unpin(&self, operation: OperationId) -> Result<()> {
        self.store().forget(&begun_name(operation)).await?;
        self.store().forget(&renewed_name(operation)).await.map(drop)
    }

    /// Operations that have pins.
    pub async fn pins(&self) -> Result<Vec<OperationId>> {
        let pins = read_all(self.store()).await?;
        Ok(pins.iter().filter_map(|pin| pin.operation.parse().ok()).collect())
    }
}

/// Every pin there is.
pub(crate) async fn read_all(store: &Store) -> Result<Vec<Pin>> {
    let mut pins: Vec<Pin> = Vec::new();
    for entry in store.backend.list("pins/").await? {
        let Some(operation) = entry.name.split('/').nth(1).map(str::to_owned) else { continue };
        let records = match store.get_small::<PinObject>(&entry.name).await {
            Ok(object) => Some(object.records),
            Err(Error::Missing { .. }) => continue,
            Err(Error::Damaged { .. } | Error::Newer { .. }) => None,
            Err(error) => return Err(error),
        };
        match pins.iter_mut().find(|pin| pin.operation == operation) {
            Some(pin) => {
                pin.begun = pin.begun.min(entry.modified);
                pin.renewed = pin.renewed.max(entry.modified);
                pin.records = pin.records.take().zip(records).map(|(mut all, more)| {
                    all.extend(more);
                    all
                });
            }
            None => pins.push(Pin { operation, records, begun: entry.modified, renewed: entry.modified }),
        }
    }
    Ok(pins)
}

/// The objects of a pin.
pub(crate) fn pin_objects(pin: &Pin) -> [String; 2] {
    [format!("pins/{}/renewed", pin.operation), format!("pins/{}/begun", pin.operation)]
}
