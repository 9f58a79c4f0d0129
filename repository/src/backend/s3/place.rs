//! Which bucket of which service: read once from outside text, then only shown and joined.

use std::fmt;

use object_store::path::Path;
use ocopea_protocol::image::Location;
use url::Url;

use crate::error::{Error, Result};

/// Longest prefix: names below it still fit into the 1024 bytes of S3.
const LONGEST_PREFIX: usize = 256;

/// A checked place.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) endpoint: Url,
    pub(crate) region: String,
    pub(crate) bucket: String,
    prefix: String,
    path_style: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket {} at {}", self.bucket, self.endpoint.as_str().trim_end_matches('/'))
    }
}

impl Place {
    /// Checks the parts of a location.
    pub(crate) fn new(endpoint: &str, region: &str, bucket: &str, prefix: &str, path_style: bool) -> Result<Self> {
        let wrong = |what: &str, value: &str, why: &str| Error::Misuse(format!("{what} {value:.80?} {why}"));
        let url = Url::parse(endpoint).map_err(|error| wrong("the S3 endpoint", endpoint, &error.to_string()))?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.path() == "/";
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain {
            return Err(wrong("the S3 endpoint", endpoint, "is not of the form https://HOST[:PORT]"));
        }
        let word = |text: &str, more: &[u8]| {
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || more.contains(&b))
        };
        if region.is_empty() || region.len() > 64 || !word(region, b"_") {
            return Err(wrong("the region", region, "can't be one"));
        }
        let ends = |text: &str| text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !(3..=63).contains(&bucket.len()) || !word(bucket, b".") || !ends(bucket) || bucket.contains("..") {
            return Err(wrong("the bucket", bucket, "can't be one: 3 to 63 of a-z, 0-9, '-' and '.'"));
        }
        if prefix.len() > LONGEST_PREFIX || (!prefix.is_empty() && super::super::check_name(prefix).is_err()) {
            return Err(wrong("the prefix", prefix, "can't be one: parts of letters, digits and -_., divided by '/'"));
        }
        let (region, bucket, prefix) = (region.to_owned(), bucket.to_owned(), prefix.to_owned());
        Ok(Self { endpoint: url, region, bucket, prefix, path_style })
    }

    /// Whether bytes travel in the open.
    pub(crate) fn is_plain(&self) -> bool {
        self.endpoint.scheme() == "http"
    }

    /// The bucket's URL, without '/' at its end.
    pub(crate) fn bucket_url(&self) -> String {
        let (scheme, host) = (self.endpoint.scheme(), self.endpoint.host_str().unwrap_or_default());
        let port = self.endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
        let bucket = &self.bucket;
        if self.path_style {
            format!("{scheme}://{host}{port}/{bucket}")
        } else {
            format!("{scheme}://{bucket}.{host}{port}")
        }
    }

    /// The key of an object.
    pub(crate) fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    pub(crate) fn path(&self, name: &str) -> Path {
        Path::from(self.key(name))
    }

    /// The name of an object by its key.
    pub(crate) fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.prefix.is_empty() { Some(key) } else { key.strip_prefix(&self.prefix)?.strip_prefix('/') }
    }
}

