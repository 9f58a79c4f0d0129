//! Passwords: argon2id, in its own PHC text.

use argon2::{
    Argon2, PasswordVerifier as _,
    password_hash::{PasswordHasher as _, phc::PasswordHash},
};

use crate::world;

/// Shortest and longest password, in characters: hashing takes as long as the text is.
pub const LENGTH: std::ops::RangeInclusive<usize> = 8..=128;

/// Hashes under `salt`, away from the async threads. `None` only when the machine can't (no memory).
pub async fn hash(password: String, salt: [u8; 16]) -> Option<String> {
    world::compute(move || hash_now(&password, &salt)).await.flatten()
}

/// As [`hash`], on this thread.
pub fn hash_now(password: &str, salt: &[u8; 16]) -> Option<String> {
    let hash: PasswordHash = Argon2::default().hash_password_with_salt(password.as_bytes(), salt).ok()?;
    Some(hash.to_string())
}

/// Whether `password` is the one. Takes as long for a user that doesn't exist (`None`), so that nobody can probe.
pub async fn verify(password: String, hash: Option<String>) -> bool {
    let known = hash.is_some();
    let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
    let fits = world::compute(move || Argon2::default().verify_password(password.as_bytes(), &*hash).is_ok()).await;
    known && fits == Some(true)
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
        assert!(PasswordHash::new(NOBODY).is_ok());
    }
}
