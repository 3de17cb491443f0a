//! How a server and its connector are set up for the seeds that share them: drawn from the first of them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Connector, PostgresBuilder};

/// Who says what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The connector makes a list of the tables that are there.
    Listed,
    /// All tables, also those that are made later.
    All,
    /// A list with row filters and column lists (15 and later).
    Filtered,
}

/// What was drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub major: u32,
    pub published: Published,
    /// Transactions are streamed while they are in progress: from 16 on each of them, before that the large ones.
    pub streamed: bool,
    /// Schema changes are told by event triggers, and not seen in the catalog.
    pub triggers: bool,
    /// The lake's format.
    pub lake: Files,
    /// The log's records are in Avro, and not in JSON.
    pub avro: bool,
}

/// A format of the lake's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    Parquet,
    Csv,
    Orc,
}

impl Draw {
    /// For the seeds from `first` on. `ORACLE_DRAW` names what has to be in it, by comma: `all`, `listed`, `filtered`,
    /// `streamed`, `whole`, `triggers`, `polled`, `csv`, `parquet`, `orc`, `avro`, `json`.
    pub fn new(major: u32, first: u64) -> Self {
        let mut random = StdRng::seed_from_u64(first / super::TOGETHER * 100 + u64::from(major));
        let published = match random.random_range(0..4) {
            0 if major >= 15 => Published::Filtered,
            1 => Published::Listed,
            _ => Published::All,
        };
        let [streamed, triggers, csv, avro, orc] =
            [0.5, 0.7, 0.3, 0.3, 0.4].map(|chance| random.random_bool(chance));
        let lake = match (csv, orc) {
            (true, _) => Files::Csv,
            (false, true) => Files::Orc,
            (false, false) => Files::Parquet,
        };
        let mut draw = Self { major, published, streamed, triggers, lake, avro };
        let wanted = std::env::var("ORACLE_DRAW").unwrap_or_default();
        for word in wanted.split(',').filter(|word| !word.is_empty()) {
            match word {
                "all" => draw.published = Published::All,
                "listed" => draw.published = Published::Listed,
                "filtered" => draw.published = Published::Filtered,
                "streamed" | "whole" => draw.streamed = word == "streamed",
                "triggers" | "polled" => draw.triggers = word == "triggers",
                "csv" => draw.lake = Files::Csv,
                "parquet" => draw.lake = Files::Parquet,
                "orc" => draw.lake = Files::Orc,
                "avro" | "json" => draw.avro = word == "avro",
                _ => panic!("ORACLE_DRAW: unknown {word}"),
            }
        }
        draw
    }

    /// Whether stored generated columns are sent: where 18 is asked to.
    pub fn sends_generated(self) -> bool {
        self.published != Published::All && self.major >= 18
    }

    /// Sets the server up.
    pub fn server(self, builder: PostgresBuilder) -> PostgresBuilder {
        if !self.streamed {
            return builder;
        }
        let builder = builder.set("logical_decoding_work_mem", "64kB");
        if self.major < 16 {
            builder
        } else {
            builder.set("debug_logical_replication_streaming", "immediate")
        }
    }

    /// Sets the connector up, with the address of a registry that Avro takes.
    pub fn connector(self, connector: Connector, registry: Option<String>) -> Connector {
        let connector = match self.lake {
            Files::Parquet => connector,
            Files::Csv => connector.set("lake", "format", "csv").set("lake", "compression", "gzip"),
            Files::Orc => connector.set("lake", "format", "orc"),
        };
        let connector = match registry {
            Some(url) => connector.set("envelope", "format", "avro").set("envelope.registry", "url", url),
            None => connector,
        };
        if self.triggers {
            return connector.set("source", "ddl_trigger", "on");
        }
        connector.set("source", "ddl_trigger", "off").set("source", "schema_poll_interval_ms", 300)
    }
}
