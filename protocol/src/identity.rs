//! Who agents are, and how what only one of them may read is closed.
//!
//! A *site* has a signing key (Ed25519, RFC 8032), made when it is enrolled and kept beside its agents; the coordinator
//! knows the public half. Each process of an agent is an *instance* of its site: with an id and a key pair of its own
//! (X25519), which live as long as the process. It signs in with a [`SignIn`] that the site's key signs. Whatever a task
//! needs travels sealed to the instance that claimed it (HPKE, RFC 9180: X25519, HKDF-SHA256, AES-256-GCM): several
//! agents share a queue, and neither the broker nor a neighbour reads what isn't theirs. A seal is bound to the attempt:
//! it opens nowhere else.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    rand::{SecureRandom, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    envelope::{self, EnvelopeError},
    ids::{InstanceId, SessionId, SiteId},
    image::StoreKeys,
    secret::Secret32,
    session::Opening,
    task::{Claimed, TaskSpec},
};

/// What a signature is for: a signature for one purpose is none for another.
const SIGN_IN: &[u8] = b"ocopea sign-in 1\0";
/// What a seal is for.
const TASK: &[u8] = b"ocopea task 1";
const SESSION: &[u8] = b"ocopea session 1";
const STORE_KEYS: &[u8] = b"ocopea store keys 1";
const SITE_SECRET: &[u8] = b"ocopea site secret 1";
/// The longest name of a cluster that is taken.
pub const LONGEST_CLUSTER: usize = 200;

/// Keys that don't fit, or a system without randomness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No key could be made.
    #[error("no key can be made: the system gives no randomness")]
    Random,
    /// These bytes are no key.
    #[error("this is no key: 64 hexadecimal digits are expected")]
    Key,
    /// The signature isn't this site's.
    #[error("the signature is not that of the site's key")]
    Signature,
    /// It can't be sealed.
    #[error("it can't be sealed to this key: {0}")]
    Seal(String),
    /// It is not for us, or was changed.
    #[error("it can't be opened: it was sealed to another key or for another attempt, or was changed on its way")]
    Open,
    /// What was inside is no message.
    #[error(transparent)]
    Envelope(#[from] EnvelopeErrorText),
}

/// The words of an [`EnvelopeError`], which can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EnvelopeErrorText(pub String);

impl From<EnvelopeError> for IdentityError {
    fn from(error: EnvelopeError) -> Self {
        Self::Envelope(EnvelopeErrorText(error.to_string()))
    }
}

/// 32 bytes that everybody may know; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| IdentityError::Key)?;
        Ok(Self(bytes))
    }
}

/// A site's secret: signs its agents in.
#[derive(Clone)]
pub struct SiteKey(Secret32);

impl SiteKey {
    /// A new random one.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| IdentityError::Random)?;
        Ok(Self(Secret32(seed)))
    }

    /// From 64 hexadecimal digits, as [`Self::to_text`] writes them.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        PublicKey::from_str(text.trim()).map(|seed| Self(Secret32(seed.0)))
    }

    /// For the file or Secret that keeps it, and nothing else.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.0))
    }

    fn pair(&self) -> Result<Ed25519KeyPair, IdentityError> {
        Ed25519KeyPair::from_seed_unchecked(&self.0.0).map_err(|_| IdentityError::Key)
    }

    /// What the coordinator knows of it.
    pub fn public(&self) -> Result<PublicKey, IdentityError> {
        self.pair()?.public_key().as_ref().try_into().map(PublicKey).map_err(|_| IdentityError::Key)
    }

    /// Signs an instance in.
    pub fn sign_in(&self, site: SiteId, instance: &Instance, cluster: &str) -> Result<SignIn, IdentityError> {
        let cluster = cluster.chars().take(LONGEST_CLUSTER).collect();
        let mut sign_in = SignIn { instance: instance.id, key: instance.public(), cluster, signature: vec![] };
        sign_in.signature = self.pair()?.sign(&sign_in.signed(site)).as_ref().to_vec();
        Ok(sign_in)
    }
}

