//! Logs, ports and programs of environments, where their agents are in this process.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use ocopea_agent::{
    access::Access,
    platform::{
        interactive::{self, Interactive},
        logs::LogWish,
    },
};
use ocopea_coordinator::{
    Coordinator,
    api::{self, SiteAccess},
    sessions::Session,
};
use ocopea_protocol::{
    failure::TaskFailure,
    frames::Started,
    session::{BoxedStream, Way, Wish},
};
use tokio::{io::AsyncReadExt, sync::Notify};
use tokio_util::io::ReaderStream;

/// Bytes that an agent says of a way, at most.
const LONGEST_WAY: u64 = 64 * 1024;

/// Logs and connections of environments, through the sites' own clusters.
pub(super) struct Local {
    pub(super) sites: BTreeMap<String, Access>,
    /// Rung to have a site looked at before its time.
    pub(super) looks: BTreeMap<String, Arc<Notify>>,
}

impl Local {
    fn access(&self, site: &str) -> Result<&Access, TaskFailure> {
        self.sites.get(site).ok_or_else(|| {
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
        let lines = self.access(site)?.platform().logs(namespace, &wish).await?;
        let stream = futures::stream::unfold(lines, |mut lines| async move {
            let line = lines.recv().await?;
            let text = format!("{} {}  {}\n", line.pod, line.container, line.text);
            Some((Ok(Bytes::from(text)), lines))
        });
        Ok(Box::pin(stream))
    }

    async fn way(&self, site: &str, namespace: &str, service: &str, address: SocketAddr) -> Result<Way, TaskFailure> {
        self.access(site)?.way(namespace, service, address).await
    }

    async fn tunnel(&self, site: &str, namespace: &str, service: &str) -> Result<BoxedStream, TaskFailure> {
        Ok(Box::new(self.access(site)?.tunnel(namespace, service).await?))
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
            self.access(site)?.platform().interactive(namespace, &wish).await?;
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

    async fn way(&self, site: &str, namespace: &str, service: &str, address: SocketAddr) -> Result<Way, TaskFailure> {
        let wish = Wish::Way { namespace: namespace.to_owned(), service: service.to_owned(), address };
        let unread = |why: String| {
            let what = format!("can't connect to {service:.100} of {namespace}");
            TaskFailure::retryable("environment.way", what, why).next("see that the site's agents run: ocopea sites")
        };
        let mut told = Vec::new();
        let read = self.open(site, wish).await?.take(LONGEST_WAY).read_to_end(&mut told).await;
        read.map_err(|error| unread(error.to_string()))?;
        serde_json::from_slice(&told).map_err(|error| unread(format!("its agent's answer can't be read: {error}")))
    }

    async fn tunnel(&self, site: &str, namespace: &str, service: &str) -> Result<BoxedStream, TaskFailure> {
        let wish = Wish::Connect { namespace: namespace.to_owned(), service: service.to_owned() };
        Ok(Box::new(self.open(site, wish).await?))
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
