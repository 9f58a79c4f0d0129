//! Logs, ports and programs of environments, where their agents are in this process.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use ocopea_agent::{
    access::Access,
    platform::{
        Platform,
        interactive::{self, Interactive},
        logs::LogWish,
    },
};
use ocopea_coordinator::{
    Coordinator,
    api::{self, OpenConnection, SiteAccess},
    sessions::Session,
};
use ocopea_protocol::{failure::TaskFailure, frames::Started, session::Wish};
use tokio::sync::Notify;
use tokio_util::io::ReaderStream;

/// Logs and ports of environments, through the sites' own clusters.
pub(super) struct Local {
    pub(super) platforms: BTreeMap<String, Platform>,
    /// Rung to have a site looked at before its time.
    pub(super) looks: BTreeMap<String, Arc<Notify>>,
}

impl Local {
    fn platform(&self, site: &str) -> Result<&Platform, TaskFailure> {
        self.platforms.get(site).ok_or_else(|| {
            TaskFailure::permanent(
                "site.absent",
                format!("can't reach site {site}"),
                "this process has no agent for it",
            )
            .next("start with --site NAME=CONTEXT")
        })
    }
}

#[async_trait]
impl SiteAccess for Local {
    fn look_again(&self, site: &str) -> bool {
        self.looks.get(site).inspect(|look| look.notify_one()).is_some()
    }

    async fn logs(
        &self,
        site: &str,
        namespace: &str,
        component: Option<&str>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        let wish = LogWish { component: component.map(str::to_owned), follow, tail: None };
        let lines = self.platform(site)?.logs(namespace, &wish).await?;
        let stream = futures::stream::unfold(lines, |mut lines| async move {
            let line = lines.recv().await?;
            let text = format!("{} {}  {}\n", line.pod, line.container, line.text);
            Some((Ok(Bytes::from(text)), lines))
        });
        Ok(Box::pin(stream))
    }

    async fn connect(
        &self,
        site: &str,
        namespace: &str,
        service: &str,
        port: u16,
    ) -> Result<OpenConnection, TaskFailure> {
        let namespace = namespace.parse().map_err(|error| {
            TaskFailure::permanent("environment.name", format!("can't connect to {service} of {namespace}"), error)
        })?;
        let open = Access::new(self.platform(site)?.clone()).connect(&namespace, service, port).await?;
        Ok(OpenConnection {
            connection: api::Connection { address: open.address.to_string(), connection: open.uri.reveal().to_owned() },
            guard: Box::new(open),
        })
    }

    async fn exec(
        &self,
        site: &str,
        namespace: &str,
        query: &api::exec::ExecQuery,
        command: Vec<String>,
    ) -> Result<api::exec::Program, TaskFailure> {
        let wish =
            interactive::Wish { component: query.component.clone(), command, stdin: query.stdin, tty: query.tty };
        let Interactive { input, output, errors, size, ended } =
            self.platform(site)?.interactive(namespace, &wish).await?;
        Ok(api::exec::Program::Here(Started { input, output, errors, size, ended }))
    }
}

/// Through agents elsewhere: they dial out, and are invited to a session.
pub(super) struct Elsewhere {
    pub(super) coordinator: Arc<Coordinator>,
}

impl Elsewhere {
    async fn open(&self, site: &str, wish: Wish) -> Result<Session, TaskFailure> {
        let found = self.coordinator.catalog.site(site).await.map_err(|error| {
            TaskFailure::retryable("site.catalog", format!("can't reach site {site}"), error).next("try again")
        })?;
        self.coordinator.open_session(found.id, site, wish).await
    }
}

#[async_trait]
impl SiteAccess for Elsewhere {
    fn look_again(&self, _: &str) -> bool {
        false
    }

    async fn logs(
        &self,
        site: &str,
        namespace: &str,
        component: Option<&str>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        let (namespace, component) = (namespace.to_owned(), component.map(str::to_owned));
        let session = self.open(site, Wish::Logs { namespace, component, follow }).await?;
        Ok(Box::pin(ReaderStream::new(session)))
    }

    async fn connect(
        &self,
        site: &str,
        namespace: &str,
        service: &str,
        port: u16,
    ) -> Result<OpenConnection, TaskFailure> {
        Err(TaskFailure::permanent(
            "site.elsewhere",
            format!("can't open a connection at site {site}"),
            "its agents are elsewhere, and a connection would end at the coordinator's machine, not at yours",
        )
        .next(format!("beside that cluster: kubectl -n {namespace} port-forward service/{service} {port}:PORT")))
    }

    async fn exec(
        &self,
        site: &str,
        namespace: &str,
        query: &api::exec::ExecQuery,
        command: Vec<String>,
    ) -> Result<api::exec::Program, TaskFailure> {
        let wish = Wish::Exec {
            namespace: namespace.to_owned(),
            component: query.component.clone(),
            command,
            stdin: query.stdin,
            tty: query.tty,
        };
        Ok(api::exec::Program::Elsewhere(Box::new(self.open(site, wish).await?)))
    }
}
