//! How applications name a MongoDB: connection strings, and host names in variables. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use ocopea_protocol::secret::Secret;

use crate::data::{Login, LoginOf, ParsedBinding};

/// Longer values are no bindings.
const LONGEST: usize = 64 * 1024;
/// Option of a login that came by `mongodb+srv://`: its hosts are in DNS and not in the address.
pub(super) const SRV: &str = "srv";

/// A connection string in a text: where its hosts stand, and its parts.
struct Uri<'a> {
    hosts: Vec<Range<usize>>,
    user: Option<&'a str>,
    path: &'a str,
    query: &'a str,
    srv: bool,
}

/// Every connection string of a value.
fn uris(value: &str) -> Vec<Uri<'_>> {
    let mut out = Vec::new();
    let mut from = 0;
    while let Some(at) = value[from..].find("mongodb").map(|at| at + from) {
        from = at + "mongodb".len();
        let srv = value[from..].starts_with("+srv");
        let scheme = if srv { "+srv://" } else { "://" };
        if !value[from..].starts_with(scheme) {
            continue;
        }
        let start = from + scheme.len();
        let rest = &value[start..];
        let length = rest.find(|c: char| c.is_whitespace() || "\"'`<>\\".contains(c)).unwrap_or(rest.len());
        let text = &rest[..length];
        from = start + length;
        let authority = &text[..text.find(['/', '?', '#']).unwrap_or(text.len())];
        let (user, at) = match authority.rfind('@') {
            Some(at) => (Some(&authority[..at]), at + 1),
            None => (None, 0),
        };
        let (path, query) = text[authority.len()..].split_once('?').unwrap_or((&text[authority.len()..], ""));
        let mut hosts = Vec::new();
        add_hosts(&authority[at..], start + at, &mut hosts);
        out.push(Uri { hosts, user, path, query, srv });
    }
    out
}

