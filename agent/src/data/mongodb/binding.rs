//! How applications name a MongoDB: connection strings, and host names in variables. Pure.

use std::collections::BTreeMap;

use ocopea_protocol::secret::Secret;

use crate::data::{Login, LoginOf, ParsedBinding};

/// A connection string in parts, as byte ranges of the text around it.
struct Uri<'a> {
    before: &'a str,
    scheme: &'a str,
    user: Option<&'a str>,
    hosts: &'a str,
    rest: &'a str,
}

fn find(text: &str) -> Option<Uri<'_>> {
    let (start, scheme) = ["mongodb://", "mongodb+srv://"]
        .iter()
        .filter_map(|scheme| text.find(scheme).map(|at| (at, *scheme)))
        .min_by_key(|(at, _)| *at)?;
    let (before, tail) = text.split_at(start);
    let tail = &tail[scheme.len()..];
    let authority_end = tail.find(['/', '?', '"', '\'', ' ', '\t', '\n', '<', '>']).unwrap_or(tail.len());
    let (authority, rest) = tail.split_at(authority_end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, authority),
    };
    Some(Uri { before, scheme, user, hosts, rest })
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match (bytes[at], hex.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn host_of(entry: &str) -> &str {
    match entry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => entry.split(':').next().unwrap_or(entry),
    }
}

/// A connection string anywhere in `value`, or a host where the variable's name says that it is a MongoDB's.
pub(super) fn parse(name: &str, value: &str) -> Option<ParsedBinding> {
    if value.len() > 64 * 1024 {
        return None;
    }
    if let Some(uri) = find(value) {
        let hosts = uri.hosts.split(',').map(|entry| host_of(entry).to_owned()).filter(|h| !h.is_empty()).collect();
        let (path, query) = uri.rest.split_once('?').unwrap_or((uri.rest, ""));
        let end = |text: &str| text.find(['"', '\'', ' ', '\t', '\n', '<', '>']).unwrap_or(text.len());
        let database = path.strip_prefix('/').map(|p| decode(&p[..end(p)])).filter(|d| !d.is_empty());
        let options: BTreeMap<String, String> = query[..end(query)]
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), decode(value)))
            .collect();
        let (user, password) = match uri.user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            Some((user, password)) => (decode(user), decode(password)),
            None => (String::new(), String::new()),
        };
        let login = Login { of: LoginOf::Application, user, password: Secret::new(password), database, options };
        return Some(ParsedBinding { hosts, login: Some(login) });
    }
    let upper = name.to_ascii_uppercase();
    let says_host = upper.contains("MONGO") && ["HOST", "ADDR", "SERVER", "URL", "ENDPOINT"].iter().any(|w| upper.contains(w));
    let looks_like_host = !value.is_empty()
        && value.len() < 300
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b','));
    (says_host && looks_like_host)
        .then(|| ParsedBinding { hosts: value.split(',').map(|entry| host_of(entry).to_owned()).collect(), login: None })
}

/// `value` with other hosts, all else byte for byte.
pub(super) fn rewrite(value: &str, hosts: &BTreeMap<String, String>) -> String {
    let renamed = |list: &str| {
        list.split(',')
            .map(|entry| {
                let host = host_of(entry);
                match hosts.get(host) {
                    Some(new) => entry.replacen(host, new, 1),
                    None => entry.to_owned(),
                }
            })
            .collect::<Vec<_>>()
            .join(",")
    };
    match find(value) {
        Some(uri) => {
            let user = uri.user.map_or_else(String::new, |user| format!("{user}@"));
            format!("{}{}{user}{}{}", uri.before, uri.scheme, renamed(uri.hosts), uri.rest)
        }
        None => renamed(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_understood_in_every_form() {
        let parsed = parse("X", "mongodb://us%40er:p%3Ass@db-0.db:27017,db-1.db:27018/chat?replicaSet=rs0&authSource=admin").unwrap();
        assert_eq!(parsed.hosts, ["db-0.db", "db-1.db"]);
        let login = parsed.login.unwrap();
        assert_eq!((login.user.as_str(), login.password.reveal()), ("us@er", "p:ss"));
        assert_eq!((login.database.as_deref(), login.options["authSource"].as_str()), (Some("chat"), "admin"));
        let plain = parse("uri", "url = \"mongodb://db/shop\" # here").unwrap();
        assert_eq!(plain.hosts, ["db"]);
        assert_eq!(plain.login.unwrap().database.as_deref(), Some("shop"));
        assert_eq!(parse("MONGO_HOST", "db:27017").unwrap().hosts, ["db"]);
        for (name, value) in [("HOST", "db"), ("MONGO_HOST", ""), ("MONGO_HOST", "a b"), ("X", "mysql://db/x"), ("X", "")] {
            assert!(parse(name, value).is_none(), "{name}={value}");
        }
    }

    #[test]
    fn only_hosts_are_rewritten() {
        let hosts = BTreeMap::from([("db".to_owned(), "new.ns.svc".to_owned())]);
        assert_eq!(
            rewrite("mongodb://db:db@db:27017,other/db?appName=db", &hosts),
            "mongodb://db:db@new.ns.svc:27017,other/db?appName=db"
        );
        assert_eq!(rewrite("db:27017", &hosts), "new.ns.svc:27017");
    }

    #[test]
    fn hostile_values_do_no_harm() {
        for value in ["mongodb://", "mongodb://@", "mongodb://%", "mongodb://[::1", "mongodb://a@b@c:x:y/%zz?&=&", "mongodb://\0"] {
            let _ = parse("MONGO_URL", value);
            assert_eq!(rewrite(value, &BTreeMap::new()), value);
        }
    }
}
