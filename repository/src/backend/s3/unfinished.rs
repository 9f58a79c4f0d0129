//! Uploads in parts that nobody will finish: found by the service's own list, and ended.

use bytes::Bytes;
use http::Method;
use object_store::multipart::MultipartStore;
use serde::Deserialize;

use super::{
    calls::{Calls, fault},
    fault::Fault,
    upload::TEMPORARY,
};
use crate::error::{Result, Trouble};

/// Pages of unfinished uploads that one collection looks at.
const MOST_PAGES: usize = 100;
/// What uploads in parts may be named.
const PLACES: [&str; 2] = ["blobs/", TEMPORARY];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
    #[serde(default)]
    upload: Vec<Unfinished>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Unfinished {
    key: String,
    upload_id: String,
    initiated: String,
}

fn milliseconds(text: &str) -> Option<i64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    time.unix_timestamp().checked_mul(1000)
}

fn query(prefix: &str, marker: Option<&(String, String)>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("prefix", prefix).append_pair("uploads", "");
    if let Some((key, upload)) = marker {
        query.append_pair("key-marker", key).append_pair("upload-id-marker", upload);
    }
    format!("?{}", query.finish())
}

impl Calls {
    /// Ends uploads that were begun before this time of the store's clock. A store that can't list them keeps them.
    pub(crate) async fn end_unfinished(&self, before: i64) -> Result<()> {
        for place in PLACES {
            match self.unfinished(place).await {
                Ok(found) => {
                    for one in found.iter().filter(|one| milliseconds(&one.initiated).is_some_and(|at| at < before)) {
                        self.end(one).await?;
                    }
                }
                Err(Fault::Unsupported(why) | Fault::Trouble(Trouble::Rights, why)) => {
                    tracing::info!(why, "unfinished uploads can't be listed: set a lifecycle rule that ends them");
                }
                Err(other) => {
                    let failed = super::calls::Failed { fault: other, tries: 1 };
                    return Err(self.failed("tidy", place, failed));
                }
            }
        }
        Ok(())
    }

    async fn unfinished(&self, place: &str) -> Result<Vec<Unfinished>, Fault> {
        let prefix = self.common.place.key(place);
        let (mut all, mut marker) = (Vec::new(), None::<(String, String)>);
        for _ in 0..MOST_PAGES {
            let query = query(&prefix, marker.as_ref());
            let asked = self.tried(|_| self.raw(Method::GET, None, &query, None, Bytes::new()));
            let text = asked.await.map_err(|failed| failed.fault)?;
            let page: Page = quick_xml::de::from_reader(text.as_ref())
                .map_err(|error| Fault::answer(format!("its list of uploads can't be read: {error}")))?;
            all.extend(page.upload);
            match (page.is_truncated, page.next_key_marker, page.next_upload_id_marker) {
                (true, Some(key), Some(upload)) if marker.as_ref() != Some(&(key.clone(), upload.clone())) => {
                    marker = Some((key, upload));
                }
                _ => break,
            }
        }
        Ok(all)
    }

    async fn end(&self, one: &Unfinished) -> Result<()> {
        let path = object_store::path::Path::from(one.key.as_str());
        let ended = self.tried(|_| {
            let path = &path;
            async move {
                match self.store.abort_multipart(path, &one.upload_id).await.map_err(fault) {
                    Err(Fault::NoUpload | Fault::Missing) => Ok(()),
                    other => other,
                }
            }
        });
        match ended.await {
            Ok(()) => Ok(()),
            Err(failed) if matches!(failed.fault, Fault::Trouble(Trouble::Rights, _)) => Ok(()),
            Err(failed) => Err(self.failed("tidy", &one.key, failed)),
        }
    }
}