/// Reads `s3://BUCKET[/PREFIX][?endpoint=URL&region=R&path-style=BOOL]`. What isn't given is taken from the
/// environment variables that all tools of S3 know (`variable` looks one up), else it is that of AWS.
pub fn parse_location(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Location> {
    // What was given isn't repeated: somebody may have put a secret into it.
    let wrong = |why: String| {
        let form = "s3://BUCKET/PREFIX[?endpoint=URL&region=R&path-style=true]";
        Error::Misuse(format!("this is no S3 repository: {why}; expected {form}"))
    };
    let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
    if url.scheme() != "s3" || !url.username().is_empty() || url.password().is_some() || url.port().is_some() {
        return Err(wrong("it is not s3:// with a bucket, or it holds more than that".to_owned()));
    }
    let bucket = url.host_str().unwrap_or_default().to_owned();
    let prefix = url.path().trim_matches('/').to_owned();
    let set = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let (mut endpoint, mut region, mut path_style) = (None, None, None);
    for (name, value) in url.query_pairs() {
        match &*name {
            "endpoint" => endpoint = Some(value.into_owned()),
            "region" => region = Some(value.into_owned()),
            "path-style" => {
                path_style = Some(value.parse().map_err(|_| wrong("path-style is true or false".to_owned()))?)
            }
            other => return Err(wrong(format!("{other:.40?} is not known"))),
        }
    }
    let region = region.or_else(|| set(&["AWS_REGION", "AWS_DEFAULT_REGION"])).unwrap_or("us-east-1".to_owned());
    let endpoint = endpoint.or_else(|| set(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    // A bucket with a dot fits no certificate as part of a host's name.
    let path_style = path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
    let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    Place::new(&endpoint, &region, &bucket, &prefix, path_style)?;
    Ok(Location::S3 { endpoint, region, bucket, prefix, path_style })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Location> {
        parse_location(text, |_| None)
    }

    #[test]
    fn a_bucket_alone_is_one_of_aws() {
        let Ok(Location::S3 { endpoint, region, bucket, prefix, path_style }) = parsed("s3://copies") else { panic!() };
        let found = (endpoint.as_str(), region.as_str(), bucket.as_str(), prefix.as_str(), path_style);
        assert_eq!(found, ("https://s3.us-east-1.amazonaws.com", "us-east-1", "copies", "", false));
        let place = Place::new(&endpoint, &region, &bucket, &prefix, path_style).unwrap();
        assert_eq!(place.bucket_url(), "https://copies.s3.us-east-1.amazonaws.com");
    }

    #[test]
    fn what_is_not_given_comes_from_the_environment() {
        let variable = |name: &str| match name {
            "AWS_REGION" => Some("eu-west-1".to_owned()),
            "AWS_ENDPOINT_URL" => Some("http://127.0.0.1:7070/".to_owned()),
            _ => None,
        };
        let location = parse_location("s3://copies/team/a/", variable).unwrap();
        let Location::S3 { endpoint, region, prefix, path_style, .. } = location else { panic!() };
        assert_eq!((endpoint.as_str(), region.as_str()), ("http://127.0.0.1:7070", "eu-west-1"));
        assert_eq!((prefix.as_str(), path_style), ("team/a", true));
        let given = parse_location("s3://copies?endpoint=https://h&region=x&path-style=false", variable).unwrap();
        let Location::S3 { endpoint, region, path_style, .. } = given else { panic!() };
        assert_eq!((endpoint.as_str(), region.as_str(), path_style), ("https://h", "x", false));
    }

    #[test]
    fn what_is_no_place_is_refused_with_what_was_expected() {
        for text in [
            "",
            "copies",
            "http://copies",
            "s3:///prefix",
            "s3://u:p@copies",
            "s3://copies:80",
            "s3://Copies_1",
            "s3://copies/a//b",
            "s3://copies/a%20b",
            "s3://copies?endpoint=ftp://x",
            "s3://copies?endpoint=https://u:p@x",
            "s3://copies?endpoint=https://x/path",
            "s3://copies?endpoint=https://x%3Fy=1",
            "s3://copies?region=",
            "s3://copies?region=a%20b",
            "s3://copies?path-style=maybe",
            "s3://copies?key=secret",
            "s3://ab",
            "s3://a..b",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
        let error = parsed("s3://copies?key=x").unwrap_err().to_string();
        assert!(error.contains("\"key\" is not known") && error.contains("s3://BUCKET/PREFIX"), "{error}");
    }

    #[test]
    fn a_key_is_the_prefix_and_the_name() {
        let place = Place::new("http://127.0.0.1:1", "us-east-1", "copies", "a/b", true).unwrap();
        assert_eq!(place.key("refs/x"), "a/b/refs/x");
        assert_eq!(place.name("a/b/refs/x"), Some("refs/x"));
        assert_eq!(place.name("a/bc/refs/x"), None);
        assert_eq!(place.to_string(), "bucket copies at http://127.0.0.1:1");
    }
}
