//! Team keys in the repository, and the administration of repository keys.
//!
//! Each team has one object per generation of its keys, `keys/teams/TEAM/GENERATION`, which holds the keys wrapped
//! by every repository key. Rotation adds a generation with a new wrapping key; the hash key stays, so that new
//! images still share chunks with old ones.

use std::collections::BTreeSet;

use ocopea_protocol::{ids::TeamId, secret::Secret32};
use serde::{Deserialize, Serialize};

use super::Repository;
use crate::{
    Error, KeyId, Keyring, Result, TeamKeys, Wrap, WrappedKey,
    backend::Put,
    keys::{key_of, random_key, unwrap_text, wrap_text},
};

const CHECK_AAD: &[u8] = b"ocopea/repository-key/v1";
const CHECK: &[u8] = b"this key opens this repository";

/// How often a removal looks for wraps that others write meanwhile.
const ROUNDS: usize = 16;

/// `keys/teams/TEAM/GENERATION`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TeamObject {
    version: u32,
    team: TeamId,
    generation: u32,
    /// Id of the wrapping key.
    pub(crate) key: KeyId,
    /// Wrapping key and hash key, one after the other, by each repository key.
    pub(crate) wraps: Vec<Wrap>,
}

/// `keys/repository/ID`: shows that a key is the right one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RepositoryKeyObject {
    version: u32,
    pub(crate) key: KeyId,
    check: String,
}

fn team_name(team: TeamId, generation: u32) -> String {
    format!("keys/teams/{team}/{generation:08}")
}

pub(crate) fn repository_key_name(id: &KeyId) -> String {
    format!("keys/repository/{id}")
}

fn team_aad(team: TeamId, key: &KeyId) -> String {
    format!("ocopea/team-key/v1/{team}/{key}")
}

fn image_aad(team: TeamId) -> String {
    format!("ocopea/image-key/v1/{team}")
}

impl Repository {
    pub(super) async fn add_repository_keys(&self) -> Result<()> {
        let store = self.store();
        for (id, key) in self.keyring().iter() {
            let check = wrap_text(key, CHECK_AAD, CHECK, &store.seams)?;
            let object = RepositoryKeyObject { version: 1, key: id.clone(), check };
            store.create_small(&repository_key_name(id), &object).await?;
        }
        Ok(())
    }

    /// Takes away the keys that an earlier creation left which never came to its end: they open nothing.
    pub(super) async fn forget_foreign_keys(&self) -> Result<()> {
        let keyring = self.keyring();
        for id in self.registered().await?.iter().filter(|id| keyring.get(id).is_none()) {
            self.store().backend.delete(&repository_key_name(id)).await?;
        }
        Ok(())
    }

    /// The repository's keys: those that wraps are made for.
    async fn registered(&self) -> Result<BTreeSet<KeyId>> {
        let entries = self.store().backend.list("keys/repository/").await?;
        let ids = entries.iter().filter_map(|entry| entry.name.rsplit('/').next());
        Ok(ids.filter_map(|id| KeyId::try_from(id.to_owned()).ok()).collect())
    }

    /// Refuses a keyring none of whose keys is one of the repository's.
    pub(super) async fn check_keyring(&self) -> Result<()> {
        let keyring = self.keyring();
        let known = self.registered().await?;
        if known.iter().any(|id| keyring.get(id).is_some()) {
            return Ok(());
        }
        // The object that says so may be lost: a key that opens a team's keys is the right one.
        for name in self.team_objects().await? {
            if self.open_team(&name).await.is_ok() {
                return Ok(());
            }
        }
        if known.is_empty() {
            return Err(Error::Missing {
                object: "keys/repository/ (what tells which keys open the repository)".to_owned(),
            });
        }
        let wanted = known.iter().map(KeyId::as_str).collect::<Vec<_>>().join(" or ");
        Err(Error::WrongKey { object: "the repository".to_owned(), given: keyring.listed(), wanted })
    }

    /// A check object read back and opened.
    pub(crate) async fn verify_repository_key(&self, name: &str) -> Result<KeyId> {
        let object: RepositoryKeyObject = self.store().get_small(name).await?;
        if repository_key_name(&object.key) != name {
            return Err(Error::damaged(name, "it is about another key"));
        }
        if let Some(key) = self.keyring().get(&object.key)
            && unwrap_text(key, CHECK_AAD, &object.check).is_none_or(|check| check.as_slice() != CHECK)
        {
            return Err(Error::damaged(name, "its check doesn't open with its key"));
        }
        Ok(object.key)
    }

