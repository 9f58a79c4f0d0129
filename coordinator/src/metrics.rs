//! What a coordinator measures, in the text format of Prometheus.
//!
//! Counters and histograms are this process's own; gauges that tell of the catalog are the same at every coordinator that is
//! asked at the same time (`max by (…)`). Private sites and what is at them are not in them. `docs/metrics.md` lists all.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ocopea_catalog_db::{figures::Figures, tasks::Task};
use ocopea_protocol::{failure::FailureClass, seams::Seams, task::Outcome};
use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::Coordinator;

/// What stands in the catalog is counted no more often than this.
const COUNTED: Duration = Duration::from_secs(5);
/// Seconds from milliseconds to minutes.
const SPANS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// All that is measured.
pub struct Metrics {
    registry: Registry,
    http: HistogramVec,
    agents: HistogramVec,
    waited: HistogramVec,
    ended: IntCounterVec,
    leases_lost: IntCounter,
    hints: IntCounterVec,
    leads: IntGauge,
    bus: IntGauge,
    catalog: IntGauge,
    counted: Counted,
    last: Mutex<Option<Duration>>,
}

/// Gauges that tell of the catalog.
struct Counted {
    tasks: IntGaugeVec,
    operations: IntGaugeVec,
    hints: IntGauge,
    longest_wait: prometheus::Gauge,
    upkeep_last: GaugeVec,
    upkeep_failed: IntGaugeVec,
    saved: GaugeVec,
    reported: GaugeVec,
}

