//! Micro-benchmarks inside the guest: what the layers under the kernel cost.
//!
//! Each figure is the median of several repetitions; all repetitions are reported beside it.

pub mod disk;
pub mod micro;

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::helper;
use crate::init::facts;
use crate::net::bulk;
use crate::orders::{Order, OrderError};

/// The middle of some values (of an even number, the lower of the two middle ones); 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0.0)
}

/// Results by name: the medians, and all repetitions under `all`.
#[derive(Default)]
pub struct Results {
    medians: Map<String, Value>,
    all: Map<String, Value>,
}

impl Results {
    /// Adds a figure.
    pub fn add(&mut self, name: &str, values: &[f64]) {
        // A thousandth is far below the noise and keeps the lines short.
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        self.medians
            .insert(name.into(), round(median(values)).into());
        let values: Vec<f64> = values.iter().map(|value| round(*value)).collect();
        self.all.insert(name.into(), json!(values));
    }

    /// The results as JSON.
    #[must_use]
    pub fn into_json(self) -> Value {
        let mut all = self.medians;
        all.insert("all".into(), self.all.into());
        Value::Object(all)
    }
}

/// Carries out `bench micro|disk|net`.
///
/// # Errors
/// Senseless options, or what failed.
pub fn run(order: &Order) -> Result<Value, OrderError> {
    let failed = |error: std::io::Error| OrderError(format!("bench: {error}"));
    match order.word(0) {
        "micro" => {
            order.allow(&["reps"])?;
            let reps = order.number("reps", 7, 5..=1000)?;
            let text = helper::output_with("bench-micro", &[reps.to_string()]).map_err(failed)?;
            let mut found: Value = serde_json::from_str(&text)
                .map_err(|error| OrderError(format!("bench: helper: {error}")))?;
            found["mem_total_kib"] = facts::mem_total_kib().into();
            Ok(found)
        }
        "disk" => disk::run(order),
        "net" => {
            order.allow(&["to", "reps", "ms"])?;
            let to = order.required("to")?;
            let to = to
                .parse()
                .map_err(|_| OrderError(format!("bench: to={to} is no ADDRESS:PORT")))?;
            let reps = order.number("reps", 5, 5..=1000)?;
            let time = Duration::from_millis(order.number("ms", 1000, 10..=60_000)?);
            let (mut sent, mut received, mut trips) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..reps {
                sent.push(bulk::measure_send(to, time).map_err(failed)?);
                received.push(bulk::measure_receive(to, time).map_err(failed)?);
                trips.push(bulk::measure_round_trip(to, time).map_err(failed)?);
            }
            let mut results = Results::default();
            results.add("net_tx_mib_s", &sent);
            results.add("net_rx_mib_s", &received);
            results.add("net_rtt_us", &trips);
            Ok(results.into_json())
        }
        other => Err(OrderError(format!(
            "bench: {other:?} is not micro, disk or net"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::{median, run};
    use crate::net::bulk;
    use crate::orders::Order;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(&[5.0, 1.0, 3.0]) - 3.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn the_network_is_measured_against_a_peer() {
        let server = bulk::serve(([127, 0, 0, 1], 0).into()).expect("binds");
        let to = format!("to={server}");
        let found = run(&Order::new("bench", ["net", &to, "ms=20"])).expect("measured");
        assert!(found["net_tx_mib_s"].as_f64() > Some(0.0), "{found}");
        assert!(found["net_rtt_us"].as_f64() > Some(0.0), "{found}");
        assert_eq!(
            found["all"]["net_rx_mib_s"].as_array().map(Vec::len),
            Some(5)
        );
        assert!(run(&Order::new("bench", ["net", "to=x"])).is_err());
        assert!(run(&Order::new("bench", ["net", &to, "reps=1"])).is_err());
    }
}