    /// A team's keys; made on first use.
    pub async fn team_keys(&self, team: TeamId) -> Result<TeamKeys> {
        let prefix = format!("keys/teams/{team}/");
        for _ in 0..8 {
            if let Some(entry) = self.store().backend.list(&prefix).await?.pop() {
                let (object, keys) = self.open_team(&entry.name).await?;
                self.wrap_for_all(&entry.name, object, &keys).await?;
                return Ok(keys);
            }
            let keys = self.new_team_keys(team, 1, None)?;
            if self.put_team(&keys).await? == Put::Created {
                return Ok(keys);
            }
        }
        Err(Error::Conflict { object: prefix })
    }

    fn new_team_keys(&self, team: TeamId, generation: u32, hash_key: Option<Secret32>) -> Result<TeamKeys> {
        let seams = &self.store().seams;
        let wrap_key = random_key(seams);
        let hash_key = hash_key.unwrap_or_else(|| random_key(seams));
        Ok(TeamKeys { team, generation, wrap_id: KeyId::of(&wrap_key), wrap_key, hash_key })
    }

    async fn put_team(&self, keys: &TeamKeys) -> Result<Put> {
        let registered = self.registered().await?;
        let keyring = self.keyring();
        let own = keyring.iter().filter(|(id, _)| registered.contains(id));
        let wraps = own.map(|(id, key)| self.wrap_team(id, key, keys)).collect::<Result<Vec<_>>>()?;
        if wraps.is_empty() {
            let wanted = registered.iter().map(KeyId::as_str).collect::<Vec<_>>().join(" or ");
            return Err(Error::WrongKey { object: "the repository".to_owned(), given: keyring.listed(), wanted });
        }
        let (team, generation) = (keys.team, keys.generation);
        let object = TeamObject { version: 1, team, generation, key: keys.wrap_id.clone(), wraps };
        self.store().create_small(&team_name(team, generation), &object).await
    }

    fn wrap_team(&self, id: &KeyId, key: &Secret32, keys: &TeamKeys) -> Result<Wrap> {
        let mut both = zeroize::Zeroizing::new([0u8; 64]);
        both[..32].copy_from_slice(&keys.wrap_key.0);
        both[32..].copy_from_slice(&keys.hash_key.0);
        let aad = team_aad(keys.team, &keys.wrap_id);
        Ok(Wrap { by: id.clone(), sealed: wrap_text(key, aad.as_bytes(), both.as_slice(), &self.store().seams)? })
    }

    pub(crate) async fn open_team(&self, name: &str) -> Result<(TeamObject, TeamKeys)> {
        let object: TeamObject = self.store().get_small(name).await?;
        if team_name(object.team, object.generation) != name {
            return Err(Error::damaged(name, "it is about another team"));
        }
        let keyring = self.keyring();
        let aad = team_aad(object.team, &object.key);
        let mut tried = false;
        for wrap in &object.wraps {
            let Some(key) = keyring.get(&wrap.by) else { continue };
            tried = true;
            let Some(both) = unwrap_text(key, aad.as_bytes(), &wrap.sealed) else { continue };
            let halves = both.split_at_checked(32).and_then(|(wrap, hash)| Some((key_of(wrap)?, key_of(hash)?)));
            let Some((wrap_key, hash_key)) = halves else { continue };
            if KeyId::of(&wrap_key) == object.key {
                let (team, generation, wrap_id) = (object.team, object.generation, object.key.clone());
                return Ok((object, TeamKeys { team, generation, wrap_id, wrap_key, hash_key }));
            }
        }
        if tried {
            return Err(Error::damaged(name, "its wraps don't open with their keys"));
        }
        let wanted = object.wraps.iter().map(|wrap| wrap.by.as_str()).collect::<Vec<_>>().join(" or ");
        Err(Error::WrongKey { object: name.to_owned(), given: keyring.listed(), wanted })
    }

