//! Tokens and sign-in codes: 256 random bits, stored as SHA-256.

use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use ocopea_catalog_db::{Catalog, CatalogError, access::Actor, model::Role};
use ocopea_protocol::{secret::Secret, time::Timestamp};

/// A new secret with a prefix that secret scanners can find.
pub fn generate(prefix: &str) -> Option<Secret> {
    let mut bytes = [0u8; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(Secret::new(format!("{prefix}_{}", hex::encode(bytes))))
}

/// What the catalog keeps of it.
pub fn hash(secret: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, secret.as_bytes()))
}

/// A new token for `actor`, as text to be shown once.
pub async fn issue(
    catalog: &Catalog,
    actor: &Actor,
    name: &str,
    scope: Role,
    expires: Option<Timestamp>,
) -> Result<Secret, CatalogError> {
    let token =
        generate("ocopea").ok_or_else(|| CatalogError::Malformed("the system gives no randomness".to_owned()))?;
    let hash = hash(token.reveal());
    catalog.again(|| catalog.add_token(actor.user, name, &hash, scope, expires)).await?;
    Ok(token)
}
