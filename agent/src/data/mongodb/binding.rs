//! How applications name a MongoDB: connection strings, and host names in variables. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use ocopea_protocol::secret::Secret;

use crate::data::{Login, LoginOf, ParsedBinding, Setting};

/// Longer values are no bindings.
const LONGEST: usize = 64 * 1024;
/// Option of a login that came by `mongodb+srv://`: its hosts are in DNS and not in the address.
pub(super) const SRV: &str = "srv";
/// Option of a login that was put together from settings that stand one by one.
pub(super) const BESIDE: &str = "beside";

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
        (plain(value).filter(|_| names_a_host(name)).or_else(|| in_a_line(value))?, None)
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
    let words = words(name);
    let Some((last, stem)) = words.split_last() else { return false };
    HOST_WORDS.contains(&last.as_str())
        && (stem.iter().any(|word| word.contains("MONGO"))
            || stem.last().is_some_and(|word| ["DB", "DATABASE", "DOCDB"].contains(&word.as_str())))
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

/// A line of a file that gives a host under a database's name: `mongo.host = db:27017`, `"mongoHost": "db",`.
fn in_a_line(value: &str) -> Option<Vec<Range<usize>>> {
    let (key, _) = pair(value)?;
    let at = value.find(['=', ':'])? + 1;
    let rest = value.get(at..)?;
    let plain_text = |c: char| !(c.is_whitespace() || "\"',;".contains(c));
    let start = at + rest.find(plain_text)?;
    let end = start
        + value.get(start..)?.find(|c: char| c.is_whitespace() || "\"';".contains(c)).unwrap_or(value.len() - start);
    let (host, rest) = (value.get(start..end)?.trim_end_matches(','), value.get(end..)?);
    let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || "\"',;".contains(c));
    if !names_a_host(&key) || !(rest.is_empty() || rest.starts_with('#')) {
        return None;
    }
    let spans = plain(host)?;
    Some(spans.into_iter().map(|span| span.start + start..span.end + start).collect())
}

/// Key and value of a line, without quotes around them.
fn pair(line: &str) -> Option<(String, String)> {
    let line = line.trim().trim_start_matches("export ").trim_end_matches([',', ';']);
    let (key, value) = line.split_once(['=', ':'])?;
    let bare = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let key = bare(key);
    let fine =
        !key.is_empty() && key.len() <= 100 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    fine.then(|| (key, bare(value)))
}

/// A login from settings that stand one by one beside the one that names the host: `MONGO_USER` and `MONGO_PASSWORD`
/// beside `MONGO_HOST`, lines of the same file beside a line. Pure.
pub(super) fn login_beside(host: &Setting<'_>, all: &[Setting<'_>]) -> Option<Login> {
    let named = |setting: &Setting<'_>| -> Option<(String, String)> {
        if setting.name.starts_with('/') {
            pair(setting.value)
        } else {
            Some((setting.name.to_owned(), setting.value.to_owned()))
        }
    };
    let same_place = |setting: &Setting<'_>| {
        setting.name.starts_with('/') == host.name.starts_with('/')
            && (!host.name.starts_with('/') || setting.name == host.name)
    };
    let (host_name, _) = named(host)?;
    let settings: Vec<(Vec<String>, String)> = all
        .iter()
        .filter(|setting| same_place(setting))
        .filter_map(named)
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (words(&name), value))
        .collect();
    let mut stem = words(&host_name);
    while stem.last().is_some_and(|word| HOST_WORDS.contains(&word.as_str())) {
        stem.pop();
    }
    let find = |stem: &[String], ends: &[&str]| {
        ends.iter().find_map(|end| {
            let end = words(end);
            let fits = |name: &Vec<String>| name.strip_prefix(stem).is_some_and(|rest| *rest == *end);
            settings.iter().find(|(name, _)| fits(name)).map(|(_, value)| value.clone())
        })
    };
    // Under the very same name; else under any that speaks of MongoDB (`MONGO_HOST` beside `MONGODB_USERNAME`).
    let mut stems = vec![stem.clone()];
    for (name, _) in &settings {
        if let Some(at) = name.iter().position(|word| word.starts_with("MONGO")) {
            stems.push(name[..=at].to_vec());
        }
    }
    let stem = stems.into_iter().find(|stem| find(stem, &USERS).is_some())?;
    let mut options = BTreeMap::from([(BESIDE.to_owned(), "true".to_owned())]);
    if let Some(source) = find(&stem, &SOURCES) {
        options.insert("authSource".to_owned(), source);
    }
    for (end, option) in [("TLS", "tls"), ("SSL", "tls"), ("AUTH_MECHANISM", "authMechanism")] {
        if let Some(value) = find(&stem, &[end]) {
            options.insert(option.to_owned(), value);
        }
    }
    Some(Login {
        of: LoginOf::Application,
        user: find(&stem, &USERS)?,
        password: Secret::new(find(&stem, &PASSWORDS).unwrap_or_default()),
        database: find(&stem, &DATABASES),
        options,
    })
}

const HOST_WORDS: [&str; 12] =
    ["HOST", "HOSTS", "HOSTNAME", "ADDR", "ADDRESS", "SERVER", "SERVERS", "URL", "URI", "ENDPOINT", "SERVICE", "SEEDS"];