impl fmt::Debug for SiteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SiteKey(…)")
    }
}

/// "I am an agent of this site": repeating it changes nothing, so it needs no time and no clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignIn {
    /// This process.
    pub instance: InstanceId,
    /// What is for it is sealed to this key.
    pub key: PublicKey,
    /// What tells its cluster from all others (the uid of its namespace `kube-system`), or empty.
    pub cluster: String,
    /// The site's signature over all of it.
    pub signature: Vec<u8>,
}

impl SignIn {
    fn signed(&self, site: SiteId) -> Vec<u8> {
        let mut bytes = SIGN_IN.to_vec();
        bytes.extend_from_slice(site.0.as_bytes());
        bytes.extend_from_slice(self.instance.0.as_bytes());
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(self.cluster.as_bytes());
        bytes
    }

    /// Whether that site's key signed it.
    pub fn verify(&self, site: SiteId, key: &PublicKey) -> Result<(), IdentityError> {
        let key = UnparsedPublicKey::new(&ED25519, key.0);
        key.verify(&self.signed(site), &self.signature).map_err(|_| IdentityError::Signature)
    }
}

/// One process of an agent.
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    key: PublicKey,
    secret: HpkePrivateKey,
}

impl Instance {
    /// A new one, with this id.
    pub fn generate(id: InstanceId) -> Result<Self, IdentityError> {
        let (public, secret) = SUITE.generate_key_pair().map_err(|_| IdentityError::Random)?;
        let key = public.0.as_slice().try_into().map(PublicKey).map_err(|_| IdentityError::Key)?;
        Ok(Self { id, key, secret })
    }

    /// What others seal to.
    pub fn public(&self) -> PublicKey {
        self.key
    }

    /// The specification that was handed out with this claim.
    pub fn open(&self, claimed: &Claimed, sealed: &Sealed) -> Result<TaskSpec, IdentityError> {
        let plain = open(&self.secret, TASK, &bound(claimed), sealed)?;
        Ok(envelope::open::<TaskSpec>(&plain)?.message)
    }

    /// Newer keys of the store for this attempt.
    pub fn open_store_keys(&self, claimed: &Claimed, sealed: &Sealed) -> Result<StoreKeys, IdentityError> {
        let plain = open(&self.secret, STORE_KEYS, &bound(claimed), sealed)?;
        Ok(envelope::open::<StoreKeys>(&plain)?.message)
    }
}

impl Instance {
    /// What a session is about that this instance attached to.
    pub fn open_session(&self, session: SessionId, sealed: &Sealed) -> Result<Opening, IdentityError> {
        let plain = open(&self.secret, SESSION, &bound_session(session, self.id), sealed)?;
        Ok(envelope::open::<Opening>(&plain)?.message)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance({}, {})", self.id, self.key)
    }
}

/// Something that only one key opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The sender's half of the exchange, for this seal only.
    pub encapsulated: Vec<u8>,
    /// The rest.
    pub bytes: Vec<u8>,
}

fn bound(claimed: &Claimed) -> Vec<u8> {
    let mut bytes = claimed.task.0.as_bytes().to_vec();
    bytes.extend_from_slice(claimed.operation.0.as_bytes());
    bytes.extend_from_slice(claimed.instance.0.as_bytes());
    bytes.extend_from_slice(&claimed.attempt.to_le_bytes());
    bytes
}

fn seal(key: &PublicKey, purpose: &[u8], bound: &[u8], plain: &[u8]) -> Result<Sealed, IdentityError> {
    let (encapsulated, bytes) = SUITE
        .seal(purpose, bound, plain, &HpkePublicKey(key.0.to_vec()))
        .map_err(|error| IdentityError::Seal(error.to_string()))?;
    Ok(Sealed { encapsulated: encapsulated.0, bytes })
}

