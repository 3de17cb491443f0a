//! Several Kafka nodes, each a broker and a controller; one is allowed, too.

use std::ops::{Index, IndexMut};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::kafka::{Kafka, Node};
use super::{free_port, wait_until};

/// How long nodes may take to be in sync again, on a machine that is busy.
const IN_SYNC: Duration = Duration::from_secs(120);

/// Nodes, by number from 0. Topics have a replica on each of them unless they say otherwise.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Kafka>,
}

impl Cluster {
    /// Starts `count` nodes with further properties of the brokers.
    pub fn start(count: usize, properties: &[(&str, &str)]) -> Self {
        let controllers: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let prepare = |id| Kafka::prepare(Node { id, controllers: &controllers, properties });
        let mut cluster = Self { nodes: (1..=count).map(prepare).collect() };
        cluster.start_all();
        cluster
    }

    /// Number of nodes, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Where to connect.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Kafka::address).collect()
    }

    /// Starts those which do not run, all at once: a node alone waits for the others.
    pub fn start_all(&mut self) {
        let mut launched: Vec<_> = self.nodes.iter_mut().filter(|node| !node.is_running()).collect();
        for node in &mut launched {
            node.launch();
        }
        for node in &mut launched {
            node.wait_started();
        }
    }

    /// The node that leads a partition; none while nobody does, or nobody says so.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<usize> {
        let metadata = self.client().fetch_metadata(Some(topic), Duration::from_secs(10)).ok()?;
        let topic = metadata.topics().first()?;
        let partition = topic.partitions().iter().find(|p| p.id() == partition)?;
        usize::try_from(partition.leader() - 1).ok()
    }

    /// Waits until every partition has all its replicas in sync.
    pub async fn in_sync(&self) {
        let client = self.client();
        wait_until(IN_SYNC, "all replicas are in sync", async || {
            let Ok(metadata) = client.fetch_metadata(None, Duration::from_secs(10)) else { return false };
            let mut partitions =
                metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
            metadata.brokers().len() == self.count()
                && partitions.all(|p| p.isr().len() == p.replicas().len())
        })
        .await;
    }

    fn client(&self) -> BaseConsumer {
        ClientConfig::new().set("bootstrap.servers", self.addresses().join(",")).create().unwrap()
    }
}

impl Index<usize> for Cluster {
    type Output = Kafka;

    fn index(&self, node: usize) -> &Kafka {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, node: usize) -> &mut Kafka {
        &mut self.nodes[node]
    }
}