    /// Adds wraps by keys of the keyring that were added after this object was written. A key that was removed from
    /// the repository gets none, though somebody may still hold it.
    async fn wrap_for_all(&self, name: &str, mut object: TeamObject, keys: &TeamKeys) -> Result<()> {
        let keyring = self.keyring();
        let wrapped = |id: &KeyId| object.wraps.iter().any(|wrap| wrap.by == *id);
        let mut missing: Vec<_> = keyring.iter().filter(|(id, _)| !wrapped(id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let registered = self.registered().await?;
        missing.retain(|(id, _)| registered.contains(id));
        let added = missing.iter().map(|(id, key)| self.wrap_team(id, key, keys)).collect::<Result<Vec<_>>>()?;
        if added.is_empty() {
            return Ok(());
        }
        object.wraps.extend(added);
        self.store().replace_small(name, &object).await
    }

    /// A new image's key: wrapped, for the catalog. The key itself travels in [`Self::access_to_write`].
    pub async fn new_image_key(&self, team: TeamId) -> Result<WrappedKey> {
        let keys = self.team_keys(team).await?;
        let key = random_key(&self.store().seams);
        let sealed = wrap_text(&keys.wrap_key, image_aad(team).as_bytes(), &key.0, &self.store().seams)?;
        Ok(WrappedKey { team, generation: keys.generation, by: keys.wrap_id, sealed })
    }

    /// Opens an image's key.
    pub async fn unwrap(&self, key: &WrappedKey) -> Result<Secret32> {
        let name = team_name(key.team, key.generation);
        let (object, keys) = self.open_team(&name).await?;
        if object.key != key.by {
            return Err(Error::damaged(name, format!("it holds another key than {}", key.by)));
        }
        let opened = unwrap_text(&keys.wrap_key, image_aad(key.team).as_bytes(), &key.sealed);
        let opened = opened.and_then(|bytes| key_of(&bytes));
        opened.ok_or_else(|| {
            Error::damaged(format!("the wrapped key of an image of team {}", key.team), "it doesn't open")
        })
    }

    async fn team_objects(&self) -> Result<Vec<String>> {
        Ok(self.store().backend.list("keys/teams/").await?.into_iter().map(|entry| entry.name).collect())
    }

    /// Wraps all team keys with every key of `keyring`, which must hold one that opens them. From then on this
    /// repository is used with it. Team keys that can't be opened are an error, and keep no others from being wrapped.
    pub async fn key_add(&self, keyring: &Keyring) -> Result<()> {
        let old = self.keyring();
        let mut merged = keyring.clone();
        merged.absorb(&old);
        self.set_keyring(&merged);
        self.add_repository_keys().await?;
        let mut broken = None;
        for name in self.team_objects().await? {
            match self.open_team(&name).await {
                Ok((object, keys)) => self.wrap_for_all(&name, object, &keys).await?,
                Err(error) if error.is_of_one_object() => drop(broken.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        broken.map_or(Ok(()), Err)
    }

    /// New team keys for new images, wrapped by every key of `keyring`. Old ids stay readable; no pack is rewritten.
    pub async fn key_rotate(&self, keyring: &Keyring) -> Result<()> {
        self.key_add(keyring).await?;
        let mut teams: Vec<(TeamId, u32, Secret32)> = Vec::new();
        for name in self.team_objects().await? {
            let (object, keys) = self.open_team(&name).await?;
            teams.retain(|(team, ..)| *team != object.team);
            teams.push((object.team, object.generation, keys.hash_key.clone()));
        }
        for (team, generation, hash_key) in teams {
            let keys = self.new_team_keys(team, generation + 1, Some(hash_key))?;
            // Somebody else rotating at the same time made it: as good.
            self.put_team(&keys).await?;
        }
        Ok(())
    }

    /// Removes a repository key; refused when something could then be opened by no other key at hand. Stopped
    /// anywhere, every other key opens everything as before, and the same call again ends it.
    pub async fn key_remove(&self, id: &KeyId) -> Result<()> {
        let mut keyring = self.keyring();
        keyring.remove(id)?;
        let registered = self.registered().await?;
        let kept = |by: &KeyId| by != id && registered.contains(by) && keyring.get(by).is_some();
        for name in self.team_objects().await? {
            let (object, _) = self.open_team(&name).await?;
            if !object.wraps.iter().any(|wrap| kept(&wrap.by)) {
                let (given, wanted) = (keyring.listed(), id.to_string());
                return Err(Error::WrongKey { object: name, given, wanted });
            }
        }
        self.unwrap_all(id).await?;
        self.store().backend.delete(&repository_key_name(id)).await?;
        // Only listed keys get wraps. Somebody who had looked before may still have written one: until there is none.
        for _ in 0..ROUNDS {
            if !self.unwrap_all(id).await? {
                self.set_keyring(&keyring);
                return Ok(());
            }
        }
        Err(Error::Conflict { object: "keys/teams/".to_owned() })
    }

    /// Takes a key's wraps away; whether there were any.
    async fn unwrap_all(&self, id: &KeyId) -> Result<bool> {
        let mut found = false;
        for name in self.team_objects().await? {
            let (mut object, _) = self.open_team(&name).await?;
            let before = object.wraps.len();
            object.wraps.retain(|wrap| wrap.by != *id);
            if object.wraps.len() < before {
                found = true;
                self.store().replace_small(&name, &object).await?;
            }
        }
        Ok(found)
    }

    fn set_keyring(&self, keyring: &Keyring) {
        *self.inner.keyring.write().unwrap_or_else(std::sync::PoisonError::into_inner) = keyring.clone();
    }
}