fn open(
    secret: &HpkePrivateKey,
    purpose: &[u8],
    bound: &[u8],
    sealed: &Sealed,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let encapsulated = EncapsulatedSecret(sealed.encapsulated.clone());
    SUITE
        .open(&encapsulated, purpose, bound, &sealed.bytes, secret)
        .map(Zeroizing::new)
        .map_err(|_| IdentityError::Open)
}

/// Seals a specification to the instance that claimed it.
pub fn seal_task(key: &PublicKey, claimed: &Claimed, spec: &TaskSpec) -> Result<Sealed, IdentityError> {
    let plain = envelope::seal(spec, "")?;
    seal(key, TASK, &bound(claimed), &plain)
}

/// Seals keys of the store to the instance that holds the attempt.
pub fn seal_store_keys(key: &PublicKey, claimed: &Claimed, keys: &StoreKeys) -> Result<Sealed, IdentityError> {
    let plain = envelope::seal(keys, "")?;
    seal(key, STORE_KEYS, &bound(claimed), &plain)
}

fn bound_session(session: SessionId, instance: InstanceId) -> Vec<u8> {
    [session.0.as_bytes().as_slice(), instance.0.as_bytes()].concat()
}

/// Seals what a session is about to the instance that attached to it.
pub fn seal_opening(
    key: &PublicKey,
    session: SessionId,
    instance: InstanceId,
    opening: &Opening,
) -> Result<Sealed, IdentityError> {
    let plain = envelope::seal(opening, "")?;
    seal(key, SESSION, &bound_session(session, instance), &plain)
}

/// A key pair that is made for one answer: what an enrolment gives back is sealed to it.
pub struct Once {
    key: PublicKey,
    secret: HpkePrivateKey,
}

impl Once {
    /// A new one.
    pub fn generate() -> Result<Self, IdentityError> {
        let (public, secret) = SUITE.generate_key_pair().map_err(|_| IdentityError::Random)?;
        let key = public.0.as_slice().try_into().map(PublicKey).map_err(|_| IdentityError::Key)?;
        Ok(Self { key, secret })
    }

    /// What the other side seals to.
    pub fn public(&self) -> PublicKey {
        self.key
    }

    /// The text that was sealed for this site.
    pub fn open(&self, site: SiteId, sealed: &Sealed) -> Result<Zeroizing<String>, IdentityError> {
        let plain = open(&self.secret, SITE_SECRET, site.0.as_bytes(), sealed)?;
        String::from_utf8(plain.to_vec()).map(Zeroizing::new).map_err(|_| IdentityError::Open)
    }
}

