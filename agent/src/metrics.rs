//! What an agent measures, in the text format of Prometheus. `docs/metrics.md` lists all.

use std::time::Duration;

use ocopea_protocol::{
    failure::FailureClass,
    task::{Outcome, Progress, TaskKind},
};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds from tenths to hours.
const SPANS: [f64; 10] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0];

/// All that is measured.
pub struct Metrics {
    registry: Registry,
    running: IntGaugeVec,
    took: HistogramVec,
    bytes: IntCounterVec,
    lost: IntCounter,
}

impl Metrics {
    /// Nothing was measured yet.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let running =
            IntGaugeVec::new(Opts::new("ocopea_agent_tasks_running", "Tasks that this agent works on now"), &["kind"])?;
        let took = HistogramVec::new(
            HistogramOpts::new(
                "ocopea_agent_task_duration_seconds",
                "Time from a task's being claimed to its outcome: succeeded, retryable, permanent, conflict, cancelled, lost or handed-back",
            )
            .buckets(SPANS.to_vec()),
            &["kind", "outcome"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new("ocopea_agent_bytes_total", "Raw bytes of applications that went through this agent's tasks"),
            &["kind"],
        )?;
        let lost = IntCounter::new(
            "ocopea_agent_leases_lost_total",
            "Tasks that this agent dropped because they were, or may have been, another's",
        )?;
        let build = IntGaugeVec::new(Opts::new("ocopea_build_info", "1, with the program's version"), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        registry.register(Box::new(running.clone()))?;
        registry.register(Box::new(took.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(lost.clone()))?;
        Ok(Self { registry, running, took, bytes, lost })
    }

    pub(crate) fn began(&self, kind: TaskKind) {
        self.running.with_label_values(&[kind.as_str()]).inc();
    }

    /// `outcome` is none where nothing is reported: the lease was lost, or the task handed back.
    pub(crate) fn ended(&self, kind: TaskKind, outcome: Result<&Outcome, &'static str>, took: Duration) {
        let word = match outcome {
            Ok(Outcome::Succeeded(_)) => "succeeded",
            Ok(Outcome::Failed(failure)) => match failure.class {
                FailureClass::Retryable => "retryable",
                FailureClass::Permanent => "permanent",
                FailureClass::Conflict => "conflict",
                FailureClass::Cancelled => "cancelled",
            },
            Err(word) => word,
        };
        if word == LOST {
            self.lost.inc();
        }
        self.running.with_label_values(&[kind.as_str()]).dec();
        self.took.with_label_values(&[kind.as_str(), word]).observe(took.as_secs_f64());
    }

    /// What moved between two looks at a task.
    pub(crate) fn moved(&self, kind: TaskKind, before: &Progress, now: &Progress) {
        self.bytes.with_label_values(&[kind.as_str()]).inc_by(now.bytes.saturating_sub(before.bytes));
    }

    /// All of it as it is now.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics can't be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

pub(crate) const LOST: &str = "lost";
pub(crate) const HANDED_BACK: &str = "handed-back";
