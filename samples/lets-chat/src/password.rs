//! Passwords: argon2id, in its own PHC text.

use std::sync::Mutex;

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};

use crate::world;

/// Shortest and longest password, in characters: hashing takes as long as the text is.
pub const LENGTH: std::ops::RangeInclusive<usize> = 8..=128;

/// Work areas of 19 MiB that wait for the next password. Allocated anew each time, every thread's heap would keep one
/// (seen: 645 MB); so there are only as many as passwords were ever hashed at once.
static SPARE: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());

/// Hashes under `salt`, away from the async threads. `None` only when the machine can't (no memory).
pub async fn hash(password: String, salt: [u8; 16]) -> Option<String> {
    world::compute(move || hash_now(&password, &salt)).await.flatten()
}

fn hash_now(password: &str, salt: &[u8]) -> Option<String> {
    let params = Params::default();
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).ok()?,
        salt: Some(Salt::new(salt).ok()?),
        hash: Some(derive(password, salt, params)?),
    };
    Some(hash.to_string())
}

fn derive(password: &str, salt: &[u8], params: Params) -> Option<Output> {
    let mut area = SPARE.lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default();
    if area.len() < params.block_count() {
        area.resize(params.block_count(), Block::new());
    }
    let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let derived = argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut out, area.as_mut_slice());
    if let Ok(mut spare) = SPARE.lock() {
        spare.push(area);
    }
    derived.ok()?;
    Output::new(&out).ok()
}

/// Whether `password` is the one. Takes as long for a user that doesn't exist (`None`), so that nobody can probe.
pub async fn verify(password: String, hash: Option<String>) -> bool {
    let known = hash.is_some();
    let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
    let fits = world::compute(move || verify_now(&password, &hash)).await.flatten();
    known && fits == Some(true)
}

fn verify_now(password: &str, hash: &str) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok().filter(|hash| hash.algorithm == Algorithm::Argon2id.ident())?;
    let params = Params::try_from(&hash).ok().filter(|params| params.m_cost() <= Params::DEFAULT_M_COST)?;
    // `Output` compares in constant time.
    Some(derive(password, hash.salt.as_deref()?, params)? == hash.hash?)
}

/// A well-formed hash of nothing anybody knows.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bGV0cy1jaGF0LW5vYm9keQ$RdescudvJCsgt3ub+b2dWRWJTmaaJObG";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_own_hash_and_nobody_has_one() {
        let hash = hash("correct horse".into(), *b"0123456789abcdef").await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(verify("correct horse".into(), Some(hash.clone())).await);
        assert!(!verify("correct horsf".into(), Some(hash)).await);
        assert!(!verify("anything".into(), None).await);
        assert!(
            !verify("anything".into(), Some("$argon2id$v=19$m=4194304,t=2,p=1$YWFhYWFhYWE$YWFhYWFhYWFhYWFh".into()))
                .await
        );
        assert!(SPARE.lock().unwrap().len() <= 1, "one after the other needs one work area");
        assert!(PasswordHash::new(NOBODY).is_ok());
    }
}