/// Seals a text to a [`Once`] key of that site.
pub fn seal_for_site(key: &PublicKey, site: SiteId, text: &str) -> Result<Sealed, IdentityError> {
    seal(key, SITE_SECRET, site.0.as_bytes(), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{OperationId, TaskId},
        seams::Seams,
        task::Source,
    };

    fn seams() -> Seams {
        Seams::real(tokio_util::task::TaskTracker::new())
    }

    fn instance() -> Instance {
        Instance::generate(InstanceId::generate(&seams())).unwrap()
    }

    fn spec() -> TaskSpec {
        let source = Source {
            namespace: "shop".parse().unwrap(),
            selector: None,
            without: vec![],
            credentials: vec![],
            freeze: false,
        };
        TaskSpec::Inspect { source }
    }

    #[test]
    fn an_instance_is_signed_in_by_its_site_alone_and_every_part_is_signed() {
        let (site, other) = (SiteId::generate(&seams()), SiteId::generate(&seams()));
        let key = SiteKey::parse(&SiteKey::generate().unwrap().to_text()).unwrap();
        let public = key.public().unwrap();
        let one = instance();
        let sign_in = key.sign_in(site, &one, "uid-1").unwrap();
        assert_eq!(sign_in.verify(site, &public), Ok(()));
        assert_eq!(public.to_string().parse(), Ok(public));
        let stranger = SiteKey::generate().unwrap().public().unwrap();
        assert_eq!(sign_in.verify(site, &stranger), Err(IdentityError::Signature));
        assert_eq!(sign_in.verify(other, &public), Err(IdentityError::Signature));
        let two = instance();
        let forged = [
            SignIn { instance: two.id, ..sign_in.clone() },
            SignIn { key: two.public(), ..sign_in.clone() },
            SignIn { cluster: "uid-2".to_owned(), ..sign_in.clone() },
            SignIn { signature: vec![], ..sign_in.clone() },
            SignIn { signature: vec![0; 64], ..sign_in },
        ];
        for forged in forged {
            assert_eq!(forged.verify(site, &public), Err(IdentityError::Signature));
        }
    }

    #[test]
    fn a_task_opens_for_its_claimer_and_attempt_only() {
        let seams = seams();
        let (one, two) = (instance(), instance());
        let claimed = Claimed {
            task: TaskId::generate(&seams),
            operation: OperationId::generate(&seams),
            attempt: 1,
            instance: one.id,
        };
        let sealed = seal_task(&one.public(), &claimed, &spec()).unwrap();
        assert_eq!(one.open(&claimed, &sealed), Ok(spec()));
        assert_eq!(two.open(&claimed, &sealed), Err(IdentityError::Open));
        let next = Claimed { attempt: 2, ..claimed };
        assert_eq!(one.open(&next, &sealed), Err(IdentityError::Open));
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert_eq!(one.open(&claimed, &changed), Err(IdentityError::Open));
        }
        for encapsulated in [vec![], vec![0; 32], vec![1; 31], vec![9; 1000]] {
            assert_eq!(one.open(&claimed, &Sealed { encapsulated, ..sealed.clone() }), Err(IdentityError::Open));
        }
    }

    #[test]
    fn keys_of_a_store_open_for_their_attempt_only_and_are_no_task() {
        let seams = seams();
        let one = instance();
        let claimed = Claimed {
            task: TaskId::generate(&seams),
            operation: OperationId::generate(&seams),
            attempt: 1,
            instance: one.id,
        };
        let keys = StoreKeys {
            id: "A".to_owned(),
            secret: crate::secret::Secret::new("s"),
            token: None,
            expires: Some(crate::time::Timestamp(7)),
        };
        let sealed = seal_store_keys(&one.public(), &claimed, &keys).unwrap();
        assert_eq!(one.open_store_keys(&claimed, &sealed), Ok(keys));
        assert_eq!(one.open(&claimed, &sealed), Err(IdentityError::Open));
        assert_eq!(one.open_store_keys(&Claimed { attempt: 2, ..claimed }, &sealed), Err(IdentityError::Open));
        assert_eq!(instance().open_store_keys(&claimed, &sealed), Err(IdentityError::Open));
    }

    #[test]
    fn what_an_enrolment_gives_back_opens_once_and_for_its_site() {
        let (site, other) = (SiteId::generate(&seams()), SiteId::generate(&seams()));
        let once = Once::generate().unwrap();
        let sealed = seal_for_site(&once.public(), site, "pässword").unwrap();
        assert_eq!(once.open(site, &sealed).unwrap().as_str(), "pässword");
        assert_eq!(once.open(other, &sealed), Err(IdentityError::Open));
        assert_eq!(Once::generate().unwrap().open(site, &sealed), Err(IdentityError::Open));
    }

    #[test]
    fn keys_are_never_printed() {
        let key = SiteKey::generate().unwrap();
        assert!(!format!("{key:?}").contains(key.to_text().as_str()));
        for text in ["", "00", &"g".repeat(64), &"0".repeat(66)] {
            assert!(SiteKey::parse(text).is_err() && text.parse::<PublicKey>().is_err());
        }
    }
}
