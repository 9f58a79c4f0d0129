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

/// What a text was found to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renamed {
    /// It, with what means the old namespace meaning the new one.
    pub text: String,
    /// Words in it that may be host names of the old namespace, or something else: they are left as they are.
    pub doubts: Vec<String>,
}

/// `text` with every host name that means something in namespace `from` renamed to mean the same in `to`.
///
/// `….FROM.svc…` always is one. `SERVICE.FROM` (a pod before it or not) is one unless it stands where a key or a part of a path
/// does; and where the namespace is called as files and keys are (`app`, `db`), only where a host name must stand: in a
/// URL, before a port, or as the value of something that is called a host. `name` is what `text` is the value of.
pub fn rename_hosts(text: &str, name: &str, services: &[Service], from: &str, to: &str) -> Renamed {
    let host_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let mut renamed = Renamed { text: String::with_capacity(text.len()), doubts: Vec::new() };
    let mut at = 0;
    while let Some(start) = text[at..].find(host_character).map(|found| at + found) {
        renamed.text.push_str(&text[at..start]);
        let end = text[start..].find(|c| !host_character(c)).map_or(text.len(), |found| start + found);
        let word = &text[start..end];
        let place = Place { before: &text[..start], after: &text[end..], name };
        match (qualified(word, from, to), bare(word, services, from, to)) {
            (Some(new), _) => renamed.text.push_str(&new),
            (None, Some(new)) => match place.is_of_host(from) {
                Some(true) => renamed.text.push_str(&new),
                Some(false) => renamed.text.push_str(word),
                None => {
                    renamed.doubts.push(word.to_owned());
                    renamed.text.push_str(word);
                }
            },
            (None, None) => renamed.text.push_str(word),
        }
        at = end;
    }
    renamed.text.push_str(&text[at..]);
    renamed
}

/// `….FROM.svc`, `….FROM.svc.DOMAIN`, `FROM.svc.DOMAIN`.
fn qualified(word: &str, from: &str, to: &str) -> Option<String> {
    let mut labels: Vec<&str> = word.split('.').collect();
    for at in 0..labels.len().saturating_sub(1) {
        let fits = labels[at].eq_ignore_ascii_case(from) && labels[at + 1].eq_ignore_ascii_case("svc");
        let domain = labels.get(at + 2).is_some_and(|label| !label.is_empty());
        if fits && (at > 0 && !labels[at - 1].is_empty() || domain) {
            labels[at] = to;
            return Some(labels.join("."));
        }
    }
    None
}

/// `SERVICE.FROM`, `POD.SERVICE.FROM`, with a last dot or not.
fn bare(word: &str, services: &[Service], from: &str, to: &str) -> Option<String> {
    let (host, dot) = word.strip_suffix('.').map_or((word, ""), |host| (host, "."));
    let head = host.strip_suffix(from)?.strip_suffix('.')?;
    let known = services.iter().any(|service| {
        head.strip_suffix(service.name.as_str()).is_some_and(|pod| pod.is_empty() || pod.ends_with('.'))
    });
    known.then(|| format!("{head}.{to}{dot}"))
}

/// Namespaces that are called as files' ends, domains and keys are.
const COMMON: &[&str] = &[
    "apps", "client", "conf", "config", "data", "default", "docker", "home", "host", "html", "http", "https", "info",
    "internal", "java", "json", "keys", "lock", "local", "logs", "main", "name", "node", "path", "pool", "port",
    "prod", "secret", "server", "service", "site", "sock", "test", "timeout", "toml", "type", "user", "users", "yaml",
];
/// Parts of the names of what holds host names.
const HOSTS: &[&str] = &[
    "host", "server", "addr", "endpoint", "url", "uri", "broker", "upstream", "backend", "node", "dsn", "peer", "seed",
];

/// Where a word stands.
struct Place<'a> {
    before: &'a str,
    after: &'a str,
    name: &'a str,
}

