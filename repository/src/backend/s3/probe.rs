//! What a service really can, found out with objects of one's own below `probe/`, which are removed again.
//!
//! Services differ, gateways in front of them more so, and some answer 200 to what they don't know. So nothing is
//! concluded from names or versions: a second create has to be refused, a wrong checksum too, and what was written must
//! be read, listed and gone as it should be.

use base64::Engine;
use bytes::Bytes;
use http::Method;
use object_store::aws::Checksum;

use super::{
    calls::{Calls, Failed},
    fault::Fault,
};
use crate::{
    backend::{Deletion, Put, StoreAbilities},
    error::{Result, Trouble},
};

/// Where the probe's objects lie.
pub(crate) const PROBE: &str = "probe/";
const FIRST: &[u8] = b"ocopea looks what this store can: first";
const SECOND: &[u8] = b"ocopea looks what this store can: another";

/// The header of a checksum, its name for people, and a wrong value.
fn checksum_header(checksum: Checksum) -> (&'static str, &'static str, String) {
    let wrong = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    match checksum {
        Checksum::SHA256 => ("x-amz-checksum-sha256", "SHA-256", wrong(&[1; 32])),
        _ => ("x-amz-checksum-crc64nvme", "CRC-64/NVME", wrong(&[1; 8])),
    }
}

/// Looks what the store can. `calls` sends no checksum; those that come back send one that is checked.
pub(crate) async fn probe(calls: &Calls) -> Result<(Calls, StoreAbilities)> {
    let place = format!("{PROBE}{}", calls.common.seams.uuid().simple());
    let object = format!("{place}/a");
    let probed = probe_at(calls, &place, &object).await;
    if probed.is_err() {
        // As far as it goes; the error is of more interest.
        let _ = calls.delete(&object).await;
    }
    probed
}

async fn probe_at(calls: &Calls, place: &str, object: &str) -> Result<(Calls, StoreAbilities)> {
    let (calls, checksum) = checked(calls, place).await?;
    let at = |action: &'static str| {
        let calls = calls.clone();
        move |failed: Failed| calls.failed(action, object, failed)
    };
    let wrong = |action: &'static str, why: &str| {
        let failed = Failed { fault: Fault::Trouble(Trouble::Answer, why.to_owned()), tries: 1 };
        calls.failed(action, object, failed)
    };
    let first = Bytes::from_static(FIRST);
    let conditional_writes = match calls.create(object, &first).await {
        Ok(Put::Created) => match calls.create(object, &Bytes::from_static(SECOND)).await {
            Ok(Put::Existed) => true,
            Ok(Put::Created) => false,
            Err(Failed { fault: Fault::Unsupported(_), .. }) => false,
            Err(failed) => return Err(at("write")(failed)),
        },
        Ok(Put::Existed) => return Err(wrong("write", "it says that an object exists that nobody made")),
        Err(Failed { fault: Fault::Unsupported(_), .. }) => {
            calls.put(object, first.clone().into()).await.map_err(at("write"))?;
            false
        }
        Err(failed) => return Err(at("write")(failed)),
    };
    // What the second try may have written is written over: from here on it is known what should be there.
    if !conditional_writes {
        calls.put(object, first.clone().into()).await.map_err(at("write"))?;
    }
    match calls.get(object, 1000).await.map_err(at("read"))? {
        Ok(read) if read == first => {}
        _ => return Err(wrong("read", "what was just written is read otherwise")),
    }
    if calls.range(object, 7, 5).await.map_err(at("read"))? != FIRST.get(7..12).unwrap_or_default() {
        return Err(wrong("read", "a part of an object is read otherwise"));
    }
    let head = calls.head(object).await.map_err(at("look at"))?;
    if head.is_none_or(|head| head.size != FIRST.len() as u64) {
        return Err(wrong("look at", "what was just written isn't there, or has another size"));
    }
    let listed = calls.list(&format!("{place}/")).await?;
    if !listed.iter().any(|entry| entry.name == object && entry.size == FIRST.len() as u64) {
        return Err(wrong("list", "what was just written isn't listed"));
    }
    let deletion = match calls.delete(object).await {
        Ok(()) if calls.head(object).await.map_err(at("look at"))?.is_some() => {
            return Err(wrong("delete", "what was deleted is still there"));
        }
        Ok(()) if calls.common.seen.hides.load(std::sync::atomic::Ordering::Relaxed) => Deletion::Hides,
        Ok(()) => Deletion::Frees,
        Err(Failed { fault: Fault::Trouble(Trouble::Rights, why), .. }) => {
            tracing::warn!(why, "these keys may not delete: space never comes back");
            Deletion::Refused
        }
        Err(failed) => return Err(at("delete")(failed)),
    };
    Ok((calls.clone(), StoreAbilities { conditional_writes, deletion, checksum }))
}

/// The fastest checksum that the service checks.
async fn checked(calls: &Calls, place: &str) -> Result<(Calls, Option<String>)> {
    for checksum in [Checksum::CRC64NVME, Checksum::SHA256] {
        let object = format!("{place}/{}", if checksum == Checksum::SHA256 { "sha256" } else { "crc64" });
        let with = calls.with_checksum(Some(checksum))?;
        let sent = with.put(&object, Bytes::from_static(FIRST).into()).await;
        let (header, title, value) = checksum_header(checksum);
        let refused = match sent {
            Ok(()) => {
                let key = calls.common.place.key(&object);
                let body = Bytes::from_static(SECOND);
                let wrong = calls.raw(Method::PUT, Some(&key), "", Some((header, &value)), body).await;
                matches!(wrong, Err(Fault::Checksum(_) | Fault::Trouble(Trouble::Answer, _)))
            }
            Err(Failed {
                fault: Fault::Unsupported(_) | Fault::Checksum(_) | Fault::Trouble(Trouble::Answer, _),
                ..
            }) => false,
            Err(failed) => return Err(calls.failed("write", &object, failed)),
        };
        match calls.delete(&object).await {
            Err(failed) if !matches!(failed.fault, Fault::Trouble(Trouble::Rights, _)) => {
                return Err(calls.failed("delete", &object, failed));
            }
            _ => {}
        }
        if refused {
            return Ok((with, Some(title.to_owned())));
        }
    }
    Ok((calls.clone(), None))
}