fn seconds(milliseconds: i64) -> f64 {
    // Exact until the year 287 000.
    #[expect(clippy::cast_precision_loss, reason = "it is exact for every time that a machine has")]
    let seconds = milliseconds as f64;
    seconds / 1000.0
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Nothing was measured yet.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(SPANS.to_vec()), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let made = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let counts = |name: &str, help: &str, labels: &[&str]| {
            let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let count = |name: &str, help: &str| {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let leases_lost = IntCounter::new(
            "ocopea_leases_lost_total",
            "Leases of tasks that ran out and were taken back by this coordinator",
        )?;
        registry.register(Box::new(leases_lost.clone()))?;
        let longest_wait = prometheus::Gauge::new(
            "ocopea_task_longest_wait_seconds",
            "For how long the oldest task that may be claimed waits to be",
        )?;
        registry.register(Box::new(longest_wait.clone()))?;
        let build = counts("ocopea_build_info", "1, with the program's version", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            http: histogram(
                "ocopea_http_request_duration_seconds",
                "Time until the head of an answer to a request of the API",
                &["method", "route", "status"],
            )?,
            agents: histogram(
                "ocopea_agent_request_duration_seconds",
                "Time to answer a request of an agent",
                &["kind"],
            )?,
            waited: histogram(
                "ocopea_task_wait_seconds",
                "Time from a task's being ready to its being claimed",
                &["kind"],
            )?,
            ended: counters(
                "ocopea_task_attempts_ended_total",
                "Attempts of tasks whose outcome counted: succeeded, retryable, permanent, conflict or cancelled",
                &["kind", "outcome"],
            )?,
            hints: counters(
                "ocopea_hints_published_total",
                "Hints offered to the bus: taken, or refused and offered again",
                &["outcome"],
            )?,
            leads: count("ocopea_leader", "1 at the coordinator that leads, else 0")?,
            bus: count("ocopea_bus_up", "1 while messages go out and come in, else 0")?,
            catalog: count("ocopea_catalog_up", "1 when the catalog answered the last count, else 0")?,
            counted: Counted {
                tasks: counts("ocopea_tasks", "Tasks that are not over", &["site", "state"])?,
                operations: counts("ocopea_operations", "Operations that are not over", &["kind", "state"])?,
                hints: count("ocopea_hints_waiting", "Hints that are not published yet")?,
                longest_wait,
                upkeep_last: gauges(
                    "ocopea_upkeep_last_success_timestamp_seconds",
                    "When a collection or verification of the repository last succeeded (Unix time)",
                    &["kind"],
                )?,
                upkeep_failed: counts("ocopea_upkeep_failures_since_success", "How often it failed since", &["kind"])?,
                saved: gauges(
                    "ocopea_application_last_save_timestamp_seconds",
                    "When the newest image of an application was saved (Unix time)",
                    &["site", "application"],
                )?,
                reported: gauges(
                    "ocopea_site_last_report_timestamp_seconds",
                    "When an agent of the site last reported (Unix time)",
                    &["site"],
                )?,
            },
            last: Mutex::new(None),
            leases_lost,
            registry,
        })
    }

    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        self.http.with_label_values(&[method, route, &status.to_string()]).observe(took.as_secs_f64());
    }

    pub(crate) fn agent_answered(&self, kind: &str, took: Duration) {
        self.agents.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    pub(crate) fn claimed(&self, task: &Task, now: ocopea_protocol::time::Timestamp) {
        let waited = seconds(now.0.saturating_sub(task.ready.0).max(0));
        self.waited.with_label_values(&[task.kind.as_str()]).observe(waited);
    }

    pub(crate) fn attempt_ended(&self, kind: &str, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Succeeded(_) => "succeeded",
            Outcome::Failed(failure) => match failure.class {
                FailureClass::Retryable => "retryable",
                FailureClass::Permanent => "permanent",
                FailureClass::Conflict => "conflict",
                FailureClass::Cancelled => "cancelled",
            },
        };
        self.ended.with_label_values(&[kind, outcome]).inc();
    }

    pub(crate) fn lease_lost(&self) {
        self.leases_lost.inc();
    }

    pub(crate) fn hint(&self, taken: bool) {
        self.hints.with_label_values(&[if taken { "taken" } else { "refused" }]).inc();
    }

    /// Whether the catalog is to be counted again.
    fn is_due(&self, seams: &Seams) -> bool {
        let now = seams.clock.monotonic();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.saturating_sub(last) >= COUNTED);
        if due {
            *last = Some(now);
        }
        due
    }

    fn set(&self, figures: &Figures, now: ocopea_protocol::time::Timestamp) {
        let counted = &self.counted;
        counted.tasks.reset();
        for (site, state, number) in &figures.tasks {
            let site = if site.is_empty() { "coordinator" } else { site };
            counted.tasks.with_label_values(&[site, state]).set(gauge(*number));
        }
        counted.operations.reset();
        for (kind, state, number) in &figures.operations {
            counted.operations.with_label_values(&[kind, state]).set(gauge(*number));
        }
        counted.hints.set(gauge(figures.hints));
        let wait = figures.waiting_since.map_or(0, |since| now.0.saturating_sub(since.0).max(0));
        counted.longest_wait.set(seconds(wait));
        for (kind, last, failures) in &figures.upkeep {
            if let Some(last) = last {
                counted.upkeep_last.with_label_values(&[kind]).set(seconds(last.0));
            }
            counted.upkeep_failed.with_label_values(&[kind]).set(gauge(*failures));
        }
        counted.saved.reset();
        for (site, application, at) in &figures.saved {
            counted.saved.with_label_values(&[site, application]).set(seconds(at.0));
        }
        counted.reported.reset();
        for (site, at) in &figures.reported {
            counted.reported.with_label_values(&[site]).set(at.map_or(0.0, |at| seconds(at.0)));
        }
    }

    fn text(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics can't be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

impl Coordinator {
    /// All of it as it is now.
    pub async fn measured(&self) -> String {
        let Some(metrics) = &self.metrics else { return String::new() };
        metrics.leads.set(i64::from(self.leading().is_some()));
        metrics.bus.set(i64::from(self.bus.trouble().is_none()));
        if metrics.is_due(&self.seams) {
            match self.seams.timeout(COUNTED, self.catalog.figures()).await {
                Some(Ok(figures)) => {
                    metrics.catalog.set(1);
                    metrics.set(&figures, self.seams.clock.now());
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the catalog could not be counted");
                    metrics.catalog.set(0);
                }
                None => metrics.catalog.set(0),
            }
        }
        metrics.text()
    }

    /// Notes something, where anything is measured.
    pub(crate) fn measure(&self, note: impl FnOnce(&Metrics)) {
        if let Some(metrics) = &self.metrics {
            note(metrics);
        }
    }
}