const USERS: [&str; 7] = ["USER", "USERNAME", "USER_NAME", "LOGIN", "ROOT_USERNAME", "ROOT_USER", "APP_USER"];
const PASSWORDS: [&str; 7] = ["PASSWORD", "PASS", "PASSWD", "PWD", "ROOT_PASSWORD", "USER_PASSWORD", "SECRET"];
const DATABASES: [&str; 6] = ["DATABASE", "DB", "DBNAME", "DB_NAME", "DATABASE_NAME", "NAME"];
const SOURCES: [&str; 6] =
    ["AUTH_SOURCE", "AUTHSOURCE", "AUTH_DB", "AUTH_DATABASE", "AUTHENTICATION_DATABASE", "AUTHDB"];

/// `shop.mongoUser`, `SHOP_MONGO_USER` → SHOP MONGO USER; one word with MONGO in front is two.
fn words(name: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut small = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || (small && c.is_ascii_uppercase()) {
            out.push(std::mem::take(&mut word));
        }
        if c.is_ascii_alphanumeric() {
            word.push(c.to_ascii_uppercase());
        }
        small = c.is_ascii_lowercase();
    }
    out.push(word);
    let mut split = Vec::new();
    for word in out.into_iter().filter(|word| !word.is_empty()) {
        let rest = word.strip_prefix("MONGODB").or_else(|| word.strip_prefix("MONGO")).map(str::to_owned);
        match rest {
            Some(rest) if !rest.is_empty() => split.extend(["MONGO".to_owned(), rest]),
            Some(_) => split.push("MONGO".to_owned()),
            None => split.push(word),
        }
    }
    split
}

/// `value` with other hosts, all else byte for byte.
pub(super) fn rewrite(value: &str, hosts: &BTreeMap<String, String>) -> String {
    if value.len() > LONGEST {
        return value.to_owned();
    }
    let uris = uris(value);
    let spans = if uris.is_empty() {
        plain(value).or_else(|| in_a_line(value)).unwrap_or_default()
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
    fn lines_of_files_name_hosts_too() {
        for line in [
            "spring.data.mongodb.host=db",
            "  mongo_host: db:27017",
            "\"mongoHost\": \"db\",",
            "export DB_HOST='db'",
            "mongodb.hosts = db,db",
        ] {
            assert_eq!(parse("/etc/app.conf", line).map(|p| p.hosts), Some(vec!["db".to_owned()]), "{line}");
            let hosts = BTreeMap::from([("db".to_owned(), "new".to_owned())]);
            assert_eq!(
                rewrite(line, &hosts).matches("new").count(),
                line.matches("db").count() - line.matches("mongodb").count(),
                "{line}"
            );
        }
        for line in ["host: db", "redis.host=db", "mongo_host:", "mongo_host = a b/c", "mongodb:"] {
            assert!(parse("/etc/app.conf", line).is_none(), "{line}");
        }
    }

    #[test]
    fn logins_are_put_together_from_settings_that_stand_one_by_one() {
        let of = |host: &str, all: &[(&str, &str)]| {
            let all: Vec<Setting<'_>> = all.iter().map(|(name, value)| Setting { name, value }).collect();
            let host = all.iter().find(|one| one.name == host || one.value.starts_with(host)).copied().unwrap();
            login_beside(&host, &all).map(|login| {
                (
                    login.user,
                    login.password.reveal().to_owned(),
                    login.database.unwrap_or_default(),
                    login.options.get("authSource").cloned().unwrap_or_default(),
                )
            })
        };
        let login = |a: &str, b: &str, c: &str, d: &str| Some((a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned()));
        let env = [
            ("MONGO_HOST", "db"),
            ("MONGO_PORT", "1"),
            ("MONGO_USER", "u"),
            ("MONGO_PASSWORD", "p%40:"),
            ("MONGO_DB", "shop"),
            ("MONGO_AUTH_SOURCE", "admin"),
        ];
        assert_eq!(of("MONGO_HOST", &env), login("u", "p%40:", "shop", "admin"));
        let env = [
            ("SHOP_DB_HOST", "db"),
            ("SHOP_DB_USERNAME", "u"),
            ("SHOP_DB_PASS", "p"),
            ("SHOP_DB_NAME", "shop"),
            ("DB_USER", "other"),
        ];
        assert_eq!(of("SHOP_DB_HOST", &env), login("u", "p", "shop", ""));
        let env = [("MONGO_URL", "db:27017"), ("MONGODB_USERNAME", "u"), ("MONGODB_PASSWORD", "p")];
        assert_eq!(of("MONGO_URL", &env), login("u", "p", "", ""));
        let env = [("MONGOHOST", "db"), ("MONGOUSER", "u"), ("MONGOPASSWORD", "p")];
        assert_eq!(of("MONGOHOST", &env), login("u", "p", "", ""));
        let file = "/etc/app.properties";
        let lines = [
            (file, "spring.data.mongodb.host=db"),
            (file, "spring.data.mongodb.username=u"),
            (file, "spring.data.mongodb.password=\"p\""),
            (file, "spring.data.mongodb.authentication-database=admin"),
            ("/etc/other", "spring.data.mongodb.username=x"),
            ("MONGO_USER", "y"),
        ];
        assert_eq!(of("spring.data.mongodb.host", &lines), login("u", "p", "", "admin"));
        assert_eq!(of("MONGO_HOST", &[("MONGO_HOST", "db"), ("POSTGRES_USER", "u"), ("MONGO_USER", "")]), None);
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
