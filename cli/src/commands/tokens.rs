//! Tokens.

use ocopea_coordinator::api::{IssuedToken, NewToken, TokenView};
use reqwest::Method;

use super::{segment, when};
use crate::{
    arguments::{Format, Tokens},
    client::{Client, Failure},
    output::{line, list, parse_span},
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
            list(
                format,
                &found,
                &["TOKEN", "NAME", "SCOPE", "MADE", "STATE"],
                row,
                |t| t.id.clone(),
                "there is no token",
            )
        }
        Some(Tokens::Create { name, scope, expires }) => {
            let expires_s = expires.as_deref().map(parse_span).transpose()?;
            let issued: IssuedToken = client.post("/api/v1/tokens", &NewToken { name, scope, expires_s }).await?;
            line(issued.token);
            Ok(())
        }
        Some(Tokens::Revoke { id }) => {
            client.order(Method::DELETE, &format!("/api/v1/tokens/{}", segment(&id)), None).await
        }
    }
}