/// `host:port,host,[v6]:port` → where the hosts stand.
fn add_hosts(list: &str, start: usize, hosts: &mut Vec<Range<usize>>) {
    let mut at = start;
    for one in list.split(',') {
        let (skip, length) = match one.strip_prefix('[') {
            Some(rest) => (1, rest.find(']').unwrap_or(rest.len())),
            None => (0, one.find(':').unwrap_or(one.len())),
        };
        if length > 0 {
            hosts.push(at + skip..at + skip + length);
        }
        at += one.len() + 1;
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|pair| hex::decode(pair).ok());
        if let Some(byte) = pair {
            out.extend(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

fn login(uri: &Uri<'_>) -> Login {
    let mut options: BTreeMap<String, String> = uri
        .query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect();
    if uri.srv {
        options.insert(SRV.to_owned(), "true".to_owned());
    }
    let (user, password) = uri.user.map(|user| user.split_once(':').unwrap_or((user, ""))).unwrap_or_default();
    let database = uri.path.strip_prefix('/').map(decode).filter(|database| !database.is_empty());
    Login { of: LoginOf::Application, user: decode(user), password: Secret::new(decode(password)), database, options }
}

/// Connection strings anywhere in `value`, or a host where the variable's name says that it is a database's.
pub(super) fn parse(name: &str, value: &str) -> Option<ParsedBinding> {
    if value.len() > LONGEST {
        return None;
    }
    let uris = uris(value);
    let (spans, login) = if uris.is_empty() {
        (plain(value).filter(|_| names_a_host(name))?, None)
    } else {
        // The login is that of the first that has a user, else the first.
        let with_user = uris.iter().find(|uri| uri.user.is_some()).or(uris.first());
        (uris.iter().flat_map(|uri| uri.hosts.clone()).collect(), with_user.map(login))
    };
    let mut seen = BTreeSet::new();
    let hosts: Vec<String> = spans
        .into_iter()
        .filter_map(|span| value.get(span))
        .map(|host| decode(host).trim_end_matches('.').to_ascii_lowercase())
        .filter(|host| !host.is_empty() && !host.contains('/') && seen.insert(host.clone()))
        .collect();
    if hosts.is_empty() { None } else { Some(ParsedBinding { hosts, login }) }
}

/// Whether a variable of this name holds a MongoDB's host.
fn names_a_host(name: &str) -> bool {
    let name = name.to_ascii_uppercase().replace(['.', '-'], "_");
    let words: Vec<&str> = name.split('_').filter(|word| !word.is_empty()).collect();
    let Some((last, stem)) = words.split_last() else { return false };
    let host = [
        "HOST", "HOSTS", "HOSTNAME", "ADDR", "ADDRESS", "SERVER", "SERVERS", "URL", "URI", "ENDPOINT", "SERVICE",
        "SEEDS",
    ];
    let mongo = |word: &str| word.contains("MONGO");
    if last.starts_with("MONGO") && host.iter().any(|end| last.ends_with(end)) {
        return true;
    }
    host.contains(last)
        && (stem.iter().any(|word| mongo(word))
            || stem.last().is_some_and(|word| ["DB", "DATABASE", "DOCDB"].contains(word)))
}

/// `host`, `host:port`, or several with commas, and nothing else.
fn plain(value: &str) -> Option<Vec<Range<usize>>> {
    let trimmed = value.trim();
    let lead = value.len() - value.trim_start().len();
    let fine = |host: &str| {
        let (host, port) = host.split_once(':').unwrap_or((host, "1"));
        !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            && !host.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    };
    if trimmed.is_empty() || !trimmed.split(',').all(fine) {
        return None;
    }
    let mut spans = Vec::new();
    add_hosts(trimmed, lead, &mut spans);
    Some(spans)
}

/// `value` with other hosts, all else byte for byte.
pub(super) fn rewrite(value: &str, hosts: &BTreeMap<String, String>) -> String {
    if value.len() > LONGEST {
        return value.to_owned();
    }
    let uris = uris(value);
    let spans = if uris.is_empty() {
        plain(value).unwrap_or_default()
    } else {
        uris.into_iter().flat_map(|uri| uri.hosts).collect()
    };
    let mut out = String::with_capacity(value.len());
    let mut at = 0;
    for span in spans {
        let (Some(before), Some(host)) = (value.get(at..span.start), value.get(span.clone())) else { continue };
        out.push_str(before);
        let known = hosts.get(host).or_else(|| {
            let plain = decode(host);
            let plain = plain.trim_end_matches('.');
            hosts.iter().find(|(name, _)| name.eq_ignore_ascii_case(plain)).map(|(_, new)| new)
        });
        out.push_str(known.map_or(host, String::as_str));
        at = span.end;
    }
    out.push_str(value.get(at..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_understood_in_every_form() {
        let parsed =
            parse("X", "mongodb://us%40er:p%3Ass@db-0.db:27017,DB-1.db.:27018/chat?replicaSet=rs0&authSource=admin")
                .unwrap();
        assert_eq!(parsed.hosts, ["db-0.db", "db-1.db"]);
        let login = parsed.login.unwrap();
        assert_eq!((login.user.as_str(), login.password.reveal()), ("us@er", "p:ss"));
        assert_eq!((login.database.as_deref(), login.options["authSource"].as_str()), (Some("chat"), "admin"));
        let plain = parse("uri", "url = \"mongodb://db/shop\" # here").unwrap();
        assert_eq!(plain.hosts, ["db"]);
        assert_eq!(plain.login.unwrap().database.as_deref(), Some("shop"));
        let srv = parse("X", "mongodb+srv://u:p@db.shop.svc/chat").unwrap();
        assert_eq!((srv.hosts[0].as_str(), srv.login.unwrap().options[SRV].as_str()), ("db.shop.svc", "true"));
        let two = parse("X", "A=mongodb://a/x B=mongodb://u@b:1/y").unwrap();
        assert_eq!((two.hosts.join(" "), two.login.unwrap().user), ("a b".to_owned(), "u".to_owned()));
        assert_eq!(parse("X", "mongodb://[::1]:27017/").unwrap().hosts, ["::1"]);
    }

    #[test]
    fn plain_hosts_are_taken_only_under_a_databases_name() {
        for name in [
            "MONGO_HOST",
            "SHOP_MONGODB_HOSTNAME",
            "mongo.url",
            "MONGOHOST",
            "MONGO_DB_ADDRESS",
            "DB_HOST",
            "DATABASE_HOST",
        ] {
            assert_eq!(parse(name, "db:27017").map(|p| p.hosts), Some(vec!["db".to_owned()]), "{name}");
        }
        for (name, value) in [
            ("HOST", "db"),
            ("MONGO_HOST", ""),
            ("MONGO_HOST", "a b"),
            ("MONGO_SERVER", "27017"),
            ("MONGO_SERVER_PORT", "db"),
            ("REDIS_HOST", "db"),
            ("X", "mysql://db/x"),
            ("X", ""),
            ("MONGO_URL", "http://db/"),
        ] {
            assert!(parse(name, value).is_none(), "{name}={value}");
        }
    }

    #[test]
    fn only_hosts_are_rewritten() {
        let hosts =
            BTreeMap::from([("db".to_owned(), "new.ns.svc".to_owned()), ("db.shop.svc".to_owned(), "x".to_owned())]);
        for (value, wanted) in [
            (
                "mongodb://db:db@db:27017,other,DB.shop.svc:1/db?appName=db",
                "mongodb://db:db@new.ns.svc:27017,other,x:1/db?appName=db",
            ),
            ("mongodb+srv://db.shop.svc/db", "mongodb+srv://x/db"),
            ("a: mongodb://db\nb: 'mongodb://u:p@db/'\n", "a: mongodb://new.ns.svc\nb: 'mongodb://u:p@new.ns.svc/'\n"),
            (" db:27017,other ", " new.ns.svc:27017,other "),
            ("mongodb", "mongodb"),
        ] {
            assert_eq!(rewrite(value, &hosts), wanted);
        }
    }

    #[test]
    fn hostile_values_do_no_harm() {
        let long = format!("mongodb://{}", ",".repeat(70_000));
        for value in [
            "mongodb://",
            "mongodb://@",
            "mongodb://%",
            "mongodb://[::1",
            "mongodb://a@b@c:x:y/%zz?&=&",
            "mongodb://\0",
            "mongodb\u{e4}://db",
            &long,
        ] {
            let _ = parse("MONGO_URL", value);
            assert_eq!(rewrite(value, &BTreeMap::new()), *value);
        }
    }
}
