//! All metrics with their names, in the format of Prometheus and OpenMetrics.
//!
//! Values come from the cells of the status board, so that a request waits for no server. Counters survive a restart of
//! a link, but not of the process.

use std::fmt::Error;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::status::verification::Phase;
use super::status::view::{LinkView, SpokeView, StatusView};
use super::status::{Board, SpokeCell, State};
use crate::rules::names::Direction;

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Histograms of a link's batch sizes, apply times and delays.
#[derive(Debug)]
pub(crate) struct Timings {
    batch: Histogram,
    apply: Histogram,
    delay: Histogram,
}

impl Default for Timings {
    fn default() -> Self {
        const SECONDS: [f64; 12] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0, 3_600.0];
        const CHANGES: [f64; 6] = [1.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0];
        Self { batch: Histogram::new(CHANGES), apply: Histogram::new(SECONDS), delay: Histogram::new(SECONDS) }
    }
}

impl Timings {
    /// Records applied changes: the number, the time from receipt to commit, and the time of the newest change at the
    /// source, in milliseconds since 1970.
    pub(super) fn applied(&self, changes: usize, took: Option<Duration>, wall_time: Option<i64>) {
        if changes == 0 {
            return;
        }
        self.batch.observe(changes as f64);
        if let Some(took) = took {
            self.apply.observe(took.as_secs_f64());
        }
        if let Some(made_at) = wall_time {
            let now = bson::DateTime::now().timestamp_millis();
            self.delay.observe(now.saturating_sub(made_at).max(0) as f64 / 1e3);
        }
    }
}

/// Renders all metrics of the board as text, and the number of lost log lines. Writing to a string never fails.
pub(crate) fn render(board: &Arc<Board>, lost_lines: u64) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { board: board.clone(), lost_lines }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Metrics {
    board: Arc<Board>,
    lost_lines: u64,
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let view = self.board.view();
        let mut out = Output(encoder);
        process(&mut out, &view)?;
        out.single(
            "spokesync_log_lines_lost",
            "Log lines that could not be written to their file.",
            MetricKind::Counter,
            Some(self.lost_lines as f64),
        )?;
        hub(&mut out, &view)?;
        verification(&mut out, &view)?;
        cluster(&mut out, &view)?;
        for metric in LINK_METRICS {
            metric.write(&mut out, &view)?;
        }
        for metric in SPOKE_METRICS {
            metric.write(&mut out, &view)?;
        }
        timings(&mut out, &self.board)
    }
}

/// A counter only grows; a gauge also falls.
#[derive(Clone, Copy)]
enum MetricKind {
    Counter,
    Gauge,
}

impl MetricKind {
    fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
        }
    }
}

struct Output<'e>(DescriptorEncoder<'e>);

