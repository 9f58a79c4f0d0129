//! Which names within a namespace stand for which pods.

use std::collections::BTreeMap;

use serde_json::Value;

use super::workload::{pod_labels, string_map};

/// A Service and the labels that it selects.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Selector; empty ones select nothing.
    pub selector: BTreeMap<String, String>,
}

/// All Services of a configuration.
pub fn services(objects: &[Value]) -> Vec<Service> {
    objects
        .iter()
        .filter(|object| object["kind"] == "Service" && object["apiVersion"] == "v1")
        .map(|object| Service {
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            selector: string_map(&object["spec"]["selector"]),
        })
        .collect()
}

/// Services that lead to a workload's pods.
pub fn services_of(workload: &Value, services: &[Service]) -> Vec<String> {
    let labels = pod_labels(workload);
    services
        .iter()
        .filter(|s| !s.selector.is_empty() && s.selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
        .map(|s| s.name.clone())
        .collect()
}

/// Whether `host` names `service` (or a pod of it, for headless ones) within `namespace`.
pub fn names_service(host: &str, service: &str, namespace: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let bare = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc")).unwrap_or(&host);
    let local = bare.strip_suffix(&format!(".{namespace}")).unwrap_or(bare);
    local == service || local.ends_with(&format!(".{service}"))
}

/// `text` with every host name that means something in namespace `from` renamed to mean the same in `to`.
///
/// Only whole host names that end in `.FROM.svc…`, or are exactly `SERVICE.FROM`, are touched: the name of the
/// namespace elsewhere (a database of the same name, a path) is left alone.
pub fn rename_hosts(text: &str, services: &[Service], from: &str, to: &str) -> String {
    let host_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(host_character) {
        let (before, tail) = rest.split_at(start);
        out.push_str(before);
        let end = tail.find(|c| !host_character(c)).unwrap_or(tail.len());
        let (word, tail) = tail.split_at(end);
        out.push_str(&rename_host(word, services, from, to));
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn rename_host(word: &str, services: &[Service], from: &str, to: &str) -> String {
    for service in services {
        let stem = format!("{}.{from}", service.name);
        for (head, tail) in word.match_indices(&stem).map(|(at, _)| (&word[..at], &word[at + stem.len()..])) {
            let head_fits = head.is_empty() || head.ends_with('.');
            let tail_fits = tail.is_empty() || tail == "." || tail == ".svc" || tail.starts_with(".svc.");
            if head_fits && tail_fits {
                return format!("{head}{}.{to}{tail}", service.name);
            }
        }
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Service> {
        vec![Service { name: "db".to_owned(), selector: BTreeMap::new() }]
    }

    #[test]
    fn hosts_are_renamed_by_meaning_and_nothing_else_is() {
        let rename = |text: &str| rename_hosts(text, &known(), "shop", "copy");
        assert_eq!(
            rename("mongodb://u:p@db.shop.svc.cluster.local:27017/shop"),
            "mongodb://u:p@db.copy.svc.cluster.local:27017/shop"
        );
        assert_eq!(rename("db-0.db.shop.svc,db.shop"), "db-0.db.copy.svc,db.copy");
        assert_eq!(rename("http://shop.example.com/shop/db?x=shop"), "http://shop.example.com/shop/db?x=shop");
        assert_eq!(
            rename("db.shopping.svc db.shop.example.com mydb.shop"),
            "db.shopping.svc db.shop.example.com mydb.shop"
        );
        assert_eq!(rename("db"), "db");
    }

    #[test]
    fn a_host_names_its_service_in_every_form() {
        for host in ["db", "DB", "db.shop", "db.shop.svc", "db.shop.svc.cluster.local.", "db-0.db", "db-0.db.shop.svc"]
        {
            assert!(names_service(host, "db", "shop"), "{host}");
        }
        for host in ["mydb", "db.other", "db.example.com", "shop", ""] {
            assert!(!names_service(host, "db", "shop"), "{host}");
        }
    }
}