impl Place<'_> {
    /// Whether a host name stands here; `None` where it can't be told.
    fn is_of_host(&self, namespace: &str) -> Option<bool> {
        let after = self.after.trim_start_matches([' ', '\t']);
        let colon = self.after.strip_prefix(':').map(|rest| rest.chars().next());
        let port = colon.is_some_and(|next| next.is_some_and(|c| c.is_ascii_digit() || matches!(c, '$' | '{')));
        let token = self.before.rsplit(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<')).next();
        let authority = token.unwrap_or_default().rsplit_once("://").map(|(_, rest)| rest);
        if port || authority.is_some_and(|rest| !rest.contains(['/', '?', '#'])) {
            return Some(true);
        }
        let key = after.starts_with('=') || colon.is_some_and(|next| next.is_none_or(char::is_whitespace));
        let path = self.before.ends_with('/') && !self.before.ends_with("//");
        if key || path {
            return Some(false);
        }
        if namespace.len() > 3 && !COMMON.contains(&namespace) {
            return Some(true);
        }
        let quotes = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
        let line = self.before.rsplit('\n').next().unwrap_or_default().trim_end_matches(quotes);
        let last =
            |text: &str| text.trim_end_matches(quotes).rsplit(quotes).next().unwrap_or_default().to_ascii_lowercase();
        let name = match line.strip_suffix(['=', ':']) {
            Some(key) => last(key),
            None if last(line) == "-h" => "host".to_owned(),
            None if last(line).starts_with('-') => last(line),
            None => self.name.to_ascii_lowercase(),
        };
        HOSTS.iter().any(|host| name.contains(host)).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Service> {
        vec![Service { name: "db".to_owned(), selector: BTreeMap::new() }]
    }

    #[test]
    fn hosts_are_renamed_by_meaning_and_nothing_else_is() {
        let rename = |text: &str| rename_hosts(text, "SETTING", &known(), "shop", "copy").text;
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
        assert_eq!(rename("other.shop.svc, shop.svc.cluster.local"), "other.copy.svc, copy.svc.cluster.local");
        assert_eq!(rename("https://web.shop.svc./x"), "https://web.copy.svc./x");
        assert_eq!(rename("shop.svc .shop.svc /a/db.shop"), "shop.svc .shop.svc /a/db.shop");
        assert_eq!(rename("db.shop=1\ndb.shop: 2\nx: db.shop"), "db.shop=1\ndb.shop: 2\nx: db.copy");
    }

    #[test]
    fn a_namespace_that_is_called_as_files_are_is_meant_only_where_a_host_stands() {
        let known = [Service { name: "users".to_owned(), selector: BTreeMap::new() }];
        let rename = |name: &str, text: &str| rename_hosts(text, name, &known, "db", "copy");
        for (name, text) in [
            ("FILE", "sqlite:///data/users.db"),
            ("FILE", "/var/lib/users.db"),
            ("KEY", "users.db=1"),
            ("db.properties", "users.db.url=x\nspring.users.db: 5"),
        ] {
            assert_eq!(rename(name, text), Renamed { text: text.to_owned(), doubts: vec![] }, "{text}");
        }
        for (name, text, new) in [
            ("X", "postgresql://u:p@users.db/db", "postgresql://u:p@users.copy/db"),
            ("X", "mongodb://a-0.users.db,a-1.users.db:1/db", "mongodb://a-0.users.copy,a-1.users.copy:1/db"),
            ("X", "users.db:5432", "users.copy:5432"),
            ("PGHOST", "users.db", "users.copy"),
            ("X", "host=users.db dbname=users.db", "host=users.copy dbname=users.db"),
            ("app.ini", "db_file = users.db\nserver = \"users.db\"", "db_file = users.db\nserver = \"users.copy\""),
            ("X", "psql -h users.db -f users.db", "psql -h users.copy -f users.db"),
            ("X", "users.db.svc users.db.svc.cluster.local", "users.copy.svc users.copy.svc.cluster.local"),
        ] {
            assert_eq!(rename(name, text).text, new, "{text}");
        }
        assert_eq!(rename("WHATEVER", "users.db").doubts, ["users.db"]);
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
