//! Where a broker is, and what it takes to connect there.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use url::Url;

use crate::secret::Secret;

/// A broker's place: `amqps://HOST[:PORT]/VHOST`, or `amqp://` on the way of one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// A name, or an address (IPv6 without brackets).
    pub host: String,
    /// 5671 with TLS, 5672 without, unless given.
    pub port: u16,
    /// The virtual host; `/` unless given.
    pub vhost: String,
}

/// A text that is no broker's place, or settings that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}; {next}")]
pub struct InvalidSettings {
    /// What was to be done.
    pub what: &'static str,
    /// What is wrong.
    pub why: String,
    /// What to do.
    pub next: &'static str,
}

const EXPECTED: &str = "amqps://HOST:PORT/VHOST is expected";

fn refused(why: impl Into<String>) -> InvalidSettings {
    InvalidSettings { what: "not a broker's address", why: why.into(), next: EXPECTED }
}

/// `%2f` and the like.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

impl FromStr for Address {
    type Err = InvalidSettings;

    /// The text isn't repeated in errors: somebody may have put a password into it.
    fn from_str(text: &str) -> Result<Self, InvalidSettings> {
        if text.len() > 1024 {
            return Err(refused("it has more than 1024 bytes"));
        }
        let url = Url::parse(text).map_err(|error| refused(error.to_string()))?;
        let tls = match url.scheme() {
            "amqps" => true,
            "amqp" => false,
            other => return Err(refused(format!("it begins with {other}://"))),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("user and password are given apart from it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("nothing may follow the virtual host"));
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refused("it names no host"));
        }
        let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
            "" => "/".to_owned(),
            path if path.contains('/') => return Err(refused("a / in the virtual host is written %2f")),
            path => decoded(path).ok_or_else(|| refused("its virtual host can't be read"))?,
        };
        if vhost.len() > 255 || vhost.chars().any(char::is_control) {
            return Err(refused("its virtual host has more than 255 bytes, or control characters"));
        }
        Ok(Self { tls, host, port: url.port().unwrap_or(if tls { 5671 } else { 5672 }), vhost })
    }
}

impl Address {
    /// Whether what is sent there stays on this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Without the virtual host, as people look for it in logs.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// What one end of the bus connects by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub address: Address,
    /// The broker's user.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Certificates (PEM) that the broker's is checked against, instead of the system's. TLS is always verified.
    pub certificates: Option<String>,
    /// Lets a connection without TLS leave this machine.
    pub plain_allowed: bool,
    /// What the connection is called in the broker's lists, at most 100 bytes.
    pub name: String,
    /// A connection that was silent for twice as long is given up. Whole seconds, 1 to 60.
    pub heartbeat: Duration,
    /// How long connecting may take, and how long one act with the broker.
    pub limit: Duration,
}

impl Settings {
    /// The usual ones.
    pub fn new(address: Address, user: impl Into<String>, password: Secret) -> Self {
        Self {
            address,
            user: user.into(),
            password,
            certificates: None,
            plain_allowed: false,
            name: "ocopea".to_owned(),
            heartbeat: Duration::from_secs(10),
            limit: Duration::from_secs(10),
        }
    }

    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        let refused =
            |why: String, next| Err(InvalidSettings { what: "can't use these settings of a broker", why, next });
        if !self.address.tls && !self.plain_allowed && !self.address.is_loopback() {
            return refused(
                format!("passwords would go to {} in the clear", self.address),
                "use amqps://, or allow it where the way is your own",
            );
        }
        if self.user.is_empty() || self.user.len() > 255 {
            return refused("a user's name has 1 to 255 bytes".to_owned(), "name the user");
        }
        if self.name.len() > 100 {
            return refused("the connection's name has more than 100 bytes".to_owned(), "shorten it");
        }
        if !(1..=60).contains(&self.heartbeat.as_secs()) {
            return refused("heartbeats come every 1 to 60 seconds".to_owned(), "10 is a good number");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_what_is_usual() {
        for (text, tls, host, port, vhost) in [
            ("amqps://rabbit.example", true, "rabbit.example", 5671, "/"),
            ("amqps://rabbit.example/", true, "rabbit.example", 5671, "/"),
            ("amqp://127.0.0.1:1234/ocopea", false, "127.0.0.1", 1234, "ocopea"),
            ("amqp://[::1]/a%2fb", false, "::1", 5672, "a/b"),
        ] {
            let expected = Address { tls, host: host.to_owned(), port, vhost: vhost.to_owned() };
            assert_eq!(text.parse::<Address>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for text in [
            "",
            "rabbit",
            "http://rabbit",
            "amqp://user:hunter2@rabbit",
            "amqp:///vhost",
            "amqp://rabbit/a/b",
            "amqp://rabbit/%zz",
            "amqp://rabbit/%ff",
            "amqp://rabbit/v?heartbeat=0",
            "amqp://rabbit/v#x",
            "amqp://rabbit:99999/v",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn passwords_dont_leave_the_machine_in_the_clear_unless_allowed() {
        let settings = |text: &str| Settings::new(text.parse().unwrap(), "user", Secret::new("p"));
        assert!(settings("amqp://rabbit.example").check().is_err());
        assert!(settings("amqps://rabbit.example").check().is_ok());
        for own in ["amqp://localhost", "amqp://127.0.0.2", "amqp://[::1]"] {
            assert!(settings(own).check().is_ok(), "{own}");
        }
        let mut allowed = settings("amqp://rabbit.example");
        allowed.plain_allowed = true;
        assert!(allowed.check().is_ok());
    }
}
