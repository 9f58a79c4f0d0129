//! Rows as they are stored.

pub(crate) mod attempts;
pub(crate) mod audit;
pub(crate) mod enrolment_keys;
pub(crate) mod environments;
pub(crate) mod epochs;
pub(crate) mod idempotency;
pub(crate) mod image_comments;
pub(crate) mod image_labels;
pub(crate) mod images;
pub(crate) mod instances;
pub(crate) mod memberships;
pub(crate) mod operations;
pub(crate) mod outbox;
pub(crate) mod repositories;
pub(crate) mod sign_in_codes;
pub(crate) mod sites;
pub(crate) mod tasks;
pub(crate) mod teams;
pub(crate) mod tokens;
pub(crate) mod users;
