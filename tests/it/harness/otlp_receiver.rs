//! An OTLP receiver, which decodes traces with OpenTelemetry's own library.

use std::process::Command;

use serde_json::Value;

use crate::{
    harness::wait_for,
    process::{Process, log_field, python},
};

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The receiver `tests/programs/otlp_receiver.py` in its own process.
pub struct OtlpReceiver {
    pub process: Process,
    /// The URL of OTLP over HTTP.
    pub http: String,
    /// The URL of OTLP over gRPC.
    pub grpc: String,
}

impl OtlpReceiver {
    /// Starts the receiver; the arguments are the results of its first deliveries, and the others succeed.
    pub async fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(python());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/otlp_receiver.py")).args(arguments);
        let process = Process::start(command);
        let ready = process.out.wait_for_line("ready").await;
        let [http, grpc] =
            ["http", "grpc"].map(|kind| format!("http://127.0.0.1:{}", log_field(&ready, kind)));
        Self { process, http, grpc: grpc + GRPC_PATH }
    }

    /// All deliveries, each with its result, headers and accepted spans.
    pub fn deliveries(&self) -> Vec<Value> {
        let out = self.process.out.text();
        let lines = out.split_inclusive('\n').filter(|line| line.starts_with('{') && line.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// The results of all deliveries, in order.
    pub fn results(&self) -> Vec<String> {
        self.deliveries()
            .iter()
            .map(|delivery| delivery["answer"].as_str().expect("a result").to_owned())
            .collect()
    }

    /// Waits until the receiver has accepted `count` spans, and returns them.
    pub async fn wait_for_spans(&self, count: usize) -> Vec<Value> {
        let mut spans = Vec::new();
        wait_for("spans", async || {
            let deliveries = self.deliveries();
            spans = deliveries
                .iter()
                .filter_map(|delivery| delivery["spans"].as_array())
                .flatten()
                .cloned()
                .collect();
            spans.len() >= count
        })
        .await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// Waits until a delivery has this result.
    pub async fn wait_for_result(&self, expected: &str) {
        wait_for(expected, async || self.results().iter().any(|result| result == expected)).await;
    }
}
