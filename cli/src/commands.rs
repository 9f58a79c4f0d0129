//! What each command does.

use std::collections::BTreeMap;

use clap::CommandFactory;
use futures::StreamExt;
use ocopea_coordinator::api::{
    Accepted, ApplicationView, CollectInput, CredentialsInput, EnvironmentView, ImageView, IssuedToken, KeyView,
    NewComment, NewKey, NewToken, OperationView, Page, Reindexed, RestoreInput, SaveInput, SiteView, TokenView,
    VerifyInput,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    arguments::{
        Arguments, Command, Format, Images, KeyCommand, Operations, RepositoryCommand, Restore, Save, Source, Tokens,
    },
    client::{self, Client, Failure},
    output::{self, ago, line, list, parse_time, size},
    terminal, up, watch,
};

/// Runs what was typed.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let format = arguments.output;
    match arguments.command {
        Command::Up(options) => return up::run(options).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "ocopea", &mut std::io::stdout());
            return Ok(());
        }
        Command::SignIn { url } => {
            let account = client::sign_in(&url).await?;
            account.store().map_err(|error| Failure::local(format!("the token can't be kept: {error}")))?;
            output::remark(format!("signed in at {}", account.url));
            return Ok(());
        }
        _ => {}
    }
    let client = Client::new(arguments.url, arguments.token)?;
    match arguments.command {
        Command::Up(_) | Command::Completions { .. } | Command::SignIn { .. } => Ok(()),
        Command::Sites => sites(&client, format).await,
        Command::Applications { site } => applications(&client, format, site).await,
        Command::Inspect(source) => inspect(&client, format, &source).await,
        Command::Save(save) => self::save(&client, format, &save).await,
        Command::Restore(restore) => self::restore(&client, format, &restore).await,
        Command::Images(query) => images(&client, format, &query).await,
        Command::Show { image } => show(&client, format, &image).await,
        Command::Label { image, labels } => label(&client, &image, &labels).await,
        Command::Comment { image, text } => {
            let path = format!("/api/v1/images/{}/comments", segment(&image));
            client.order(Method::POST, &path, to_json(&NewComment { body: text })?).await
        }
        Command::Rm { image } => {
            let path = format!("/api/v1/images/{}", segment(&image));
            let accepted: Accepted = client.ask(Method::DELETE, &path, None).await?;
            let done = watch::follow(&client, &accepted.operation, false).await?;
            let bytes = done.result.as_ref().and_then(|r| r["bytes"].as_u64()).unwrap_or(0);
            output::remark(format!("✓ deleted; {} can be reclaimed: ocopea repository collect", size(bytes)));
            Ok(())
        }
        Command::Environments => environments(&client, format).await,
        Command::Logs { environment, component, follow } => logs(&client, &environment, component, follow).await,
        Command::Exec { environment, component, command } => {
            let path = format!("/api/v1/environments/{}/exec", segment(&environment));
            match terminal::exec(&client, &path, component.as_deref(), &command).await? {
                0 => Ok(()),
                status => Err(Failure { status, ..Failure::local("") }),
            }
        }
        Command::Connect { environment, service, port } => connect(&client, &environment, &service, port).await,
        Command::Remove { environment } => {
            let path = format!("/api/v1/environments/{}", segment(&environment));
            let accepted: Accepted = client.ask(Method::DELETE, &path, None).await?;
            watch::follow(&client, &accepted.operation, false).await?;
            output::remark(format!("✓ environment {environment} removed"));
            Ok(())
        }
        Command::Operations { command } => operations(&client, format, command).await,
        Command::Cancel { operation } => {
            client.order(Method::POST, &format!("/api/v1/operations/{}/cancel", segment(&operation)), None).await?;
            match watch::follow(&client, &operation, false).await {
                Err(failure) if failure.status == 1 => {
                    output::remark("✓ cancelled; what it had made was taken back");
                    Ok(())
                }
                other => other.map(drop),
            }
        }
        Command::Repository { command } => repository(&client, format, command).await,
        Command::Tokens { command } => tokens(&client, format, command).await,
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Option<Value>, Failure> {
    serde_json::to_value(value).map(Some).map_err(|error| Failure::local(error.to_string()))
}

/// A name as one part of a path.
fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn now_ms() -> i64 {
    ocopea_protocol::seams::Seams::real(tokio_util::task::TaskTracker::new()).clock.now().0
}

fn when(text: &str) -> String {
    parse_time(text).map_or_else(|| text.to_owned(), |then| ago(now_ms(), then))
}

async fn sites(client: &Client, format: Format) -> Result<(), Failure> {
    let sites: Vec<SiteView> = client.get("/api/v1/sites").await?;
    let row = |site: &SiteView| {
        let report = site.report.as_ref();
        let text = |field: &str| report.and_then(|r| r[field].as_str()).unwrap_or("-").to_owned();
        let kinds = report
            .and_then(|r| r["data_kinds"].as_array())
            .map_or_else(String::new, |kinds| kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
        let age = site.age_s.map_or_else(|| "-".to_owned(), |age| format!("{age} s"));
        vec![site.name.clone(), site.state.clone(), text("platform"), kinds, text("registry"), age, site.why.clone()]
    };
    let head = ["SITE", "STATE", "PLATFORM", "DATA", "REGISTRY", "REPORTED", "MISSING"];
    list(format, &sites, &head, row, |site| site.name.clone(), "no site is configured")
}

async fn applications(client: &Client, format: Format, site: Option<String>) -> Result<(), Failure> {
    let mut found: Vec<ApplicationView> = client.get("/api/v1/applications").await?;
    found.retain(|application| site.as_ref().is_none_or(|site| *site == application.site));
    let row = |a: &ApplicationView| {
        let components = format!("{} container images, {} workloads", a.containers, a.workloads);
        let mut data = a.data.clone();
        if a.claimed_bytes > 0 {
            data.push(format!("{} of volumes", size(a.claimed_bytes)));
        }
        let saved = a.saved.as_deref().map_or_else(|| "never".to_owned(), when);
        vec![a.site.clone(), a.application.clone(), components, data.join(", "), saved]
    };
    let head = ["SITE", "APPLICATION", "COMPONENTS", "DATA", "SAVED"];
    list(format, &found, &head, row, |a| format!("{}/{}", a.site, a.application), "nothing runs at the sites")
}

fn save_input(source: &Source) -> Result<SaveInput, Failure> {
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

async fn inspect(client: &Client, format: Format, source: &Source) -> Result<(), Failure> {
    let accepted: Accepted = client.post("/api/v1/inspections", &save_input(source)?).await?;
    let done = watch::follow(client, &accepted.operation, true).await?;
    let result = done.result.unwrap_or_default();
    let inventory = &result["Inspected"];
    if format != Format::Table {
        return output::print(format, inventory);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line(format!("{}   Kubernetes {}", text(&inventory["application"]), text(&inventory["kubernetes"])));
    let objects = inventory["objects"].as_array().map_or(0, Vec::len);
    line(format!("  config      {objects} objects, {}", size(inventory["config_bytes"].as_u64().unwrap_or(0))));
    for c in inventory["containers"].as_array().into_iter().flatten() {
        let tag = c["tag"].as_str().map_or_else(String::new, |tag| format!(":{tag}"));
        line(format!(
            "  container   {:<20} {}{tag}@{:.19}…",
            text(&c["name"]),
            text(&c["repository"]),
            text(&c["digest"])
        ));
    }
    for d in inventory["data"].as_array().into_iter().flatten() {
        let bytes = d["bytes"].as_u64().map_or_else(|| "size unknown".to_owned(), size);
        let streams = d["streams"].as_u64().map_or_else(String::new, |n| format!(", {n} streams"));
        let (level, why) = (text(&d["consistency"]["level"]), text(&d["consistency"]["why"]));
        line(format!(
            "  data        {:<20} {} {}   {bytes}{streams}   {level} {why}",
            text(&d["name"]),
            text(&d["kind"]),
            text(&d["version"])
        ));
        for b in d["bindings"].as_array().into_iter().flatten() {
            line(format!(
                "              named by {}/{} in {}",
                text(&b["object"]["kind"]).to_lowercase(),
                text(&b["object"]["name"]),
                text(&b["path"])
            ));
        }
    }
    let data = inventory["data"].as_array().into_iter().flatten();
    let rights = data.flat_map(|d| d["rights"].as_array().into_iter().flatten());
    for gap in inventory["gaps"].as_array().into_iter().flatten().chain(rights) {
        let word = if gap["blocking"].as_bool() == Some(true) { "REFUSED   " } else { "not saved " };
        line(format!("  {word}  {}: {}", text(&gap["what"]), text(&gap["why"])));
        if let Some(next) = gap["next"].as_str().filter(|next| !next.is_empty()) {
            line(format!("              next: {next}"));
        }
    }
    Ok(())
}

async fn save(client: &Client, format: Format, options: &Save) -> Result<(), Failure> {
    let mut input = save_input(&options.source)?;
    input.name = options.name.clone();
    input.comment = options.comment.clone();
    input.freeze = options.freeze;
    for label in &options.labels {
        let (name, value) = label.split_once('=').unwrap_or((label.as_str(), ""));
        input.labels.insert(name.to_owned(), value.to_owned());
    }
    let accepted: Accepted = client.post("/api/v1/saves", &input).await?;
    if options.detach {
        line(accepted.operation);
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
    line(format!("✓ image {} saved in {took}: {}, {} of it new", image.id, size(image.bytes), size(image.new_bytes)));
    if let Some(skew) = image.body.as_ref().and_then(|b| b["instant"]["skew_us"].as_u64()) {
        line(format!("  snapshots opened within {} ms", skew.div_ceil(1000)));
    }
    line(format!("  show it: ocopea show {}", image.id));
    Ok(())
}

fn took(operation: &OperationView) -> String {
    let span = operation
        .ended
        .as_deref()
        .and_then(parse_time)
        .zip(parse_time(&operation.created))
        .map_or(0, |(end, begin)| end - begin);
    format!("{}.{} s", span / 1000, span % 1000 / 100)
}

async fn restore(client: &Client, format: Format, options: &Restore) -> Result<(), Failure> {
    let mut versions = BTreeMap::new();
    for choice in &options.versions {
        let (component, version) = choice
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--set {choice}: expected COMPONENT=TAG or COMPONENT=@DIGEST")))?;
        versions.insert(component.to_owned(), version.to_owned());
    }
    let input = RestoreInput {
        image: options.image.clone(),
        site: options.site.clone(),
        name: options.name.clone(),
        versions,
        dry_run: options.dry_run,
        approve: options.approve.clone(),
    };
    let accepted: Accepted = client.post("/api/v1/restores", &input).await?;
    if options.detach {
        line(accepted.operation);
        return Ok(());
    }
    let quiet = options.dry_run || format != Format::Table;
    let done = watch::follow(client, &accepted.operation, quiet).await?;
    if options.dry_run {
        let plan = done.result.unwrap_or_default();
        return if format == Format::Table { print_plan(&plan) } else { output::print(format, &plan) };
    }
    let environment: EnvironmentView = client.get(&format!("/api/v1/environments/{}", segment(&options.name))).await?;
    match format {
        Format::Json | Format::Yaml => output::print(format, &environment),
        Format::Name => {
            line(&environment.name);
            Ok(())
        }
        Format::Table => {
            line(format!("✓ environment {} runs at {} after {}", environment.name, environment.site, took(&done)));
            match &environment.url {
                Some(url) => line(format!("  open   {url}")),
                None => line(format!("  open   ocopea connect {} SERVICE", environment.name)),
            }
            line(format!("  logs   ocopea logs {} -f", environment.name));
            Ok(())
        }
    }
}

fn print_plan(plan: &Value) -> Result<(), Failure> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for step in plan["steps"].as_array().into_iter().flatten() {
        let why = match text(&step["why"]) {
            why if why.is_empty() => why,
            why => format!("   ({why})"),
        };
        line(
            format!("{:<8} {}   {}{why}", text(&step["action"]), text(&step["what"]), text(&step["detail"])).trim_end(),
        );
    }
    for notice in plan["notices"].as_array().into_iter().flatten() {
        line(format!("notice   {}", text(notice)));
    }
    let refusals: Vec<&Value> = plan["refusals"].as_array().into_iter().flatten().collect();
    for refusal in &refusals {
        line(format!(
            "refused  {}: needs {}, found: {}",
            text(&refusal["what"]),
            text(&refusal["needed"]),
            text(&refusal["found"])
        ));
        line(format!("         next: {}", text(&refusal["next"])));
    }
    line(format!("plan {}", text(&plan["digest"])));
    if refusals.is_empty() {
        line(format!(
            "nothing was changed. Run again with --approve {} to execute exactly this.",
            text(&plan["digest"])
        ));
        return Ok(());
    }
    Err(Failure { status: 4, ..Failure::local("this plan can't be executed") })
}

async fn images(client: &Client, format: Format, query: &Images) -> Result<(), Failure> {
    let mut parameters: Vec<(&str, String)> = Vec::new();
    if !query.words.is_empty() {
        parameters.push(("q", query.words.join(" ")));
    }
    for (name, value) in [("label", &query.label), ("application", &query.application), ("by", &query.by)] {
        if let Some(value) = value {
            parameters.push((name, value.clone()));
        }
    }
    for (name, span) in [("since_ms", &query.since), ("until_ms", &query.before)] {
        if let Some(span) = span {
            let seconds = i64::try_from(output::parse_span(span)?).unwrap_or(i64::MAX / 1000);
            parameters.push((name, (now_ms() - seconds * 1000).to_string()));
        }
    }
    let mut all: Vec<ImageView> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut text: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
        text.extend(cursor.map(|cursor| format!("cursor={cursor}")));
        let page: Page<ImageView> = client.get(&format!("/api/v1/images?{}", text.join("&"))).await?;
        all.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    let row = |image: &ImageView| {
        let labels: Vec<String> = image.labels.iter().map(|(l, v)| format!("{l}={v}")).collect();
        vec![
            image.id.clone(),
            image.name.clone(),
            image.application.clone(),
            labels.join(" "),
            image.creator.clone(),
            when(&image.created),
            format!("{} / {}", size(image.bytes), size(image.new_bytes)),
        ]
    };
    let head = ["IMAGE", "NAME", "APPLICATION", "LABELS", "BY", "SAVED", "SIZE / NEW"];
    list(
        format,
        &all,
        &head,
        row,
        |image| image.id.clone(),
        "no image fits; make one: ocopea save SITE/NAMESPACE --name NAME",
    )
}

async fn show(client: &Client, format: Format, image: &str) -> Result<(), Failure> {
    let image: ImageView = client.get(&format!("/api/v1/images/{}", segment(image))).await?;
    if format != Format::Table {
        return output::print(format, &image);
    }
    let body = image.body.clone().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line(format!("{}   {}", image.name, image.id));
    line(format!(
        "  saved       {} by {} from {}/{}",
        image.created,
        image.creator,
        image.site,
        text(&body["namespace"])
    ));
    if !image.comment.is_empty() {
        line(format!("  comment     {}", image.comment));
    }
    for (label, value) in &image.labels {
        line(format!("  label       {label}={value}"));
    }
    line(format!("  record      {}", image.record));
    line(format!("  size        {}, {} of it new", size(image.bytes), size(image.new_bytes)));
    if let Some(from) = body["lineage"]["restored_from"].as_str() {
        line(format!("  made from   {from}"));
    }
    if let Some(skew) = body["instant"]["skew_us"].as_u64() {
        line(format!("  instant     all snapshots within {} ms", skew.div_ceil(1000)));
    }
    for component in body["components"].as_array().into_iter().flatten() {
        let (name, bytes) = (text(&component["name"]), component["bytes"].as_u64().unwrap_or(0));
        let body = &component["body"];
        if let Some(container) = body.get("container") {
            line(format!("  container   {name:<20} {:>9}  {}", size(bytes), text(&container["found"]["digest"])));
        } else if let Some(config) = body.get("config") {
            line(format!("  config      {:<20} {:>9}  {} objects", name, size(bytes), config["objects"]));
        } else if let Some(data) = body.get("data") {
            let consistency = &data["consistency"];
            line(format!(
                "  data        {name:<20} {:>9}  {} {}   {} {}",
                size(bytes),
                text(&data["found"]["kind"]),
                text(&data["version"]),
                text(&consistency["level"]),
                text(&consistency["why"])
            ));
            for stream in data["streams"].as_array().into_iter().flatten() {
                line(format!(
                    "                {:<32} {:>10} {:<10} {:>9}  {:.12}…",
                    text(&stream["name"]),
                    stream["items"],
                    text(&stream["unit"]),
                    size(stream["bytes"].as_u64().unwrap_or(0)),
                    text(&stream["content"])
                ));
            }
        }
    }
    for left in body["left_out"].as_array().into_iter().flatten() {
        line(format!("  left out    {}: {}", text(&left["what"]), text(&left["why"])));
    }
    for comment in &image.comments {
        line(format!("  {} {}: {}", comment.at, comment.author, comment.body));
    }
    Ok(())
}

async fn label(client: &Client, image: &str, labels: &[String]) -> Result<(), Failure> {
    let mut changes = BTreeMap::new();
    for label in labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((name, value)), _) => changes.insert(name.to_owned(), Some(value.to_owned())),
            (None, Some(name)) => changes.insert(name.to_owned(), None),
            (None, None) => {
                return Err(Failure::usage(format!("{label:?}: expected NAME=VALUE, or NAME- to take it away")));
            }
        };
    }
    client
        .order(Method::PATCH, &format!("/api/v1/images/{}/labels", segment(image)), Some(json!({"labels": changes})))
        .await
}

async fn environments(client: &Client, format: Format) -> Result<(), Failure> {
    let found: Vec<EnvironmentView> = client.get("/api/v1/environments").await?;
    let row = |e: &EnvironmentView| {
        vec![
            e.name.clone(),
            e.site.clone(),
            e.state.clone(),
            e.image.clone(),
            e.owner.clone(),
            when(&e.created),
            e.url.clone().unwrap_or_default(),
        ]
    };
    let head = ["ENVIRONMENT", "SITE", "STATE", "IMAGE", "OWNER", "MADE", "URL"];
    list(
        format,
        &found,
        &head,
        row,
        |e| e.name.clone(),
        "there is no environment; make one: ocopea restore IMAGE --site SITE --as NAME",
    )
}

async fn logs(client: &Client, environment: &str, component: Option<String>, follow: bool) -> Result<(), Failure> {
    let mut path = format!("/api/v1/environments/{}/logs?follow={follow}", segment(environment));
    if let Some(component) = component {
        path.push_str(&format!("&component={}", segment(&component)));
    }
    let stream = client.stream(&path).await?;
    futures::pin_mut!(stream);
    while let Some(chunk) = stream.next().await {
        use std::io::Write;
        if std::io::stdout().write_all(&chunk?).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn connect(client: &Client, environment: &str, service: &str, port: u16) -> Result<(), Failure> {
    let path = format!("/api/v1/environments/{}/connections/{}?port={port}", segment(environment), segment(service));
    let stream = client.stream(&path).await?;
    futures::pin_mut!(stream);
    let mut first = Vec::new();
    while !first.contains(&b'\n') {
        match stream.next().await {
            Some(chunk) => first.extend_from_slice(&chunk?),
            None => return Err(Failure::local("the connection was closed at once")),
        }
    }
    let open: ocopea_coordinator::api::Connection = serde_json::from_slice(first.trim_ascii_end())
        .map_err(|error| Failure::local(format!("the coordinator's answer can't be read: {error}")))?;
    line(&open.connection);
    output::remark(format!("listening at {} until interrupted (Ctrl-C)", open.address));
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = stream.next() => Err(Failure { status: 6, ..Failure::local("the coordinator closed the connection") }),
    }
}

async fn operations(client: &Client, format: Format, command: Option<Operations>) -> Result<(), Failure> {
    match command {
        None => {
            let page: Page<OperationView> = client.get("/api/v1/operations?limit=100").await?;
            let row = |o: &OperationView| {
                let cause = o.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or_default();
                vec![
                    o.id.clone(),
                    o.title.clone(),
                    o.state.clone(),
                    o.creator.clone(),
                    when(&o.created),
                    cause.chars().take(80).collect(),
                ]
            };
            let head = ["OPERATION", "WHAT", "STATE", "BY", "BEGAN", "WHY"];
            list(format, &page.items, &head, row, |o| o.id.clone(), "nothing was done yet")
        }
        Some(Operations::Show { id }) => {
            let operation: OperationView = client.get(&format!("/api/v1/operations/{}", segment(&id))).await?;
            if format != Format::Table {
                return output::print(format, &operation);
            }
            line(format!("{}   {}   {}", operation.title, operation.state, operation.id));
            for task in &operation.tasks {
                let failure = task.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or_default();
                line(format!(
                    "  {:<28} {:<10} attempt {} of {}  {failure}",
                    task.label, task.state, task.attempt, task.most_attempts
                ));
            }
            Ok(())
        }
        Some(Operations::Watch { id }) => {
            let done = watch::follow(client, &id, format != Format::Table).await?;
            if matches!(format, Format::Json | Format::Yaml) { output::print(format, &done) } else { Ok(()) }
        }
    }
}

async fn repository(client: &Client, format: Format, command: RepositoryCommand) -> Result<(), Failure> {
    match command {
        RepositoryCommand::Verify { image } => {
            let accepted: Accepted = client.post("/api/v1/repository/verifications", &VerifyInput { image }).await?;
            let done = watch::follow(client, &accepted.operation, true).await?;
            let report = done.result.unwrap_or_default();
            if matches!(format, Format::Json | Format::Yaml) {
                output::print(format, &report)?;
            } else {
                line(format!(
                    "{} images, {} objects, {} read back",
                    report["images"],
                    report["blobs"],
                    size(report["bytes"].as_u64().unwrap_or(0))
                ));
            }
            let broken: Vec<&Value> = report["broken"].as_array().into_iter().flatten().collect();
            for one in &broken {
                let images: Vec<&str> =
                    one["images"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                line(format!(
                    "broken   {}: {}; affects {}",
                    one["object"].as_str().unwrap_or_default(),
                    one["why"].as_str().unwrap_or_default(),
                    images.join(", ")
                ));
            }
            if broken.is_empty() {
                return Ok(());
            }
            Err(Failure::local(format!("{} objects of the repository are broken", broken.len()))
                .next("restore them from a copy of the repository, or delete the affected images and save again"))
        }
        RepositoryCommand::Key { command } => keys(client, format, command).await,
        RepositoryCommand::Collect { grace } => {
            let grace_s = output::parse_span(&grace)?;
            let accepted: Accepted = client.post("/api/v1/repository/collections", &CollectInput { grace_s }).await?;
            let done = watch::follow(client, &accepted.operation, true).await?;
            let report = done.result.unwrap_or_default();
            if matches!(format, Format::Json | Format::Yaml) {
                return output::print(format, &report);
            }
            let number = |field: &str| report[field].as_u64().unwrap_or(0);
            line(format!(
                "reclaimed {} ({} objects); {} more found dead, deleted by a collection after the grace time; {} live",
                size(number("deleted_bytes")),
                number("deleted"),
                size(number("condemned_bytes")),
                size(number("live_bytes"))
            ));
            Ok(())
        }
        RepositoryCommand::Reindex => {
            let found: Reindexed = client.ask(Method::POST, "/api/v1/repository/reindexes", Some(json!({}))).await?;
            line(format!("{} images in the repository, {} of them new to the catalog", found.images, found.added));
            Ok(())
        }
    }
}

async fn tokens(client: &Client, format: Format, command: Option<Tokens>) -> Result<(), Failure> {
    match command {
        None => {
            let found: Vec<TokenView> = client.get("/api/v1/tokens").await?;
            let row = |t: &TokenView| {
                let state = if t.revoked { "revoked" } else { "valid" };
                vec![t.id.clone(), t.name.clone(), t.scope.clone(), when(&t.created), state.to_owned()]
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
        Some(Tokens::Create { name, scope }) => {
            let issued: IssuedToken = client.post("/api/v1/tokens", &NewToken { name, scope }).await?;
            line(issued.token);
            Ok(())
        }
        Some(Tokens::Revoke { id }) => {
            client.order(Method::DELETE, &format!("/api/v1/tokens/{}", segment(&id)), None).await
        }
    }
}

async fn keys(client: &Client, format: Format, command: KeyCommand) -> Result<(), Failure> {
    const PATH: &str = "/api/v1/repository/keys";
    let changes = !matches!(command, KeyCommand::List);
    let keys: Vec<KeyView> = match command {
        KeyCommand::List => client.get(PATH).await?,
        KeyCommand::Add => client.post(PATH, &NewKey { rotate: false }).await?,
        KeyCommand::Rotate => client.post(PATH, &NewKey { rotate: true }).await?,
        KeyCommand::Remove { id } => client.ask(Method::DELETE, &format!("{PATH}/{}", segment(&id)), None).await?,
    };
    let row = |key: &KeyView| vec![key.id.clone(), if key.current { "current".to_owned() } else { String::new() }];
    list(format, &keys, &["KEY", ""], row, |key| key.id.clone(), "there is no key")?;
    if changes {
        output::remark("the key file has changed: back it up now, beside the coordinator's data directory");
    }
    Ok(())
}
