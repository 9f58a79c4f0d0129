//! Tokens.

use ocopea_coordinator::api::{IssuedToken, NewToken, TokenView};
use reqwest::Method;

use super::{segment, when};
use crate::{
    arguments::{Format, Tokens},
    client::{Client, Failure},
    listing::Listing,
    output::{self, line, parse_span},
};

pub(super) async fn tokens(client: &Client, format: Format, command: Option<Tokens>) -> Result<(), Failure> {
    match command {
        None => {
            let found: Vec<TokenView> = client.get("/api/v1/tokens").await?;
            let row = |t: &TokenView| {
                let state = match (t.revoked, t.expired, &t.expires) {
                    (true, ..) => "revoked".to_owned(),
                    (_, true, _) => "expired".to_owned(),
                    (_, _, Some(until)) => format!("valid until {until}"),
                    _ => "valid".to_owned(),
                };
                vec![t.id.clone(), t.name.clone(), t.scope.clone(), when(&t.created), state]
            };
            let head = ["TOKEN", "NAME", "SCOPE", "MADE", "STATE"];
            let listing = Listing { head: &head, row: &row, name: &|t| t.id.clone(), empty: "there is no token" };
            listing.print(format, &found)
        }
        Some(Tokens::Create { name, scope, expires }) => {
            let expires_s = expires.as_deref().map(parse_span).transpose()?;
            let issued: IssuedToken = client.post("/api/v1/tokens", &NewToken { name, scope, expires_s }).await?;
            match format {
                Format::Json | Format::Yaml => output::print(format, &issued)?,
                Format::Table | Format::Name => line(issued.token),
            }
            Ok(())
        }
        Some(Tokens::Revoke { id }) => {
            client.order(Method::DELETE, &format!("/api/v1/tokens/{}", segment(&id)), None).await?;
            output::remark("✓ token revoked");
            Ok(())
        }
    }
}
