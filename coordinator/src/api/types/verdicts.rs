//! Types of verdicts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether an image can run at a site.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VerdictView {
    /// The site's id.
    pub id: String,
    /// Its name.
    pub site: String,
    /// `compatible`; `changes`: it can run, and something will be different; `unknown`: something could not be found out;
    /// `no`. The worst of all reasons.
    pub verdict: String,
    /// Why it is no better: every reason, the worst first.
    pub reasons: Vec<ReasonView>,
    /// When the site's agents reported last.
    pub reported: Option<String>,
    /// How many seconds ago.
    pub age_s: Option<u64>,
}

/// One reason.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReasonView {
    /// What this reason alone makes of the verdict.
    pub verdict: String,
    /// The thing.
    pub what: String,
    /// What it needs.
    pub needed: String,
    /// What was found.
    pub found: String,
    /// What would mend it, or how to find out.
    pub mend: String,
}
