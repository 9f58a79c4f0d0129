//! Server-side apply with a field manager of our own.

use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use ocopea_protocol::failure::TaskFailure;
use serde_json::Value;

use super::{MANAGER, Platform};
use crate::{configs::object_ref, failures::kubernetes};

impl Platform {
    /// Applies one object into `namespace`; with `dry_run` the server only says whether it would.
    pub async fn apply(
        &self,
        resource: &ApiResource,
        namespace: &str,
        object: &Value,
        dry_run: bool,
    ) -> Result<Value, TaskFailure> {
        let reference = object_ref(object);
        let what = format!("can't apply {reference}");
        // In the version that it was saved in: the server may list another one first, and serve this one, too.
        let mut resource = resource.clone();
        let (_, version) = reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
        resource.version = version.to_owned();
        resource.api_version.clone_from(&reference.api_version);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let mut parameters = PatchParams::apply(MANAGER).force();
        parameters.dry_run = dry_run;
        let applied = api
            .patch(&reference.name, &parameters, &Patch::Apply(object))
            .await
            .map_err(|error| kubernetes(&what, &error))?;
        serde_json::to_value(applied).map_err(|error| TaskFailure::permanent("site.answer", what, error))
    }
}

/// The resource of a saved object, by what the server lists.
pub fn resource_of<'a>(resources: &'a [ApiResource], object: &Value) -> Option<&'a ApiResource> {
    let version = object["apiVersion"].as_str()?;
    let kind = object["kind"].as_str()?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let wanted = GroupVersionKind::gvk(group, version, kind);
    resources
        .iter()
        .find(|r| r.group == wanted.group && r.version == wanted.version && r.kind == wanted.kind)
        .or_else(|| resources.iter().find(|r| r.group == wanted.group && r.kind == wanted.kind))
}
