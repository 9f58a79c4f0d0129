//! Container images: registry → repository → registry, by digest, unchanged.
//!
//! An image is copied with every platform that its index lists; nothing is unpacked. What the registry serves is
//! checked against the digest that was asked for, blob by blob, while it streams: a registry is hostile input.
//!
//! What is pushed for an environment lies under a path of its own (see [`target_for`]): removing the environment
//! removes exactly that path's manifests, whatever else the registry holds.

mod copy_in;
mod credential_helpers;
mod credentials;
mod manifest;
mod push;
mod registry;

pub use copy_in::{ContainerCopy, copy_in};
pub use credentials::{Credential, Credentials};
pub use push::{push, remove};
pub use registry::{RegistryContext, RegistryHost, Resolved, sha256 as digest_of};

use ocopea_protocol::{names::ComponentName, task::EnvironmentMark};

/// Where a component's image is pushed for one environment: `HOST/PATH/NAME-xxxxxxxx/COMPONENT`, without scheme.
/// `xxxxxxxx` is from the environment's id, so that a later environment of the same name never shares it.
pub fn target_for(registry: &RegistryHost, mark: &EnvironmentMark, component: &ComponentName) -> String {
    let id = mark.environment.0.simple().to_string();
    let tail = &id[id.len().saturating_sub(8)..];
    let base = registry.base();
    format!("{base}/{}-{tail}/{component}", mark.name)
}
