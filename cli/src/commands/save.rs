//! Saves.

use ocopea_coordinator::api::{Accepted, CredentialsInput, ImageView, OperationView, SaveInput};

use crate::{
    arguments::{Format, Save, Source},
    client::{Client, Failure},
    output::{self, line, parse_time, size},
    watch,
};

pub(super) fn save_input(source: &Source) -> Result<SaveInput, Failure> {
    let wrong = || {
        Failure::usage(format!("{:?} doesn't name an application", source.application))
            .next("expected SITE/NAMESPACE or SITE/NAMESPACE?LABEL=VALUE")
    };
    let (place, selector) = match source.application.split_once('?') {
        Some((place, selector)) => (place, Some(selector.to_owned())),
        None => (source.application.as_str(), None),
    };
    let (site, namespace) = place.split_once('/').ok_or_else(wrong)?;
    if site.is_empty() || namespace.is_empty() {
        return Err(wrong());
    }
    let credentials = source
        .credentials
        .iter()
        .map(|text| {
            let parts = text.split_once('=').and_then(|(service, login)| Some((service, login.split_once(':')?)));
            let (service, (user, password)) =
                parts.ok_or_else(|| Failure::usage("--credentials expects SERVICE=USER:PASSWORD"))?;
            Ok(CredentialsInput { service: service.to_owned(), user: user.to_owned(), password: password.to_owned() })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(SaveInput {
        site: site.to_owned(),
        namespace: namespace.to_owned(),
        selector,
        without: source.without.clone(),
        credentials,
        ..SaveInput::default()
    })
}

pub(super) async fn save(client: &Client, format: Format, options: &Save) -> Result<(), Failure> {
    let mut input = save_input(&options.source)?;
    input.name = options.name.clone();
    input.comment = options.comment.clone();
    input.freeze = options.freeze;
    input.repository = options.repository.clone();
    for label in &options.labels {
        let (name, value) = label.split_once('=').unwrap_or((label.as_str(), ""));
        input.labels.insert(name.to_owned(), value.to_owned());
    }
    let accepted: Accepted = client.post("/api/v1/saves", &input).await?;
    if options.detach {
        match format {
            Format::Json | Format::Yaml => output::print(format, &accepted)?,
            Format::Table | Format::Name => line(accepted.operation),
        }
        return Ok(());
    }
    let done = watch::follow(client, &accepted.operation, format != Format::Table).await?;
    let id = done.image.clone().unwrap_or_default();
    let image: ImageView = client.get(&format!("/api/v1/images/{id}")).await?;
    match format {
        Format::Json | Format::Yaml => return output::print(format, &image),
        Format::Name => {
            line(&image.id);
            return Ok(());
        }
        Format::Table => {}
    }
    let took = took(&done);
    let (whole, new) = (size(image.bytes), size(image.new_bytes));
    line(format!("✓ image {} saved in {took}: {whole}, {new} of it new, in repository {}", image.id, image.repository));
    if let Some(skew) = image.body.as_ref().and_then(|b| b["instant"]["skew_us"].as_u64()) {
        line(format!("  snapshots opened within {} ms", skew.div_ceil(1000)));
    }
    line(format!("  show it: ocopea show {}", image.id));
    Ok(())
}

pub(super) fn took(operation: &OperationView) -> String {
    let span = operation
        .ended
        .as_deref()
        .and_then(parse_time)
        .zip(parse_time(&operation.created))
        .map_or(0, |(end, begin)| end - begin);
    format!("{}.{} s", span / 1000, span % 1000 / 100)
}