impl Output<'_> {
    /// Writes a metric with one value per set of labels. Unknown values are left out.
    fn family<'l>(
        &mut self,
        (name, help, kind): (&str, &str, MetricKind),
        values: impl Iterator<Item = (Vec<(&'static str, &'l str)>, Option<f64>)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, kind.metric_type())?;
        for (labels, value) in values {
            let Some(value) = value else { continue };
            let mut metric = family.encode_family(&labels)?;
            match kind {
                MetricKind::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
                MetricKind::Gauge => metric.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn single(&mut self, name: &str, help: &str, kind: MetricKind, value: Option<f64>) -> Result<(), Error> {
        let Some(value) = value else { return Ok(()) };
        let mut metric = self.0.encode_descriptor(name, help, None, kind.metric_type())?;
        match kind {
            MetricKind::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
            MetricKind::Gauge => metric.encode_gauge(&value),
        }
    }
}

fn process(out: &mut Output<'_>, view: &StatusView) -> Result<(), Error> {
    let version = vec![("version", view.version)];
    let info = ("spokesync_build_info", "Version of the running program.", MetricKind::Gauge);
    out.family(info, std::iter::once((version, Some(1.0))))?;
    out.single(
        "spokesync_uptime_seconds",
        "Uptime of the process in seconds.",
        MetricKind::Gauge,
        Some(view.uptime_seconds),
    )?;
    let broken = Some(truth(view.configuration_error.is_some()));
    let help = "1 if the last reload found an invalid configuration.";
    out.single("spokesync_configuration_broken", help, MetricKind::Gauge, broken)
}

fn hub(out: &mut Output<'_>, view: &StatusView) -> Result<(), Error> {
    let hub = &view.hub;
    let is = |state: State| Some(truth(hub.state == state));
    let standstill = Some(hub.standstill_seconds.unwrap_or(0.0));
    let gauges = [
        (
            "spokesync_hub_standstill_seconds",
            "Seconds for which the hub has had changes that no majority confirms; 0 if it has none.",
            standstill,
        ),
        ("spokesync_hub_streaming", "1 if the hub's change stream is open and read.", is(State::Streaming)),
        ("spokesync_hub_halted", "1 if the hub's change stream is halted until an operator acts.", is(State::Halted)),
        ("spokesync_hub_lag_seconds", "Lag in seconds: every older change at the hub is distributed.", hub.lag_seconds),
        ("spokesync_hub_change_streams", "Number of open change streams at the hub.", Some(hub.open_streams as f64)),
    ];
    for (name, help, value) in gauges {
        out.single(name, help, MetricKind::Gauge, value)?;
    }
    let counters = [
        ("spokesync_hub_events", "Number of distributed change events of the hub.", hub.events_total),
        ("spokesync_hub_restarts", "Number of restarts of the hub's change stream after a failure.", hub.restarts),
    ];
    for (name, help, value) in counters {
        out.single(name, help, MetricKind::Counter, Some(value as f64))?;
    }
    Ok(())
}

fn verification(out: &mut Output<'_>, view: &StatusView) -> Result<(), Error> {
    let Some(last) = &view.verification else { return Ok(()) };
    let finished = last.finished_at.as_deref().and_then(|at| bson::DateTime::parse_rfc3339_str(at).ok());
    let is_done = last.state == Phase::Done;
    let gauges = [
        (
            "spokesync_verification_running",
            "1 while a verification is in progress.",
            Some(truth(last.state == Phase::Running)),
        ),
        (
            "spokesync_verification_failed",
            "1 if the last verification ended with an error, without a result.",
            Some(truth(last.state == Phase::Failed)),
        ),
        (
            "spokesync_verification_documents",
            "Number of documents compared by the last verification.",
            Some(last.documents as f64),
        ),
        (
            "spokesync_verification_differences",
            "Number of differences found by the last verification.",
            is_done.then_some(last.differences as f64),
        ),
        (
            "spokesync_verification_finished_timestamp_seconds",
            "End of the last verification, in seconds since 1970.",
            finished.map(|at| at.timestamp_millis() as f64 / 1e3),
        ),
    ];
    for (name, help, value) in gauges {
        out.single(name, help, MetricKind::Gauge, value)?;
    }
    Ok(())
}

fn cluster(out: &mut Output<'_>, view: &StatusView) -> Result<(), Error> {
    let (cluster, held) = (&view.cluster, view.own_spokes().count());
    let gauges = [
        (
            "spokesync_cluster_members",
            "Number of living processes that share the spokes, as this process sees it.",
            Some(cluster.members.len() as f64),
        ),
        (
            "spokesync_cluster_expected_members",
            "Number of processes that should be alive, by cluster.expected_members.",
            cluster.expected_members.map(|expected| expected as f64),
        ),
        (
            "spokesync_cluster_different_configurations",
            "Number of living processes whose configuration differs from this process's.",
            Some(cluster.members.iter().filter(|member| !member.has_same_configuration).count() as f64),
        ),
        (
            "spokesync_cluster_spokes_configured",
            "Number of spokes in this process's configuration.",
            Some(view.spokes.len() as f64),
        ),
        ("spokesync_cluster_spokes_held", "Number of spokes that this process runs.", Some(held as f64)),
        (
            "spokesync_cluster_last_takeover_seconds",
            "Seconds from a dead process's last sign of life to the newest takeover by this process.",
            cluster.last_takeover_seconds,
        ),
    ];
    for (name, help, value) in gauges {
        out.single(name, help, MetricKind::Gauge, value)?;
    }
    let counters = [
        (
            "spokesync_cluster_takeovers",
            "Number of spokes that this process took over from dead ones.",
            cluster.takeovers_total,
        ),
        (
            "spokesync_cluster_leases_lost",
            "Number of spokes that this process lost because the others took it for dead.",
            cluster.leases_lost_total,
        ),
    ];
    for (name, help, value) in counters {
        out.single(name, help, MetricKind::Counter, Some(value as f64))?;
    }
    Ok(())
}

struct LinkMetric {
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    value: fn(&LinkView) -> Option<f64>,
}

const LINK_METRICS: [LinkMetric; 12] = [
    LinkMetric {
        name: "spokesync_link_streaming",
        help: "1 if the link follows its change stream.",
        kind: MetricKind::Gauge,
        value: |link| Some(truth(link.state == State::Streaming)),
    },
    LinkMetric {
        name: "spokesync_link_halted",
        help: "1 if the link is halted until an operator acts.",
        kind: MetricKind::Gauge,
        value: |link| Some(truth(link.state == State::Halted)),
    },
    LinkMetric {
        name: "spokesync_link_paused",
        help: "1 if an operator paused the link.",
        kind: MetricKind::Gauge,
        value: |link| Some(truth(link.state == State::Paused)),
    },
    LinkMetric {
        name: "spokesync_link_changes",
        help: "Number of applied changes.",
        kind: MetricKind::Counter,
        value: |link| Some(link.applied_total as f64),
    },
    LinkMetric {
        name: "spokesync_link_foreign_writes",
        help: "Number of refused changes to documents of other zones.",
        kind: MetricKind::Counter,
        value: |link| Some(link.foreign_total as f64),
    },
    LinkMetric {
        name: "spokesync_link_lag_seconds",
        help: "Lag in seconds: every older change at the source is applied; 0 if no change waits.",
        kind: MetricKind::Gauge,
        value: |link| link.lag_seconds,
    },
    LinkMetric {
        name: "spokesync_link_standstill_seconds",
        help: "Seconds for which the link has waited for a server that delivers or confirms nothing; 0 if it does not.",
        kind: MetricKind::Gauge,
        value: |link| Some(link.standstill_seconds.unwrap_or(0.0)),
    },
    LinkMetric {
        name: "spokesync_link_checkpoint_age_seconds",
        help: "Age of the saved checkpoint in seconds.",
        kind: MetricKind::Gauge,
        value: |link| link.checkpoint.as_ref().and_then(|checkpoint| checkpoint.age_seconds),
    },
    LinkMetric {
        name: "spokesync_link_time_to_loss_seconds",
        help: "Seconds until the checkpoint leaves the source's oplog.",
        kind: MetricKind::Gauge,
        value: |link| link.time_to_loss_seconds,
    },
    LinkMetric {
        name: "spokesync_link_restarts",
        help: "Number of restarts of the link after a failure.",
        kind: MetricKind::Counter,
        value: |link| Some(link.restarts as f64),
    },
    LinkMetric {
        name: "spokesync_link_copied_documents",
        help: "Number of documents copied or compared in the present zone of an initial sync or a reconcile.",
        kind: MetricKind::Gauge,
        value: |link| link.copying.as_ref().map(|copying| copying.documents as f64),
    },
    LinkMetric {
        name: "spokesync_link_copied_documents_estimated",
        help: "Approximate number of documents in the present zone of an initial sync or a reconcile.",
        kind: MetricKind::Gauge,
        value: |link| Some(link.copying.as_ref()?.documents_estimated? as f64),
    },
];

impl LinkMetric {
    fn write(&self, out: &mut Output<'_>, view: &StatusView) -> Result<(), Error> {
        let links = view.own_spokes().flat_map(|spoke| {
            [(Direction::Uplink, &spoke.uplink), (Direction::Downlink, &spoke.downlink)]
                .map(|(direction, link)| (labels(&spoke.zone, direction), (self.value)(link)))
        });
        out.family((self.name, self.help, self.kind), links)
    }
}

struct SpokeMetric {
    name: &'static str,
    help: &'static str,
    value: fn(&SpokeView) -> f64,
}

const SPOKE_METRICS: [SpokeMetric; 5] = [
    SpokeMetric {
        name: "spokesync_dead_letters",
        help: "Number of changes that a destination refused and that wait for an operator.",
        value: |spoke| spoke.dead_letters as f64,
    },
    SpokeMetric {
        name: "spokesync_queue_events",
        help: "Number of change events that wait for the spoke's writer.",
        value: |spoke| spoke.queue.events as f64,
    },
    SpokeMetric {
        name: "spokesync_queue_capacity_events",
        help: "Maximum number of change events that wait for the spoke's writer.",
        value: |spoke| spoke.queue.events_capacity as f64,
    },
    SpokeMetric {
        name: "spokesync_queue_bytes",
        help: "Memory of the waiting change events in bytes.",
        value: |spoke| spoke.queue.bytes as f64,
    },
    SpokeMetric {
        name: "spokesync_queue_capacity_bytes",
        help: "Maximum memory of the waiting change events in bytes.",
        value: |spoke| spoke.queue.bytes_capacity as f64,
    },
];

impl SpokeMetric {
    fn write(&self, out: &mut Output<'_>, view: &StatusView) -> Result<(), Error> {
        let spokes = view.own_spokes().map(|spoke| (vec![("zone", spoke.zone.as_str())], Some((self.value)(spoke))));
        out.family((self.name, self.help, MetricKind::Gauge), spokes)
    }
}

/// A histogram per link: name, help and source.
type Timing = (&'static str, &'static str, fn(&Timings) -> &Histogram);

fn timings(out: &mut Output<'_>, board: &Board) -> Result<(), Error> {
    const ALL: [Timing; 3] = [
        ("spokesync_link_batch_changes", "Number of changes in a batch.", |timings| &timings.batch),
        ("spokesync_link_apply_seconds", "Seconds from receiving a batch until it is durable.", |timings| {
            &timings.apply
        }),
        (
            "spokesync_link_delay_seconds",
            "Seconds from the newest change of a batch at the source until the batch is durable at the destination.",
            |timings| &timings.delay,
        ),
    ];
    let spokes: Vec<(String, Arc<SpokeCell>)> = board.spokes().into_iter().collect();
    for (name, help, histogram) in ALL {
        let mut family = out.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (zone, cell) in &spokes {
            for direction in Direction::BOTH {
                histogram(cell.link(direction).timings()).encode(family.encode_family(&labels(zone, direction))?)?;
            }
        }
    }
    Ok(())
}

fn labels(zone: &str, direction: Direction) -> Vec<(&'static str, &str)> {
    vec![("zone", zone), ("link", direction.as_str())]
}

fn truth(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::names::Zone;

    fn rendered() -> String {
        let board = Arc::new(Board::default());
        let spoke = board.add(&Zone::new("DFW"), &[]);
        spoke.link(Direction::Uplink).received();
        spoke.link(Direction::Uplink).applied(7, 1, None, Some(bson::DateTime::now().timestamp_millis()));
        render(&board, 0).expect("a text")
    }

    #[test]
    fn every_metric_of_a_link_is_labelled_with_zone_and_link() {
        let text = rendered();
        for line in [
            "spokesync_link_changes_total{zone=\"DFW\",link=\"uplink\"} 7.0",
            "spokesync_link_foreign_writes_total{zone=\"DFW\",link=\"uplink\"} 1.0",
            "spokesync_link_streaming{zone=\"DFW\",link=\"downlink\"} 0.0",
            "spokesync_link_batch_changes_count{zone=\"DFW\",link=\"uplink\"} 1",
            "spokesync_link_apply_seconds_bucket{le=\"3600.0\",zone=\"DFW\",link=\"uplink\"} 1",
            "spokesync_dead_letters{zone=\"DFW\"} 0.0",
            "spokesync_hub_change_streams 0.0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn dashboard_and_alerts_name_only_existing_metrics() {
        let board = Arc::new(Board::default());
        let cell = board.add(&Zone::new("DFW"), &[]);
        cell.link(Direction::Uplink).begin_copying("a.b", &Zone::new("DFW"), Some(7));
        assert!(board.verification().begin());
        board.verification().end(0, None);
        board.cluster().expect(Some(2));
        let text = render(&board, 0).expect("a text");
        let known: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let mut named = 0;
        for file in ["deploy/grafana/spokesync.json", "deploy/prometheus/alerts.yml"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = std::fs::read_to_string(path).expect("it is there");
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            for name in words.filter(|word| word.starts_with("spokesync_")) {
                let endings = ["_total", "_bucket", "_sum", "_count"];
                let plain = endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
                assert!(known.contains(&plain), "{file} names {name}");
                named += 1;
            }
        }
        assert!(named > 25, "{named}");
    }

    #[test]
    fn unknown_values_are_left_out() {
        let text = rendered();
        assert!(!text.contains("spokesync_link_time_to_loss_seconds{"), "{text}");
        assert!(!text.contains("spokesync_verification"), "{text}");
    }
}
